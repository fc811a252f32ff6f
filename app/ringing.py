"""Ringing for files that wait: of each user the next few, one more for each that is begun."""

from collections.abc import Sequence
from uuid import UUID

import structlog

from app.db import connection, transaction
from app.errors import Transient
from app.records.hints import mark_unhinted, take_unhinted
from app.records.ingestions import Hint
from app.resources import Resources

logger = structlog.stdlib.get_logger(__name__)


async def ring(resources: Resources, hints: Sequence[Hint]) -> bool:
    """Tell the queue of committed work that is marked as hinted; False if it did not hear.

    It is marked so then, and the sweep rings again: nobody is refused for the queue's sake, nor if Postgres does
    not take the mark. Where there is no queue the marks count for nothing.
    """
    doorbell = resources.doorbell
    if await doorbell.enqueue_file_processing_jobs(hints):
        return True
    if doorbell.is_enabled:
        try:
            async with transaction(resources.pool) as conn:
                await mark_unhinted(conn, hints)
        except Transient as exc:
            logger.warning("unheard hints not marked; the sweep finds them later", error=str(exc))
    return False


async def ring_for_next(resources: Resources, user_id: UUID) -> None:
    """Ring for the user's next file, now that one has been begun; without a queue, nobody needs it."""
    if resources.doorbell.seems_away:
        return
    async with connection(resources.pool) as conn:
        hints = await take_unhinted(conn, [user_id], most_a_user=resources.settings.hints_a_user)
    await ring(resources, hints)
