"""What a load was promised, and what is not so."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
from pgvector import HalfVector

from app.db import connection
from app.doctor import examine
from app.errors import Transient
from app.ids import from_wire
from app.resources import open_resources
from app.settings import Settings
from tests.faults.uploads import NUL
from tests.support.fake_openai import vector_of

REFUSED, REPEATED, LOST, API_LOST = "refused", "repeated", "lost", "api lost"
"""What a fault may lead to besides: uploads are refused, files take more than one attempt, API processes end."""
_MOST_VECTORS = 300
_NEAR = 0.99
_SNAPSHOT_PAUSE_SECONDS = 0.01
_READ_SECONDS = 20
_MOST_GONE = 16
_GONE_SECONDS = 10.0
"""Longer than what is in flight takes; then the doctor looks for such chunks."""


@dataclass
class Promises:
    """Batches that were accepted, and what has happened since that allows another end than `completed`."""

    open_batches: dict[str, dict[str, str]] = field(default_factory=dict)  # batch → its ingestions → their files
    stores: dict[str, set[str]] = field(default_factory=dict)  # batch → the stores that it was for
    cancelled: set[str] = field(default_factory=set)  # ingestions of which we were told so
    deleted: set[str] = field(default_factory=set)  # files of which we were told so
    may_be_gone: set[str] = field(default_factory=set)  # files whose deletion was not answered
    withdrawn: set[str] = field(default_factory=set)  # ingestions that may have been cancelled
    detached: set[str] = field(default_factory=set)  # they are cancelled if they have no store left
    may_fail: set[str] = field(default_factory=set)  # codes that this fault may end a file with
    may: frozenset[str] = frozenset()  # what else this fault may lead to
    kept: Counter[str] = field(default_factory=Counter)

    def expect(self, batch: str, ingestions: Iterable[dict[str, Any]], *, stores: Iterable[str]) -> None:
        """A batch of these was accepted."""
        self.open_batches[batch] = {each["id"]: each["file_id"] for each in ingestions}
        self.stores[batch] = set(stores)

    def open_ingestions(self) -> set[str]:
        """Those of all batches that have not been seen to settle."""
        return {each for ingestions in self.open_batches.values() for each in ingestions}

    def settle(self, pages: dict[str, dict[str, Any]], repeated: dict[str, tuple[int, int]]) -> list[str]:
        """Hold what became of every open batch against what was promised, and start afresh.

        `repeated`: (attempts, those whose lease ended) of the ingestions that took more than one.
        """
        wrong = [each for batch, page in pages.items() for each in self._wrong_in(batch, page)]
        wrong += [
            f"ingestion {each} took {attempts} attempts, {lost} lost"
            for each, (attempts, lost) in repeated.items()
            if REPEATED not in self.may or (lost and LOST not in self.may)
        ]
        self.open_batches.clear()
        self.stores.clear()
        self.may_fail.clear()
        return wrong

    def _wrong_in(self, batch: str, page: dict[str, Any]) -> list[str]:
        wrong = []
        for each in page["data"]:
            code = (each["error"] or {}).get("code")
            self.kept[f"files {each['status']}" + (f": {code}" if each["status"] == "failed" else "")] += 1
            if not self._may_be_so(each, code):
                wrong.append(f"ingestion {each['id']} of batch {batch} ended as {each['status']} {code or ''}")
        known = {each["id"] for each in page["data"]}
        wrong += [
            f"ingestion {each['id']} of batch {batch} is there, its file was deleted"
            for each in page["data"]
            if each["file_id"] in self.deleted
        ]
        gone = {each: file for each, file in self.open_batches[batch].items() if each not in known}
        lost = [each for each, file in gone.items() if file not in self.deleted | self.may_be_gone]
        return wrong + [f"ingestion {each} of batch {batch} is gone, nobody deleted it" for each in lost]

    def _may_be_so(self, ingestion: dict[str, Any], code: str | None) -> bool:
        known: str = ingestion["id"]
        status: str = ingestion["status"]
        if known in self.cancelled:
            return status == "cancelled"
        if status == "failed":
            return code in self.may_fail
        has_no_store = known in self.detached and not ingestion["vector_store_ids"]
        return status == "completed" or (status == "cancelled" and (known in self.withdrawn or has_no_store))


async def broken_promises(settings: Settings) -> list[str]:
    """The doctor's findings, and vectors that do not belong to their texts."""
    with suppress(Transient, OSError):
        async with open_resources(settings, role="doctor") as resources:
            found = [f"{each.promise}: {each.where}" for each in await examine(resources)]
            async with connection(resources.pool) as conn:
                return found + await _wrong_vectors(conn)
    return ["Postgres does not answer"]


