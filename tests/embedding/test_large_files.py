"""Places for large files: one a user, a few at once, given back however the block ends."""

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

import pytest

from app.embedding.large_files import LargeFiles, NoPlaceYet
from app.ids import new_id


async def test_four_users_have_a_place_each_and_the_fifth_waits() -> None:
    files, users = LargeFiles(), [new_id() for _ in range(5)]
    async with AsyncExitStack() as stack:
        for user in users[:4]:
            await stack.enter_async_context(files.place(user, patience_seconds=10))
        with pytest.raises(NoPlaceYet):
            await stack.enter_async_context(files.place(users[4], patience_seconds=0.01))
    async with files.place(users[4], patience_seconds=10):
        pass


async def test_a_place_is_given_back_by_whoever_fails_waits_in_vain_or_is_cancelled() -> None:
    files, user = LargeFiles(), new_id()
    with pytest.raises(ValueError, match="broken"):
        async with files.place(user, patience_seconds=10):
            raise ValueError("broken")
    async with files.place(user, patience_seconds=10):
        waiting = asyncio.ensure_future(_take(files, user))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        with pytest.raises(NoPlaceYet):
            await files.place(user, patience_seconds=0.01).__aenter__()
    await _take(files, user)


async def _take(files: LargeFiles, user: UUID) -> None:
    async with files.place(user, patience_seconds=10):
        pass
