"""Searching one vector store: exact nearest neighbours and words, joined by reciprocal rank fusion.

Fusion: Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", SIGIR 2009, k = 60; divided by its greatest possible value, so that scores lie in 0..1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

from app.db import Connection
from app.vector.codec import halved
from app.vector.filters import FilterSql

_RRF_K = 60
_CANDIDATES_PER_RESULT = 4
_LEAST_CANDIDATES = 50

# Parameters: 1 shard, 2 store, 3 vector, 4 query, 5 candidates, 6 and 7 weights, 8 least score, 9 limit,
# 10 whether words count; the filter's from 11 on.
_NEAREST = """
    SELECT c.file_id, c.ordinal, 1 - (c.embedding <=> $3::text::halfvec({dimensions})) AS similarity,
           row_number() OVER (ORDER BY c.embedding <=> $3::text::halfvec({dimensions})) AS rank
    FROM chunks c JOIN vector_store_files v USING (vector_store_id, file_id)
    WHERE c.shard = $1 AND c.vector_store_id = $2 AND {condition} ORDER BY rank LIMIT $5
"""
# any of the words may match: people ask questions, they do not list the words that the answer must have
_WORDED = """
    SELECT c.file_id, c.ordinal,
           row_number() OVER (ORDER BY ts_rank(c.words, q.any_word) DESC, c.file_id, c.ordinal) AS rank
    FROM chunks c JOIN vector_store_files v USING (vector_store_id, file_id),
         (SELECT replace(plainto_tsquery('simple', $4)::text, '&', '|')::tsquery AS any_word) q
    WHERE $10 AND c.shard = $1 AND c.vector_store_id = $2 AND c.words @@ q.any_word AND {condition}
    ORDER BY rank LIMIT $5
"""
_SEARCH = f"""
    WITH nearest AS ({_NEAREST}), worded AS ({_WORDED}), ranked AS (
        SELECT file_id, ordinal, CASE WHEN $10 THEN
            (coalesce($6::float8 / ({_RRF_K} + n.rank), 0) + coalesce($7::float8 / ({_RRF_K} + w.rank), 0))
            * {_RRF_K + 1} / ($6 + $7)
        -- a vector of zeros has no direction: its similarity is NaN, which Postgres takes for the greatest number
        ELSE greatest(coalesce(nullif(n.similarity, 'NaN'), 0), 0) END AS score
        FROM nearest n FULL JOIN worded w USING (file_id, ordinal)
    )
    SELECT r.file_id, f.filename, v.attributes, r.ordinal, c.content, r.score
    FROM ranked r
    JOIN chunks c ON c.shard = $1 AND c.vector_store_id = $2 AND c.file_id = r.file_id AND c.ordinal = r.ordinal
    JOIN vector_store_files v ON v.vector_store_id = $2 AND v.file_id = r.file_id
    JOIN files f ON f.id = r.file_id
    WHERE r.score >= $8 ORDER BY r.score DESC, r.file_id, r.ordinal LIMIT $9
"""


@dataclass(frozen=True, slots=True)
class SearchWeights:
    """How much meaning (vectors) and words (full text) count; words 0 leaves the vectors alone."""

    embedding: float = 1.0
    text: float = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found; `score` in 0..1: rank fusion, or cosine similarity where words do not count."""

    file_id: UUID
    filename: str
    attributes: dict[str, str | float | bool]
    ordinal: int
    content: str
    score: float


@dataclass(frozen=True, slots=True)
class SearchTarget:
    """The store to search, and what its shard holds."""

    vector_store_id: UUID
    shard: int
    dimensions: int


async def search_store(
    conn: Connection,
    target: SearchTarget,
    *,
    vector: NDArray[np.floating[Any]],
    query: str,
    weights: SearchWeights,
    filters: Mapping[str, object] | None,
    limit: int,
    least_score: float,
) -> Sequence[Hit]:
    """The best `limit` chunks for `vector` (dimensions,) and the words of `query`, best first.

    Raises:
        BadRequest: `filters` is not valid.
        Unprocessable: `vector` as in `halved`.
    """
    sql = FilterSql(first_parameter=11)
    condition = sql.condition(filters) if filters else "true"
    rows = await conn.fetch(
        _SEARCH.format(dimensions=target.dimensions, condition=condition),
        target.shard,
        target.vector_store_id,
        HalfVector(halved(vector)).to_text(),
        query,
        max(_LEAST_CANDIDATES, _CANDIDATES_PER_RESULT * limit),
        weights.embedding,
        weights.text,
        least_score,
        limit,
        weights.text > 0,
        *sql.parameters,
    )
    return [Hit(**dict(row)) for row in rows]