async def _wrong_vectors(conn: Any) -> list[str]:
    """Of the newest files, each of other words, in stores whose vectors the fake provider made."""
    rows = await conn.fetch(
        """
        SELECT c.content, c.embedding::text AS embedding, s.dimensions FROM chunks c
        JOIN vector_stores s ON s.id = c.vector_store_id AND s.shard = c.shard
        JOIN files f ON f.id = c.file_id
        WHERE s.model = 'text-embedding-3-small' AND f.filename <> $2 ORDER BY c.file_id DESC LIMIT $1
        """,
        _MOST_VECTORS,
        NUL,
    )
    wrong = []
    for row in rows:
        vector = HalfVector.from_text(row["embedding"]).to_numpy().astype(np.float32)
        if float(vector @ vector_of(row["content"], row["dimensions"])) < _NEAR:
            wrong.append(f"a vector is not that of its text: {row['content'][:60]!r}")
    return wrong


class Reader:
    """Reads snapshots while others write: of a file there is all or nothing, and of a deleted one nothing."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self.snapshots = 0
        self.during_work = 0
        self._reported = 0
        self._torn: list[str] = []
        self._gone: deque[tuple[float, UUID]] = deque(maxlen=_MOST_GONE)  # until when they are looked for

    def note_deleted(self, file: str) -> None:
        """Its DELETE has been answered: from now on there is no chunk of it, whatever is in flight."""
        self._gone.append((time.monotonic() + _GONE_SECONDS, from_wire("file", file)))

    def report(self) -> list[str]:
        """What is wrong since the last report; and that it reads at all."""
        until = time.monotonic() + _READ_SECONDS
        while self.snapshots == self._reported:
            if time.monotonic() > until:
                return ["no snapshots can be read"]
            time.sleep(_SNAPSHOT_PAUSE_SECONDS)
        self._reported = self.snapshots
        torn, self._torn = self._torn, []
        return torn

    async def run(self) -> None:
        """Read until cancelled; Postgres may be away at times."""
        while True:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                conn = await asyncpg.connect(self._database_url)
                try:
                    while True:
                        self._note(await conn.fetch(_SNAPSHOT))
                        if gone := [each for until, each in list(self._gone) if time.monotonic() < until]:
                            self._note_chunks(await conn.fetch(_CHUNKS, gone))
                        await asyncio.sleep(_SNAPSHOT_PAUSE_SECONDS)
                finally:
                    conn.terminate()
            await asyncio.sleep(0.1)

    def _note(self, rows: Sequence[Any]) -> None:
        self.snapshots += 1
        self.during_work += any(row["state"] in {"queued", "running"} for row in rows)
        self._torn += [
            f"a snapshot shows {row['found']} of {row['chunks_total']} chunks of {row['file_id']}, {row['state']}"
            for row in rows
            if row["found"] != (row["chunks_total"] if row["state"] == "completed" else 0)
        ]

    def _note_chunks(self, rows: Sequence[Any]) -> None:
        self._torn += [f"{row['found']} chunks of {row['file_id']} are there, it was deleted" for row in rows]


_CHUNKS = """
    SELECT c.file_id, count(*) AS found FROM vector_stores s
    JOIN chunks c ON c.shard = s.shard AND c.vector_store_id = s.id
    WHERE c.file_id = ANY($1) GROUP BY c.file_id
"""
_SNAPSHOT = """
    SELECT v.file_id, i.chunks_total, i.state, (
        SELECT count(*) FROM chunks c
        WHERE c.shard = s.shard AND c.vector_store_id = v.vector_store_id AND c.file_id = v.file_id
    ) AS found
    FROM vector_store_files v
    JOIN ingestions i ON i.id = v.ingestion_id JOIN vector_stores s ON s.id = v.vector_store_id
    WHERE v.ingestion_id IN (SELECT id FROM ingestions ORDER BY id DESC LIMIT 12)
"""
"""One statement is one snapshot (READ COMMITTED); of the newest files, for these are being written."""
