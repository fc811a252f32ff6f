"""Who may read or write which vector store: its owner, and the groups it is shared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.access.tokens import Principal
from app.db import Connection
from app.errors import Forbidden, NotFound
from app.ids import to_wire

VISIBLE_STORES = """
    SELECT id FROM vector_stores WHERE owner_id = $1
    UNION
    SELECT g.vector_store_id FROM vector_store_grants g
    JOIN group_members m ON m.group_id = g.group_id WHERE m.user_id = $1
"""
"""SQL for the ids of the stores that user $1 may read."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A vector store shared with a group."""

    group_name: str
    may_write: bool


async def require_stores(conn: Connection, principal: Principal, store_ids: Sequence[UUID], *, write: bool) -> None:
    """Pass if the caller may read (or write) every one of these stores.

    Raises:
        NotFound: one does not exist, or the caller may not even know that it does.
        Forbidden: one is shared with the caller for reading only.
    """
    rows = await conn.fetch(
        """
        SELECT s.id, s.owner_id = $2 OR coalesce(bool_or(g.may_write), false) AS may_write
        FROM vector_stores s
        LEFT JOIN (
            SELECT g.vector_store_id, g.may_write FROM vector_store_grants g
            JOIN group_members m ON m.group_id = g.group_id WHERE m.user_id = $2
        ) g ON g.vector_store_id = s.id
        WHERE s.id = ANY($1) AND (s.owner_id = $2 OR g.vector_store_id IS NOT NULL)
        GROUP BY s.id
        """,
        store_ids,
        principal.user_id,
    )
    may_write = {row["id"]: row["may_write"] for row in rows}
    for store_id in store_ids:
        if store_id not in may_write:
            raise NotFound(f"No vector store found with id '{to_wire('vs', store_id)}'.", code="not_found")
        if write and not may_write[store_id]:
            raise Forbidden(f"Vector store '{to_wire('vs', store_id)}' is shared with you for reading only.")


async def require_store_owner(conn: Connection, principal: Principal, store_id: UUID) -> None:
    """Pass if the caller owns this store.

    Raises:
        NotFound, Forbidden: as `require_stores`; a group member who may write is still not the owner.
    """
    await require_stores(conn, principal, [store_id], write=False)
    owner = await conn.fetchval("SELECT owner_id FROM vector_stores WHERE id = $1", store_id)
    if owner != principal.user_id:
        raise Forbidden("Only the owner of a vector store may do that.")


async def share_store(conn: Connection, *, store_id: UUID, group_name: str, may_write: bool) -> None:
    """Share a store with a group, or change what the group may do.

    Raises:
        NotFound: no such group.
    """
    done = await conn.fetchval(
        """
        INSERT INTO vector_store_grants (vector_store_id, group_id, may_write)
        SELECT $1, id, $3 FROM groups WHERE name = $2
        ON CONFLICT (vector_store_id, group_id) DO UPDATE SET may_write = excluded.may_write
        RETURNING vector_store_id
        """,
        store_id,
        group_name,
        may_write,
    )
    if done is None:
        raise NotFound(f"No group is named '{group_name}'.")


async def unshare_store(conn: Connection, *, store_id: UUID, group_name: str) -> None:
    """Stop sharing a store with a group; not sharing it is fine."""
    await conn.execute(
        """
        DELETE FROM vector_store_grants USING groups
        WHERE vector_store_id = $1 AND group_id = groups.id AND groups.name = $2
        """,
        store_id,
        group_name,
    )


async def list_grants(conn: Connection, store_id: UUID) -> Sequence[Grant]:
    """The groups that a store is shared with."""
    rows = await conn.fetch(
        """
        SELECT groups.name AS group_name, may_write FROM vector_store_grants
        JOIN groups ON groups.id = group_id WHERE vector_store_id = $1 ORDER BY 1
        """,
        store_id,
    )
    return [Grant(**dict(row)) for row in rows]
