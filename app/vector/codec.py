"""Rows of `chunks` as Postgres's binary COPY format, encoded before the transaction opens.

Format: PostgreSQL documentation, COPY, "Binary Format"; halfvec: pgvector `halfvec_recv` (int16 dimensions,
int16 unused, big-endian float16 each).
"""

import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from app.errors import Unprocessable

COLUMNS = ("file_id", "ordinal", "content", "embedding", "shard", "vector_store_id")
"""The column list of the COPY: what all stores share comes first."""

_HEADER = b"PGCOPY\n\xff\r\n\x00" + struct.pack("!ii", 0, 0)
_TRAILER = struct.pack("!h", -1)
_PIECE_BYTES = 256 * 1024
_ENCODED_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class EncodedChunks:
    """A file's chunks, each encoded up to (not including) the two fields that differ from store to store."""

    rows: tuple[bytes, ...]
    size_bytes: int  # of texts (UTF-8) and vectors in one store: what `usage_bytes` counts


def vector_bytes(dimensions: int) -> int:
    """What the components of one `halfvec` take."""
    return 2 * dimensions


def halved(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """Vectors in the precision of Postgres's `halfvec`.

    Raises:
        Unprocessable: a component does not fit into a float16 (beyond ±65504), or is not a number.
    """
    with np.errstate(over="ignore"):
        halves = vectors.astype(np.float16, copy=False)
    if not np.isfinite(halves).all():
        raise Unprocessable(
            "embedding_refused", "The embedding model returned components beyond half precision (±65504)."
        )
    return halves


def encode_chunks(
    file_id: UUID, texts: Sequence[str], vectors: Iterable[NDArray[np.floating[Any]]]
) -> EncodedChunks:
    """Encode `texts` and their `vectors` (each of the same dimensions) as half-precision rows.

    Raises:
        Unprocessable: as `halved`.
    """
    start = struct.pack("!hi16si", len(COLUMNS), 16, file_id.bytes, 4)
    rows: list[bytes] = []
    size_bytes = 0
    rest = iter(vectors)
    for first in range(0, len(texts), _ENCODED_AT_ONCE):  # a whole copy of a large file's vectors would be too much
        block = halved(np.stack(list(islice(rest, _ENCODED_AT_ONCE))))
        width = vector_bytes(block.shape[1])
        vector_head = struct.pack("!ihh", 4 + width, block.shape[1], 0)
        pairs = zip(texts[first : first + _ENCODED_AT_ONCE], block.astype(">f2"), strict=True)
        for number, (text, vector) in enumerate(pairs, first):
            content = text.encode()
            place = struct.pack("!ii", number, len(content))
            rows.append(b"".join((start, place, content, vector_head, vector.tobytes())))
            size_bytes += len(content) + width
    return EncodedChunks(tuple(rows), size_bytes)


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
