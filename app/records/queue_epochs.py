"""Which memory Redis has: an epoch kept on both sides tells when it has lost it, and every hint with it."""

from uuid import UUID

from app.db import Connection


async def note_epoch(conn: Connection, epoch: UUID) -> bool:
    """Note the epoch that Redis names; whether it is another one than before, so that hints until now are lost."""
    changed = await conn.fetchval(
        """
        INSERT INTO queue_epochs (epoch) VALUES ($1)
        ON CONFLICT (is_only_row) DO UPDATE SET epoch = excluded.epoch, since = now()
        WHERE queue_epochs.epoch <> excluded.epoch
        RETURNING true
        """,
        epoch,
    )
    return bool(changed)
