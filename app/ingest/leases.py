"""Leases: one statement extends all that this process holds; work whose lease is lost is cancelled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio
import structlog

from app.db import Pool, connection
from app.errors import Transient
from app.records.ingestions import Claim, extend_leases

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class Lease:
    """A held claim; `is_lost` once somebody else may work on it."""

    held: Claim
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_lost: bool = False


class LeaseKeeper:
    """The leases that this process holds."""

    def __init__(self, pool: Pool, *, lease_seconds: float) -> None:
        self._pool = pool
        self._lease_seconds = lease_seconds
        self._leases: dict[UUID, Lease] = {}

    @contextmanager
    def hold(self, held: Claim) -> Iterator[Lease]:
        """Keep a claim's lease alive while the block runs; the block is cancelled if the lease is lost."""
        lease = Lease(held)
        self._leases[held.ingestion_id] = lease
        try:
            with lease.scope:
                yield lease
        finally:
            if self._leases.get(held.ingestion_id) is lease:
                del self._leases[held.ingestion_id]

    async def beat_forever(self) -> None:
        """Extend all leases three times as often as they would end, until cancelled."""
        while True:
            await anyio.sleep(self._lease_seconds / 3)
            try:
                await self.beat()
            except Transient as exc:
                # the leases may end meanwhile; the fence then keeps late writes out
                logger.warning("leases not extended", error=str(exc))

    async def beat(self) -> None:
        """Extend all leases now, and cancel the work whose claim is gone.

        Raises:
            DatabaseUnavailable: Postgres is away; nothing is cancelled on a guess.
        """
        leases = list(self._leases.values())
        if not leases:
            return
        async with connection(self._pool) as conn:
            ours = await extend_leases(
                conn,
                [(lease.held.ingestion_id, lease.held.fence) for lease in leases],
                lease_seconds=self._lease_seconds,
            )
        for lease in leases:
            if lease.held.ingestion_id not in ours:
                lease.is_lost = True
                lease.scope.cancel()
