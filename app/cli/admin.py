"""Users, groups, API keys and embedding keys, worked on directly in the database."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import typer
from pydantic import SecretStr

from app.access.embedding_keys import add_embedding_key, list_embedding_keys, revoke_embedding_key
from app.access.people import (
    add_member,
    create_group,
    create_user,
    find_group,
    find_user,
    list_groups,
    list_users,
    remove_member,
)
from app.access.tokens import create_token, list_tokens, revoke_token
from app.cli.place import DEFAULT_FOLDER, command_settings
from app.db import Connection, open_pool, transaction
from app.ids import from_wire, to_wire
from app.settings import Settings

keys = typer.Typer(help="API keys: who may call the API.", no_args_is_help=True)
embedding_keys = typer.Typer(help="Embedding keys: who pays for embeddings.", no_args_is_help=True)
users = typer.Typer(help="Users.", no_args_is_help=True)
groups = typer.Typer(help="Groups: users who share vector stores.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--data", help="Where 'sluice up' keeps its data.")]
UserName = Annotated[str, typer.Option("--user", help="The user's name.")]
T = TypeVar("T")


def _in_database(folder: Path, act: Callable[[Connection, Settings], Awaitable[T]]) -> T:
    """Run `act` in one transaction on the database that the settings name."""
    settings = command_settings(folder)

    async def run() -> T:
        pool = await open_pool(settings.database_url, max_size=2, application_name="sluice-cli")
        try:
            async with transaction(pool) as conn:
                return await act(conn, settings)
        finally:
            await pool.close()

    return anyio.run(run)


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Aligned columns, never cut: ids are there to be copied, and scripts read them."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys.command("create")
def create_key(
    *,
    user: UserName,
    name: Annotated[str, typer.Option(help="What it is for.")] = "cli",
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Make an API key for a user; it is shown once."""

    async def act(conn: Connection, _settings: Settings) -> str:
        return (await create_token(conn, user_id=(await find_user(conn, user)).id, name=name)).text

    typer.echo(_in_database(folder, act))


@keys.command("list")
def list_keys(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """List the API keys; only their last four characters are known."""

    async def act(conn: Connection, _settings: Settings) -> list[tuple[str, ...]]:
        return [
            (
                to_wire("token", token.id),
                token.user_name,
                token.name,
                f"…{token.hint}",
                f"{token.created_at:%Y-%m-%d %H:%M}",
                "revoked" if token.revoked_at else "active",
            )
            for token in await list_tokens(conn)
        ]

    _print_table(("id", "user", "name", "key", "created", "state"), _in_database(folder, act))


@keys.command("revoke")
def revoke_key(
    token_id: Annotated[str, typer.Argument(help="The id that 'keys list' shows.")],
    *,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Make an API key useless from the next request on."""

    async def act(conn: Connection, _settings: Settings) -> None:
        await revoke_token(conn, from_wire("token", token_id))

    _in_database(folder, act)
    typer.echo(f"revoked {token_id}")


@embedding_keys.command("add")
def add_key(
    *,
    user: UserName,
    name: Annotated[str, typer.Option(help="What it is called.")] = "default",
    base_url: Annotated[str | None, typer.Option(help="Base URL of the API it is for.")] = None,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Seal and keep a user's embedding key, read from standard input (never from the command line)."""
    secret = typer.prompt("embedding key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not secret.strip():
        raise typer.BadParameter('no key came from standard input: printf %s "$KEY" | sluice embedding-keys add …')

    async def act(conn: Connection, settings: Settings) -> str:
        key = await add_embedding_key(
            conn,
            owner_id=(await find_user(conn, user)).id,
            name=name,
            base_url=base_url or settings.rag_openai_api_base_url,
            secret=SecretStr(secret.strip()),
            kek=settings.key_encryption_key,
        )
        return to_wire("ekey", key.id)

    typer.echo(_in_database(folder, act))


@embedding_keys.command("list")
def list_user_embedding_keys(*, user: UserName, folder: Folder = DEFAULT_FOLDER) -> None:
    """List a user's embedding keys; the keys themselves are never shown."""

    async def act(conn: Connection, _settings: Settings) -> list[tuple[str, ...]]:
        owner = await find_user(conn, user)
        return [
            (to_wire("ekey", key.id), key.name, key.base_url, "revoked" if key.revoked_at else "active")
            for key in await list_embedding_keys(conn, owner.id)
        ]

    _print_table(("id", "name", "base URL", "state"), _in_database(folder, act))


@embedding_keys.command("revoke")
def revoke_user_embedding_key(
    key_id: Annotated[str, typer.Argument(help="The id that 'embedding-keys list' shows.")],
    *,
    user: UserName,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Take an embedding key out of use and wipe it."""

    async def act(conn: Connection, _settings: Settings) -> None:
        owner = await find_user(conn, user)
        await revoke_embedding_key(conn, owner_id=owner.id, key_id=from_wire("ekey", key_id))

    _in_database(folder, act)
    typer.echo(f"revoked {key_id}")


@users.command("add")
def add_user(
    name: Annotated[str, typer.Argument(help="The user's name.")], *, folder: Folder = DEFAULT_FOLDER
) -> None:
    """Make a user and an API key for them, which is shown once."""

    async def act(conn: Connection, _settings: Settings) -> str:
        user = await create_user(conn, name)
        return (await create_token(conn, user_id=user.id, name="first")).text

    typer.echo(_in_database(folder, act))


@users.command("list")
def show_users(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """List the users."""

    async def act(conn: Connection, _settings: Settings) -> list[tuple[str, ...]]:
        return [
            (to_wire("user", user.id), user.name, f"{user.created_at:%Y-%m-%d %H:%M}")
            for user in await list_users(conn)
        ]

    _print_table(("id", "name", "created"), _in_database(folder, act))


@groups.command("add")
def add_group(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    *,
    creator: Annotated[str, typer.Option(help="The user who makes it; their embedding key pays for its members.")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Make a group; its creator is its first member."""

    async def act(conn: Connection, _settings: Settings) -> None:
        await create_group(conn, name, creator_id=(await find_user(conn, creator)).id)

    _in_database(folder, act)
    typer.echo(f"made group {name}")


@groups.command("list")
def show_groups(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """List the groups and their members."""

    async def act(conn: Connection, _settings: Settings) -> list[tuple[str, ...]]:
        return [(group.name, ", ".join(group.member_names)) for group in await list_groups(conn)]

    _print_table(("name", "members"), _in_database(folder, act))


@groups.command("join")
def join_group(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    *,
    user: UserName,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Put a user into a group."""

    async def act(conn: Connection, _settings: Settings) -> None:
        group, member = await find_group(conn, name), await find_user(conn, user)
        await add_member(conn, group_id=group.id, user_id=member.id)

    _in_database(folder, act)
    typer.echo(f"{user} is in {name}")


@groups.command("leave")
def leave_group(
    name: Annotated[str, typer.Argument(help="The group's name.")],
    *,
    user: UserName,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Take a user out of a group."""

    async def act(conn: Connection, _settings: Settings) -> None:
        group, member = await find_group(conn, name), await find_user(conn, user)
        await remove_member(conn, group_id=group.id, user_id=member.id)

    _in_database(folder, act)
    typer.echo(f"{user} is not in {name}")
