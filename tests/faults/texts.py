"""Whether the chunks in the stores are the texts that were uploaded: from beginning to end, nothing left out."""

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Any

import asyncpg

from app.extraction.texts import clean
from app.ids import from_wire, to_wire
from tests.faults.rows import connected
from tests.faults.uploads import texts_of

_SPACE = re.compile(r"\s*")


_AN_UPLOAD, _A_FAULT = 4, 8
"""Of so many files the text is compared: it is to cost little."""


class Texts:
    """What was uploaded since the last look, of some of the files."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}  # by their files' ids

    def note(self, upload: dict[str, Any], ingestions: Sequence[dict[str, Any]]) -> None:
        """These were made of it."""
        ids = {each["filename"]: each["file_id"] for each in ingestions}
        some = list(texts_of(upload).items())[:_AN_UPLOAD]
        self._texts |= {ids[name]: text for name, text in some if name in ids}

    def wrong(self, database_url: str) -> list[str]:
        """What is wrong with the chunks of the newest in the stores where they are completed."""
        newest = dict(list(self._texts.items())[-_A_FAULT:])
        self._texts.clear()
        try:
            rows = asyncio.run(_chunks_of(database_url, list(newest)))
        except (OSError, asyncpg.PostgresError) as exc:
            return [f"the chunks cannot be read: {exc!r}"]
        found = [(row, fault_in(clean(newest[to_wire("file", row["file_id"])]), row["chunks"])) for row in rows]
        return [
            f"file {row['file_id']} in store {row['vector_store_id']}: {fault}" for row, fault in found if fault
        ]


async def _chunks_of(database_url: str, files: Sequence[str]) -> list[asyncpg.Record]:
    async with connected(database_url) as conn:
        rows: list[asyncpg.Record] = await conn.fetch(
            """
            SELECT v.file_id, v.vector_store_id, array_agg(c.content ORDER BY c.ordinal) AS chunks
            FROM vector_store_files v
            JOIN ingestions i ON i.id = v.ingestion_id AND i.state = 'completed'
            JOIN vector_stores s ON s.id = v.vector_store_id
            JOIN chunks c ON c.shard = s.shard AND c.vector_store_id = s.id AND c.file_id = v.file_id
            WHERE v.file_id = ANY($1) GROUP BY v.file_id, v.vector_store_id
            """,
            [from_wire("file", each) for each in files],
        )
    return rows


def fault_in(text: str, chunks: Sequence[str]) -> str | None:
    """Why these are not the text, cut: each begins after the one before, and where that ends at the latest, but for
    white space. None if they are.
    """
    reached = {(-1, 0)}  # where the last chunk may begin, and up to where the text is covered then
    for number, chunk in enumerate(chunks):
        reached = {
            (start, max(end, start + len(chunk)))
            for before, end in reached
            for start in _places(text, chunk, first=before + 1, last=_after_space(text, end))
        }
        if not reached:
            return f"chunk {number} of {len(chunks)} is not how the text goes on: {chunk[:60]!r}"
    if any(_after_space(text, end) == len(text) for _, end in reached):
        return None
    return f"the {len(chunks)} chunks are not all of the text"


def _places(text: str, chunk: str, *, first: int, last: int) -> Iterator[int]:
    """Where in the text a chunk stands, between these two."""
    start = text.find(chunk, first, last + len(chunk))
    while start >= 0:
        yield start
        start = text.find(chunk, start + 1, last + len(chunk))


def _after_space(text: str, position: int) -> int:
    """Where the white space ends that begins here."""
    found = _SPACE.match(text, position)
    return found.end() if found else position
