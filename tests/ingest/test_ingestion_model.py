"""Ingestions against a small model: in whatever order things happen, rows, chunks and hints agree with it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
import numpy as np
import redis
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pydantic import SecretStr

from app.access.embedding_keys import add_embedding_key, revoke_embedding_key
from app.access.people import create_user
from app.access.tokens import Principal
from app.credentials import credential_for
from app.db import connection, transaction
from app.doorbell import job_id_of
from app.embedding import EmbeddingModel
from app.ids import new_id
from app.ingest.commit import save_docs_to_multiple_collections
from app.ingest.maintenance import sweep
from app.ingest.outcomes import Failed, Superseded
from app.ingest.prepare import PreparedFile
from app.records.ingestions import (
    Claim,
    cancel,
    claim,
    extend_leases,
    fail,
    give_back,
    retry_later,
)
from app.records.store_files import detach_everywhere
from app.records.turns import claim_due
from app.resources import open_resources
from app.settings import Settings
from app.vector.chunks import delete_chunks
from app.vector.codec import encode_chunks
from tests.ingest.conftest import Workbench

MOST_CRASHES = 3
MOST_INGESTIONS = 4
"""Few, so that much happens to each."""
LEASE_SECONDS = 3600.0
MODEL = EmbeddingModel("text-embedding-3-small", 8)
"""One that is paid for with a key; nobody calls it, chunks are made here."""
PICK = st.integers(0, 1 << 16)


@dataclass
class Expected:
    """What is expected of an ingestion."""

    file: UUID
    stores: set[int]
    state: str = "queued"
    fence: int = 0
    attempts: int = 0
    crashes: int = 0
    is_expired: bool = False


@dataclass
class Model:
    """What is expected of everything; chunks by (file, store)."""

    ingestions: dict[UUID, Expected] = field(default_factory=dict)
    chunks: dict[tuple[UUID, int], int] = field(default_factory=dict)

    def withdraw(self, ingestion: UUID, store: int) -> None:
        """A store does not wait for this ingestion any more."""
        one = self.ingestions[ingestion]
        one.stores.discard(store)
        if not one.stores and one.state in {"queued", "running"}:
            one.state, one.fence = "cancelled", one.fence + 1


class Ingestions(RuleBasedStateMachine):
    """Every rule does one thing with the real Postgres and Redis, and with the model."""

    runner: asyncio.Runner
    app_settings: Settings
    names = count()

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.stack = AsyncExitStack()
        self.held: list[Claim] = []  # by workers who believe so; some have lost it
        self.do(self._open())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def _open(self) -> None:
        resources = await self.stack.enter_async_context(open_resources(self.app_settings, role="test"))
        async with connection(resources.pool) as conn:
            for table in ("vector_store_files", "ingestions", "files", "chunks"):
                await conn.execute(f"TRUNCATE {table} CASCADE")
            name = f"user {next(self.names)}"
            user = await create_user(conn, name)
        self.bench = Workbench(resources, Principal(user.id, name, new_id()))
        self.stores = [await self.bench.store(model=MODEL.name, dimensions=MODEL.dimensions) for _ in range(2)]
        self.revoked: set[UUID] = set()
        self.key = await self._add_key()

    async def _add_key(self) -> UUID:
        async with self.conn() as conn:
            key = await add_embedding_key(
                conn,
                owner_id=self.bench.owner.user_id,
                name="mine",
                base_url="http://127.0.0.1:1",
                secret=SecretStr("sk-made-up"),
                kek=self.app_settings.key_encryption_key,
            )
        return key.id

    def teardown(self) -> None:
        self.do(self.stack.aclose())

    @asynccontextmanager
    async def conn(self) -> AsyncIterator[Any]:
        async with transaction(self.bench.resources.pool) as conn:
            yield conn

    def pick(self, number: int) -> UUID:
        return list(self.model.ingestions)[number % len(self.model.ingestions)]

    @precondition(lambda self: len(self.model.ingestions) < MOST_INGESTIONS)
    @rule(into=st.sampled_from([[0], [1], [0, 1]]))
    def upload(self, into: list[int]) -> None:
        file = self.do(self.bench.file())
        self._attach(file, into)

    @precondition(lambda self: 0 < len(self.model.ingestions) < MOST_INGESTIONS)
    @rule(number=PICK, into=st.sampled_from([[0], [0, 1]]))
    def attach_again(self, number: int, into: list[int]) -> None:
        file = self.model.ingestions[self.pick(number)].file
        for ingestion, one in list(self.model.ingestions.items()):
            for store in into:
                if one.file == file and store in one.stores:
                    self.model.withdraw(ingestion, store)
                self.model.chunks.pop((file, store), None)
        self._attach(file, into)

    def _attach(self, file: UUID, into: list[int]) -> None:
        stores = [self.stores[store] for store in into]
        ingestion = self.do(self.bench.attach(file, stores, embedding_key_id=self.key))
        self.model.ingestions[ingestion] = Expected(file, set(into))

    @precondition(lambda self: self.model.ingestions)
    @rule(number=PICK)
    def answer_a_hint(self, number: int) -> None:
        """Whoever is rung for claims: a first hint, a second one, one that comes far too late."""
        ingestion = self.pick(number)
        taken = self.do(self._claim(ingestion))
        assert (taken is not None) == (self.model.ingestions[ingestion].state == "queued")
        self._note_claims([taken] if taken else [])

    async def _claim(self, ingestion: UUID) -> Claim | None:
        async with self.conn() as conn:
            return await claim(conn, ingestion, lease_seconds=LEASE_SECONDS, worker="w")

    @rule(limit=st.integers(1, 3))
    def pull(self, limit: int) -> None:
        """Without a queue."""
        taken = self.do(self._claim_due(limit))
        due = sum(one.state == "queued" for one in self.model.ingestions.values())
        assert len(taken) == min(limit, due)
        self._note_claims(taken)

    async def _claim_due(self, limit: int) -> list[Claim]:
        async with self.conn() as conn:
            return await claim_due(conn, limit=limit, lease_seconds=LEASE_SECONDS, worker="w")

    def _note_claims(self, taken: list[Claim]) -> None:
        for each in taken:
            one = self.model.ingestions[each.ingestion_id]
            assert one.state == "queued"
            one.state, one.fence, one.attempts, one.is_expired = "running", one.fence + 1, one.attempts + 1, False
            assert (each.fence, each.attempts) == (one.fence, one.attempts - one.crashes)
        self.held += taken

    def _is_valid(self, held: Claim) -> bool:
        one = self.model.ingestions.get(held.ingestion_id)
        return one is not None and one.state == "running" and one.fence == held.fence

    @rule()
    def beat(self) -> None:
        ours = self.do(self._beat())
        assert ours == {(held.ingestion_id, held.fence) for held in self.held if self._is_valid(held)}
        for ingestion, _ in ours:
            self.model.ingestions[ingestion].is_expired = False

    async def _beat(self) -> set[tuple[UUID, int]]:
        async with self.conn() as conn:
            held = [(each.ingestion_id, each.fence) for each in self.held]
            return set(await extend_leases(conn, held, lease_seconds=LEASE_SECONDS, timeout_seconds=10))

    @precondition(lambda self: self.model.ingestions)
    @rule(number=PICK)
    def let_the_lease_end(self, number: int) -> None:
        """Its worker has crashed, or is frozen and will come back late: the rows cannot tell."""
        ingestion = self.pick(number)
        one = self.model.ingestions[ingestion]
        if one.state == "running":
            one.is_expired = True
            self.do(
                self.bench.sql(
                    "UPDATE ingestions SET lease_until = now() - interval '1 s' WHERE id = $1", ingestion
                )
            )

    @precondition(lambda self: any(self._is_valid(held) for held in self.held))
    @rule(number=PICK)
    def lose_a_worker(self, number: int) -> None:
        """And have another one take over what it had in hand, while it may still wake up."""
        held = [each for each in self.held if self._is_valid(each)]
        ingestion = held[number % len(held)].ingestion_id
        self.let_the_lease_end(list(self.model.ingestions).index(ingestion))
        self.sweep()
        self.answer_a_hint(list(self.model.ingestions).index(ingestion))

    @rule()
    def sweep(self) -> None:
        self.do(sweep(self.bench.resources, has_queue=True))
        self.do(self.bench.sql("UPDATE ingestions SET next_run_at = now() WHERE state = 'queued'"))  # time passes
        self.do(sweep(self.bench.resources, has_queue=True))
        for one in self.model.ingestions.values():
            if one.state == "running" and one.is_expired:
                one.crashes += 1
                one.state = "failed" if one.crashes >= MOST_CRASHES else "queued"

    @precondition(lambda self: any(self._is_valid(held) for held in self.held))
    @rule(number=PICK)
    def revoke_the_key(self, number: int) -> None:
        """All that has been attached counts on it, one at once; what comes later gets a new one."""
        self.do(self._revoke())
        self.revoked.add(self.key)
        self.key = self.do(self._add_key())
        held = [each for each in self.held if self._is_valid(each)]
        self._finish_without_a_key(held[number % len(held)])

    async def _revoke(self) -> None:
        async with self.conn() as conn:
            await revoke_embedding_key(conn, owner_id=self.bench.owner.user_id, key_id=self.key)

    def _expected(self, held: Claim) -> Expected:
        return self.model.ingestions.get(held.ingestion_id, Expected(held.file_id, set()))

    def _may_fail(self, held: Claim) -> bool:
        """Whether a verdict of this worker counts: it holds the claim, or has ended the attempt that way before."""
        one = self._expected(held)
        return self._is_valid(held) or (one.state, one.fence) == ("failed", held.fence)

    @precondition(lambda self: self.held)
    @rule(number=PICK, chunks=st.integers(1, 3))
    def finish(self, number: int, chunks: int) -> None:
        held = self.held[number % len(self.held)]
        is_valid = self._is_valid(held)
        if held.embedding_key_id in self.revoked:
            self._finish_without_a_key(held)
            return
        written = self.do(self._finish(held, chunks))
        assert (written is not None) == is_valid
        if is_valid:
            one = self.model.ingestions[held.ingestion_id]
            one.state = "completed"
            assert written == len(one.stores)
            self.model.chunks |= {(one.file, store): chunks for store in one.stores}

    async def _finish(self, held: Claim, chunks: int) -> int | None:
        vectors = np.ones((chunks, MODEL.dimensions), dtype=np.float32)
        encoded = encode_chunks(held.file_id, ["text"] * chunks, vectors)
        prepared = PreparedFile(chunks, {MODEL: encoded})
        async with self.conn() as conn:
            assert await credential_for(conn, MODEL, held.embedding_key_id, self.app_settings)
            return await save_docs_to_multiple_collections(conn, held, prepared)

    def _finish_without_a_key(self, held: Claim) -> None:
        """The real attempt, which asks for the key before anything else."""
        one = self._expected(held)
        outcome = self.do(self.bench.processor.run(held))
        if not one.stores or not self._may_fail(held):
            assert isinstance(outcome, Superseded)
            return
        assert isinstance(outcome, Failed)
        assert outcome.code == "key_revoked"
        if self._is_valid(held):
            one.state = "failed"
            assert self.do(self.bench.row(held.ingestion_id)).error_code == "key_revoked"

    @precondition(lambda self: self.held)
    @rule(number=PICK, how=st.sampled_from(["fail", "retry", "give back"]))
    def end_without_success(self, number: int, how: str) -> None:
        """A verdict, a fault that may heal, a shutdown."""
        held = self.held[number % len(self.held)]
        is_valid = self._is_valid(held)
        one = self._expected(held)
        assert bool(self.do(self._end(held, how))) == (self._may_fail(held) if how == "fail" else is_valid)
        if is_valid:
            one.state = "failed" if how == "fail" else "queued"
            one.attempts -= how == "give back"

    async def _end(self, held: Claim, how: str) -> object:
        async with self.conn() as conn:
            if how == "fail":
                return await fail(conn, held, code="unreadable_file", message="It is damaged.")
            if how == "retry":
                return await retry_later(conn, held, delay_seconds=0.0, message="Later.", costs_attempt=True)
            return await give_back(conn, held)

    @precondition(lambda self: self.model.ingestions)
    @rule(number=PICK)
    def cancel(self, number: int) -> None:
        ingestion = self.pick(number)
        one = self.model.ingestions[ingestion]
        self.do(self._cancel(ingestion))
        if one.state in {"queued", "running"}:
            one.state, one.fence = "cancelled", one.fence + 1

    async def _cancel(self, ingestion: UUID) -> None:
        async with self.conn() as conn:
            await cancel(conn, ingestion)

    @precondition(lambda self: self.model.ingestions)
    @rule(number=PICK)
    def delete_the_file(self, number: int) -> None:
        file = self.model.ingestions[self.pick(number)].file
        self.do(self._delete(file))
        self.model.ingestions = {id_: one for id_, one in self.model.ingestions.items() if one.file != file}
        self.model.chunks = {place: n for place, n in self.model.chunks.items() if place[0] != file}

    async def _delete(self, file: UUID) -> None:
        async with self.conn() as conn:
            await delete_chunks(conn, await detach_everywhere(conn, file))
            await conn.execute("DELETE FROM files WHERE id = $1", file)

    @rule()
    def flush_redis(self) -> None:
        """Whatever was hinted is hinted again in the next sweep."""
        client = redis.Redis.from_url(self.app_settings.redis_url or "")
        client.flushall()
        client.close()
        while not self.do(self.bench.resources.doorbell.is_job_queue_available()):
            self.do(asyncio.sleep(0.05))  # a machine that is busy breaks the budget, and then the circuit
        self.sweep()
        waiting = [
            job_id_of(ingestion, one.fence + 1)
            for ingestion, one in self.model.ingestions.items()
            if one.state == "queued"
        ]
        assert set(self.do(self.bench.resources.doorbell.statuses(waiting)).values()) <= {"queued"}

    @invariant()
    def rows_agree(self) -> None:
        rows = self.do(self._rows())
        assert {row["id"]: (row["state"], row["fence"], row["attempts"], row["crashes"]) for row in rows} == {
            ingestion: (one.state, one.fence, one.attempts, one.crashes)
            for ingestion, one in self.model.ingestions.items()
        }

    async def _rows(self) -> list[Any]:
        async with self.conn() as conn:
            rows: list[Any] = await conn.fetch("SELECT * FROM ingestions")
            return rows

    @invariant()
    def chunks_agree(self) -> None:
        rows = self.do(self._chunks())
        assert {(row["file_id"], self.stores.index(row["vector_store_id"])): row["n"] for row in rows} == (
            self.model.chunks
        )

    async def _chunks(self) -> list[Any]:
        async with self.conn() as conn:
            rows: list[Any] = await conn.fetch(
                "SELECT file_id, vector_store_id, count(*) AS n FROM chunks GROUP BY 1, 2"
            )
            return rows


def test_ingestions_agree_with_the_model(settings: Settings) -> None:
    with asyncio.Runner() as runner:
        machine = type("IngestionsHere", (Ingestions,), {"runner": runner, "app_settings": settings})
        run_state_machine_as_test(
            machine,
            settings=hypothesis_settings(
                max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
