"""Canary keys go through the whole service, in success and failure; then everything that lasts is searched."""

import asyncio
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import redis

from app.cli.service import RunningService, ServicePlan, running_service
from tests.acceptance.conftest import QUICK
from tests.support.environment import clean_environment
from tests.support.fake_openai import FakeOpenAI, Status
from tests.support.ports import free_port

OWN, DEFAULT, REJECTED = "sk-canary-own-5b1d", "sk-canary-default-77aa", "sk-canary-rejected-90fe"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-canary-"))
    yield folder
    shutil.rmtree(folder)


async def start(stack: ExitStack, place: Path, provider: FakeOpenAI) -> RunningService:
    environment = clean_environment() | QUICK
    environment |= {
        "RAG_OPENAI_API_BASE_URL": provider.base_url,
        "RAG_OPENAI_API_KEY": DEFAULT,
        "RAG_EMBEDDING_DIMENSIONS": "8",
        "JOB_MAX_RETRIES": "1",
        "LOG_LEVEL": "debug",
    }
    plan = ServicePlan(place, port=free_port(), environment=environment)
    return await asyncio.to_thread(stack.enter_context, running_service(plan, print))


class User:
    """Uses the API and keeps every answer."""

    def __init__(self, service: RunningService, api_key: str) -> None:
        self.answers: list[str] = []
        self._http = httpx.AsyncClient(
            base_url=service.url, headers={"Authorization": f"Bearer {api_key}"}, timeout=30
        )

    async def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = await self._http.request(method, path, **options)
        self.answers.append(f"{response.headers} {response.text}")
        answer: dict[str, Any] = response.json()
        return answer

    async def ingest(self, store: str, text: str) -> str:
        """Upload a text and wait for its end: the status."""
        files = [("files", ("a.txt", text.encode()))]
        body = await self.ask("POST", "/v1/ingestions", data={"vector_store_ids": store}, files=files)
        path = f"/v1/ingestions/{body['data'][0]['id']}"
        async with asyncio.timeout(40):
            while (found := await self.ask("GET", path))["status"] == "in_progress":
                await asyncio.sleep(0.05)
        await self.ask("GET", f"/v1/jobs/{found['job_id']}")
        return str(found["status"])

    async def close(self) -> None:
        await self._http.aclose()


async def test_no_key_is_found_in_redis_postgres_logs_or_answers(stack: ExitStack, place: Path) -> None:
    async with FakeOpenAI(dimensions=8) as provider:
        provider.for_word["refused"] = Status(400, message=f"bad request with key {OWN}")
        provider.for_key[REJECTED] = Status(401, message=f"Incorrect API key provided: {REJECTED}")
        service = await start(stack, place, provider)
        assert service.api_key is not None
        user = User(service, service.api_key)
        store = (await user.ask("POST", "/v1/vector_stores", json={"name": "s"}))["id"]
        assert await user.ingest(store, "paid by the server default") == "completed"
        key = await user.ask("POST", "/v1/embedding_keys", json={"name": "own", "key": OWN})
        assert await user.ingest(store, "paid by my own key") == "completed"
        assert await user.ingest(store, "this is refused") == "failed"
        await user.ask("POST", f"/v1/vector_stores/{store}/search", json={"query": "my own key"})
        await user.ask("POST", "/v1/embedding_keys", json={"name": ["wrong"], "key": {"deep": OWN}})
        await user.ask(
            "POST", "/v1/embedding_keys", json={"name": "elsewhere", "key": OWN, "base_url": "http://evil"}
        )
        await user.ask("DELETE", f"/v1/embedding_keys/{key['id']}")
        await user.ask("POST", "/v1/embedding_keys", json={"name": "rejected", "key": REJECTED})
        assert await user.ingest(store, "nobody pays") == "failed"
        await user.close()
        used = {request.authorization for request in provider.requests}
        assert {f"Bearer {secret}" for secret in (OWN, DEFAULT, REJECTED)} <= used, "the canaries did fly"
        places = await everything_that_lasts(service, place) | {"answers": "\n".join(user.answers).encode()}
        kek = service.environment["SLUICE_KEY_ENCRYPTION_KEY"]
        for secret in (OWN, DEFAULT, REJECTED, service.api_key, kek):
            found = [name for name, content in places.items() if secret.encode() in content]
            assert not found, f"{secret} lies in {found}"
        assert len(places["postgres"]) > 1000
        assert len(places["redis"]) > 100
        assert b"this is refused" not in places["redis"], "texts have no business there either"


async def everything_that_lasts(service: RunningService, place: Path) -> dict[str, bytes]:
    """Redis, Postgres, the logs and the command lines of the processes."""
    places = {path.name: path.read_bytes() for path in place.glob("*.log")}
    with redis.Redis.from_url(service.environment["REDIS_URL"]) as client:
        keys: list[bytes] = client.keys()  # type: ignore[assignment]
        places["redis"] = b"\n".join(key + (client.dump(key) or b"") + contents(client, key) for key in keys)
    conn = await asyncpg.connect(service.environment["DATABASE_URL"])
    tables = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [str(row[0]) for table in tables for row in await conn.fetch(f'SELECT t::text FROM "{table[0]}" t')]
    settings = await conn.fetch("SELECT query FROM pg_stat_activity")
    places["postgres"] = "\n".join([*rows, *(str(row[0]) for row in settings)]).encode()
    places["postgres as bytes"] = b"\n".join(bytes.fromhex(piece) for row in rows for piece in _hex_pieces(row))
    await conn.close()
    listed = await asyncio.to_thread(subprocess.check_output, ["ps", "-eo", "args"])
    places["command lines"] = listed
    return places


def _hex_pieces(row: str) -> list[str]:
    """What stands behind each backslash-x: bytea columns as Postgres prints them."""
    return [piece for piece in re.findall(r"\\x([0-9a-f]*)", row) if len(piece) % 2 == 0]


def contents(client: redis.Redis, key: bytes) -> bytes:
    """A key's content in clear: DUMP may be compressed."""
    match client.type(key):
        case b"hash":
            fields = client.hgetall(key)
            data = fields.get(b"data", b"")
            return b" ".join([*fields.keys(), *fields.values(), zlib.decompress(data) if data else b""])
        case b"stream":
            return str(client.xrange(key)).encode()
        case b"list":
            return b" ".join(client.lrange(key, 0, -1))
        case b"zset":
            return b" ".join(client.zrange(key, 0, -1))
        case b"set":
            return b" ".join(client.smembers(key))
        case _:
            return client.get(key) or b""
