"""What nobody needs any more: expired files and vector stores, and blobs that no row knows of."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Protocol
from uuid import UUID

import structlog

from app.db import Connection, connection, transaction
from app.errors import Transient
from app.records.files import (
    blob_key,
    delete_file,
    existing_file_ids,
    expired_files,
    file_id_of_blob,
    lock_expired_file,
)
from app.records.store_files import detach_all, detach_everywhere
from app.records.vector_stores import delete_store, expired_stores, lock_expired_store
from app.resources import Resources
from app.vector.chunks import delete_chunks, delete_store_chunks

_MOST_AT_ONCE = 100
_ORPHANED_AFTER = timedelta(days=1)
"""An upload that takes longer than that to get its row would lose its bytes."""
_MOST_UNKNOWN = 100_000

logger = structlog.stdlib.get_logger(__name__)


class _Expired(Protocol):
    async def __call__(self, conn: Connection, *, skip: Sequence[UUID], limit: int) -> list[UUID]: ...


async def remove_expired_files(resources: Resources) -> None:
    """Delete the files whose time has come, as their owners would.

    Raises:
        Transient: Postgres is away.
    """

    async def remove(file_id: UUID) -> bool:
        async with transaction(resources.pool) as conn:
            if not await lock_expired_file(conn, file_id):
                return False
            await delete_chunks(conn, await detach_everywhere(conn, file_id))
            await delete_file(conn, file_id)
        await resources.blobs.delete(blob_key(file_id))
        return True

    await _remove_each(resources, "files", expired_files, remove)


async def remove_expired_stores(resources: Resources) -> None:
    """Delete the vector stores whose time has come, as their owners would.

    Raises:
        Transient: Postgres is away.
    """

    async def remove(store_id: UUID) -> bool:
        async with transaction(resources.pool) as conn:
            space = await lock_expired_store(conn, store_id)
            if space is None:
                return False
            await detach_all(conn, store_id)
            await delete_store_chunks(conn, shard=space.shard, store_id=store_id)
            await delete_store(conn, store_id)
        return True

    await _remove_each(resources, "vector stores", expired_stores, remove)


async def _remove_each(
    resources: Resources, kind: str, expired: _Expired, remove: Callable[[UUID], Awaitable[bool]]
) -> None:
    """Remove what has expired, each in a transaction of its own; one that cannot go now keeps no other one."""
    removed, left = 0, list[UUID]()
    while True:
        async with connection(resources.pool) as conn:
            found = await expired(conn, skip=left, limit=_MOST_AT_ONCE)
        for one in found:
            if await _is_removed(one, remove):
                removed += 1
            else:
                left.append(one)
        if len(found) < _MOST_AT_ONCE:
            break
    if removed or left:
        logger.info("expired", of=kind, removed=removed, left=len(left))


async def _is_removed(one: UUID, remove: Callable[[UUID], Awaitable[bool]]) -> bool:
    try:
        return await remove(one)
    except Transient as exc:
        logger.warning("not removed", id=one.hex, error=str(exc))
    except Exception:  # its own boundary: what is wrong with one must not keep the others
        logger.exception("not removed", id=one.hex)
    return False


async def remove_orphaned_blobs(resources: Resources) -> int:
    """Delete blobs older than a day that no row knows of (a crash came before their row), whole or not; how many.

    If they are the most, that is no crash but a mistake, and nothing is touched.

    Raises:
        Transient: Postgres or the blob store is away.
    """
    async with connection(resources.pool) as conn:  # by its clock, not by this machine's
        until = await conn.fetchval("SELECT now() - $1::interval", _ORPHANED_AFTER)
    removed = await resources.blobs.delete_unfinished(until, is_ours=lambda key: file_id_of_blob(key) is not None)
    known, unknown = 0, list[UUID]()
    async for keys in resources.blobs.older_than(until):
        file_ids = [file_id for key in keys if (file_id := file_id_of_blob(key)) is not None]
        async with connection(resources.pool) as conn:
            existing = await existing_file_ids(conn, file_ids)
        known += len(existing)
        unknown += [file_id for file_id in file_ids if file_id not in existing]
        if len(unknown) >= _MOST_UNKNOWN:  # the others the next time
            break
    if len(unknown) > known:
        logger.error(
            "most blobs have no file here: does another database use this STORAGE_URL?",
            without=len(unknown),
            of=known + len(unknown),
        )
        return removed
    for file_id in unknown:
        await resources.blobs.delete(blob_key(file_id))
    removed += len(unknown)
    if removed:
        logger.warning("blobs without a file removed", count=removed)
    return removed


async def clean_up(resources: Resources, *, with_blobs: bool) -> None:
    """All of it; what cannot be done now is done the next time, and keeps nothing else from being done."""
    tasks = [remove_expired_files, remove_expired_stores, *([remove_orphaned_blobs] if with_blobs else [])]
    for task in tasks:
        try:
            await task(resources)
        except Transient as exc:
            logger.warning("clean-up skipped", task=task.__name__, error=str(exc))
        except Exception:  # the background task's boundary: a bug in it must not end the work of others
            logger.exception("clean-up failed", task=task.__name__)
