"""Rows of `chunks` as Postgres's binary COPY format, encoded before the transaction opens.

Format: PostgreSQL documentation, COPY, "Binary Format"; halfvec: pgvector `halfvec_recv` (int16 dimensions,
int16 unused, big-endian float16 each).
"""

import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.errors import Unprocessable

COLUMNS = ("file_id", "ordinal", "content", "embedding", "shard", "vector_store_id")
"""The column list of the COPY: what all stores share comes first."""

_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack("!ii", 0, 0)
_TRAILER = struct.pack("!h", -1)
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class EncodedChunks:
    """A file's chunks, each encoded up to (not including) the two fields that differ from store to store."""

    rows: tuple[bytes, ...]
    size_bytes: int  # of texts (UTF-8) and vectors in one store: what `usage_bytes` counts


def halved(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Vectors in the precision of Postgres's `halfvec`.

    Raises:
        Unprocessable: a component does not fit into a float16 (beyond ±65504), or is not a number.
    """
    with np.errstate(over="ignore"):
        halves = vectors.astype(np.float16)
    if not np.isfinite(halves).all():
        raise Unprocessable(
            "embedding_refused", "The embedding model returned components beyond half precision (±65504)."
        )
    return halves


def encode_chunks(file_id: UUID, texts: Sequence[str], vectors: NDArray[np.float32]) -> EncodedChunks:
    """Encode `texts` and their `vectors` (n, dimensions) as half-precision rows.

    Raises:
        Unprocessable: as `halved`.
    """
    count, dimensions = vectors.shape
    blob = halved(vectors).astype(">f2").tobytes()
    width = 2 * dimensions
    start = struct.pack("!hi16si", len(COLUMNS), 16, file_id.bytes, 4)
    vector_head = struct.pack("!ihh", 4 + width, dimensions, 0)
    rows = []
    for ordinal in range(count):
        text = texts[ordinal].encode()
        vector = blob[ordinal * width : (ordinal + 1) * width]
        rows.append(b"".join((start, struct.pack("!ii", ordinal, len(text)), text, vector_head, vector)))
    fixed = len(start) + struct.calcsize("!ii") + len(vector_head)
    return EncodedChunks(tuple(rows), sum(len(row) - fixed for row in rows))


async def copy_pieces(placed: Sequence[tuple[int, UUID, EncodedChunks]]) -> AsyncIterator[bytes]:
    """The COPY stream for (shard, vector store id, chunks) triples, in pieces of some 256 KB."""
    piece, size = [_HEADER], len(_HEADER)
    for shard, store_id, chunks in placed:
        end = struct.pack("!iii16s", 4, shard, 16, store_id.bytes)
        for row in chunks.rows:
            piece += (row, end)
            size += len(row) + len(end)
            if size >= _PIECE_BYTES:
                yield b"".join(piece)
                piece, size = [], 0
    piece.append(_TRAILER)
    yield b"".join(piece)
