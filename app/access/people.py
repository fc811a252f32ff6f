"""Users and groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from app.db import Connection
from app.errors import Conflict, NotFound
from app.ids import new_id


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may call the API."""

    id: UUID
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """Users that share vector stores, and the embedding key of the group's creator."""

    id: UUID
    name: str
    creator_id: UUID
    member_names: tuple[str, ...]


async def create_user(conn: Connection, name: str) -> User:
    """A new user.

    Raises:
        Conflict: the name is taken.
    """
    try:
        row = await conn.fetchrow(
            "INSERT INTO users (id, name) VALUES ($1, $2) RETURNING id, name, created_at", new_id(), name
        )
    except asyncpg.UniqueViolationError as exc:
        raise Conflict(f"A user named '{name}' exists already.") from exc
    return User(**dict(row or {}))


async def find_user(conn: Connection, name: str) -> User:
    """The user of this name.

    Raises:
        NotFound: there is none.
    """
    row = await conn.fetchrow("SELECT id, name, created_at FROM users WHERE name = $1", name)
    if row is None:
        raise NotFound(f"No user is named '{name}'.")
    return User(**dict(row))


async def list_users(conn: Connection) -> Sequence[User]:
    """All users by name."""
    return [User(**dict(row)) for row in await conn.fetch("SELECT id, name, created_at FROM users ORDER BY name")]


async def create_group(conn: Connection, name: str, *, creator_id: UUID) -> Group:
    """A new group whose creator is its first member.

    Raises:
        Conflict: the name is taken.
    """
    group_id = new_id()
    try:
        await conn.execute(
            "INSERT INTO groups (id, name, creator_id) VALUES ($1, $2, $3)", group_id, name, creator_id
        )
    except asyncpg.UniqueViolationError as exc:
        raise Conflict(f"A group named '{name}' exists already.") from exc
    await add_member(conn, group_id=group_id, user_id=creator_id)
    return await find_group(conn, name)


async def find_group(conn: Connection, name: str) -> Group:
    """The group of this name.

    Raises:
        NotFound: there is none.
    """
    for group in await list_groups(conn):
        if group.name == name:
            return group
    raise NotFound(f"No group is named '{name}'.")


async def list_groups(conn: Connection) -> Sequence[Group]:
    """All groups by name, with their members."""
    rows = await conn.fetch(
        """
        SELECT g.id, g.name, g.creator_id,
               coalesce(array_agg(u.name ORDER BY u.name) FILTER (WHERE u.id IS NOT NULL), '{}')
                   AS member_names
        FROM groups g LEFT JOIN group_members m ON m.group_id = g.id LEFT JOIN users u ON u.id = m.user_id
        GROUP BY g.id ORDER BY g.name
        """
    )
    return [Group(r["id"], r["name"], r["creator_id"], tuple(r["member_names"])) for r in rows]


async def add_member(conn: Connection, *, group_id: UUID, user_id: UUID) -> None:
    """Put a user into a group; being in it already is fine."""
    await conn.execute(
        "INSERT INTO group_members (group_id, user_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        group_id,
        user_id,
    )


async def remove_member(conn: Connection, *, group_id: UUID, user_id: UUID) -> None:
    """Take a user out of a group; not being in it is fine."""
    await conn.execute("DELETE FROM group_members WHERE group_id = $1 AND user_id = $2", group_id, user_id)
