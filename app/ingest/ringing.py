"""Ringing for files that wait: of each user the next few, one more for each that is begun."""

from collections.abc import Sequence
from uuid import UUID

from app.db import connection, transaction
from app.records.hints import mark_unhinted, take_unhinted
from app.records.ingestions import Hint
from app.resources import Resources


async def ring_for(resources: Resources, hints: Sequence[Hint]) -> bool:
    """Ring for what is marked as hinted; False if the queue did not hear it, and then it is marked so.

    Where there is no queue the marks count for nothing.

    Raises:
        DatabaseUnavailable: it is not marked; the sweep finds it later.
    """
    doorbell = resources.doorbell
    if await doorbell.enqueue_file_processing_jobs(hints):
        return True
    if doorbell.is_enabled:
        async with transaction(resources.pool) as conn:
            await mark_unhinted(conn, hints)
    return False


async def ring_for_next(resources: Resources, user_id: UUID) -> None:
    """Ring for the user's next file, now that one has been begun; without a queue, nobody needs it."""
    if resources.doorbell.seems_away:
        return
    async with connection(resources.pool) as conn:
        hints = await take_unhinted(conn, [user_id], most_a_user=resources.settings.hints_a_user)
    await ring_for(resources, hints)
