"""A workbench: users, stores and files put in directly, and the real pipeline to run them."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest
from pydantic import SecretStr

from app.access.tokens import Principal
from app.db import connection, transaction
from app.doctor import Finding, examine
from app.ids import new_id
from app.ingest.process import Processor
from app.records.files import NewFile, blob_key, insert_file
from app.records.ingestions import Ingestion, NewIngestion, get_ingestion, insert_ingestions
from app.records.store_files import attach
from app.records.vector_stores import NewVectorStore, insert_store
from app.resources import Resources, open_resources
from app.settings import LOCAL_DIMENSIONS, LOCAL_MODEL, Settings
from app.vector.chunks import delete_chunks
from app.vector.shards import ensure_shard
from tests.support.fake_openai import FakeOpenAI
from tests.support.proxy import Proxy

TEXT = "The lamp is lit half an hour before sunset. In fog the keeper sounds two blasts every minute. " * 40


class Workbench:
    """Puts work into the database and runs it."""

    def __init__(self, resources: Resources, owner: Principal) -> None:
        self.resources, self.owner = resources, owner
        self.processor = Processor(resources, name="test-worker")

    def with_settings(self, **changes: object) -> "Workbench":
        """The same bench under other settings."""
        settings = self.resources.settings.model_copy(update=changes)
        return Workbench(replace(self.resources, settings=settings), self.owner)

    @asynccontextmanager
    async def from_afar(self) -> AsyncIterator[tuple["Workbench", Proxy]]:
        """The same bench in another process, as it were, and its wire to Postgres."""
        place = urlsplit(self.resources.settings.database_url)
        with Proxy(f"{parse_qs(place.query)['host'][0]}/.s.PGSQL.5432") as wire:
            far = f"postgresql://postgres@127.0.0.1:{wire.port}{place.path}"
            settings = self.resources.settings.model_copy(update={"database_url": far})
            async with open_resources(settings, role="far") as resources:
                yield Workbench(resources, self.owner), wire

    async def store(self, *, model: str = LOCAL_MODEL, dimensions: int = LOCAL_DIMENSIONS) -> UUID:
        store_id = new_id()
        async with transaction(self.resources.pool) as conn:
            shard = await ensure_shard(conn, dimensions)
            new = NewVectorStore(store_id, None, {}, model, dimensions, shard, None)
            await insert_store(conn, new, owner_id=self.owner.user_id)
        return store_id

    async def file(self, content: bytes | str = TEXT, filename: str = "a.txt") -> UUID:
        file_id = new_id()
        raw = content.encode() if isinstance(content, str) else content

        async def body() -> AsyncIterator[bytes]:
            yield raw

        await self.resources.blobs.put(blob_key(file_id), body(), max_bytes=1 << 30)
        new = NewFile(file_id, filename, "assistants", None, len(raw), hashlib.sha256(raw).digest())
        async with transaction(self.resources.pool) as conn:
            await insert_file(conn, new, owner_id=self.owner.user_id)
        return file_id

    async def attach(self, file_id: UUID, stores: Sequence[UUID], *, embedding_key_id: UUID | None = None) -> UUID:
        new = NewIngestion(new_id(), file_id, {}, 800, 400)
        async with transaction(self.resources.pool) as conn:
            await insert_ingestions(
                conn,
                [new],
                user_id=self.owner.user_id,
                batch_id=None,
                embedding_key_id=embedding_key_id,
                most_hints=16,
            )
            await delete_chunks(conn, await attach(conn, [new], stores))
        return new.id

    async def row(self, ingestion_id: UUID) -> Ingestion:
        async with connection(self.resources.pool) as conn:
            return await get_ingestion(conn, ingestion_id, user_id=None)

    async def sql(self, statement: str, *parameters: object) -> object:
        async with connection(self.resources.pool) as conn:
            return await conn.fetchval(statement, *parameters)

    async def chunks(self, store_id: UUID) -> int:
        count = await self.sql("SELECT count(*) FROM chunks WHERE vector_store_id = $1", store_id)
        assert isinstance(count, int)
        return count

    async def findings(self) -> list[Finding]:
        return await examine(self.resources)


@pytest.fixture
async def bench(
    settings: Settings, make_principal: Callable[[str], Awaitable[tuple[Principal, str]]]
) -> AsyncIterator[Workbench]:
    owner, _ = await make_principal("ada")
    async with open_resources(settings, role="test") as resources:
        yield Workbench(resources, owner)


@pytest.fixture
async def provider() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(dimensions=8) as server:
        yield server


@pytest.fixture
def paid(bench: Workbench, provider: FakeOpenAI) -> Workbench:
    """The bench with a provider that costs money, and a server default key."""
    return bench.with_settings(
        rag_embedding_engine="openai",
        rag_openai_api_base_url=provider.base_url,
        rag_openai_api_key=SecretStr("sk-server-default"),
    )
