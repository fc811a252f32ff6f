"""Shards: partitions of `chunks` that hold one number of dimensions each.

Small stores share a shard without an HNSW index and are searched exactly through the primary key's B-tree
(recall 1); measured in VECTORS.md of the founders: an HNSW in the write path costs 62 to 80 times a COPY.
"""

from app.db import Connection
from app.errors import BadRequest
from app.schema import SHARD_TABLE_PREFIX

_LOCK_KEY = 0x5348415244  # "SHARD"
_MOST_SHARDS = 64
"""Partitions cost everybody's planning and locks, and any user may ask for dimensions that nobody else uses."""
_MOST_PLAIN_DIMENSIONS = 3500
"""A halfvec of up to so many dimensions fits into an 8 KB page beside the rest of its row."""


async def ensure_shard(conn: Connection, dimensions: int) -> int:
    """The shard for vectors of this many dimensions, made on first use.

    Rival: another process that makes the same shard; an advisory lock lets one go first. Readers and writers of
    `chunks` go on: ATTACH PARTITION locks out other changes of tables only, where CREATE … PARTITION OF waits for
    every transaction that has touched a chunk, and whoever comes later waits behind it.

    Raises:
        BadRequest: there are as many shards as there may be.
    """
    shard = await _find(conn, dimensions)
    if shard is not None:
        return shard
    await conn.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_KEY)
    shard = await _find(conn, dimensions)
    if shard is not None:
        return shard
    if await conn.fetchval("SELECT count(*) FROM shards") >= _MOST_SHARDS:
        raise BadRequest(
            f"This server holds vectors of {_MOST_SHARDS} different dimensions already, none of them {dimensions}; "
            "choose one that is in use.",
            param="embedding.dimensions",
            code="too_many_dimensions",
        )
    made: int = await conn.fetchval("INSERT INTO shards (dimensions) VALUES ($1) RETURNING id", dimensions)
    table = f"{SHARD_TABLE_PREFIX}{made}"
    storage = "PLAIN" if dimensions <= _MOST_PLAIN_DIMENSIONS else "EXTERNAL"
    await conn.execute(
        f"""
        CREATE TABLE {table} (
            LIKE chunks INCLUDING ALL,
            CONSTRAINT ck_{table}_dimensions CHECK (vector_dims(embedding) = {dimensions})
        );
        ALTER TABLE {table} ALTER embedding SET STORAGE {storage}, ALTER content SET STORAGE EXTERNAL,
            ALTER words SET STORAGE EXTERNAL;
        ALTER TABLE chunks ATTACH PARTITION {table} FOR VALUES IN ({made});
        """
    )
    return made


async def _find(conn: Connection, dimensions: int) -> int | None:
    shard: int | None = await conn.fetchval("SELECT id FROM shards WHERE dimensions = $1", dimensions)
    return shard
