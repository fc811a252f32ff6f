"""Running one ingestion: claim, run, settle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import anyio
import structlog

from app.db import connection, transaction
from app.errors import Transient, Unprocessable
from app.ingest.commit import save_docs_to_multiple_collections
from app.ingest.leases import LeaseKeeper
from app.ingest.outcomes import Completed, Failed, Outcome, RetryLater, Superseded, TookTooLong, outcome_of
from app.ingest.prepare import prepared
from app.records.ingestions import Claim, Hint, claim, fail, give_back, note_progress, retry_later
from app.records.turns import NOBODY, claim_due, put_off_others, turn_after
from app.resources import Resources

_WRITERS = 2
"""More connections writing at once only add latency (VECTORS.md D)."""
_GIVE_BACK_SECONDS = 3.0
_SETTLE_AGAIN_SECONDS = 0.5

logger = structlog.stdlib.get_logger(__name__)


@asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as exc:
        if limit.expired():
            raise TookTooLong from exc
        raise


class Processor:
    """Runs ingestions in this process, whoever rang: a job from the queue or the drain."""

    def __init__(self, resources: Resources, *, name: str) -> None:
        self.resources = resources
        self.name = name
        self._last_served = NOBODY  # the user to whom the drain came last
        self._leases = LeaseKeeper(
            resources.settings.database_url, lease_seconds=resources.settings.lease_seconds, name=name
        )
        self._writers = asyncio.Semaphore(_WRITERS)

    async def process(self, ingestion_id: UUID) -> Outcome:
        """Claim an ingestion and run it to its outcome."""
        claiming = asyncio.ensure_future(self._claim(ingestion_id))
        try:
            held = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with anyio.CancelScope(
                shield=True
            ):  # a claim that nobody works on would cost a lease and a crash point
                held = await claiming
                if held is not None:
                    await self._give_back(held)
            raise
        return Superseded() if held is None else await self.run(held)

    async def claim_due(self, limit: int) -> list[Claim]:
        """Claim up to `limit` due files without a queue; users take turns."""
        lease_seconds = self.resources.settings.lease_seconds
        with self._leases.claiming():
            async with transaction(self.resources.pool) as conn:
                claims = await claim_due(
                    conn, limit=limit, lease_seconds=lease_seconds, worker=self.name, after=self._last_served
                )
        self._last_served = turn_after(claims, self._last_served)
        return claims

    async def run(self, held: Claim) -> Outcome:
        """Run a claimed ingestion and settle it; a cancelled run (shutdown) gives its claim back."""
        log = logger.bind(ingestion=held.ingestion_id.hex, fence=held.fence, filename=held.filename)
        outcome: Outcome = Superseded()  # unless the attempt comes to its end before its lease
        hint = None
        try:
            with self._leases.hold(held):
                outcome, hint = await self._settle(held, await self._attempt(held))
        except asyncio.CancelledError:
            await self._give_back(held)  # without effect on what has been settled
            raise
        if hint is not None:  # the lease is over: no beat may interrupt this
            await self.resources.doorbell.enqueue_file_processing_jobs([hint])
        log.info(
            "ingestion attempt ended", outcome=type(outcome).__name__, reason=getattr(outcome, "message", None)
        )
        return outcome

    @asynccontextmanager
    async def keeping_leases(self) -> AsyncIterator[None]:
        """Beat for all held leases while the block runs."""
        async with self._leases.keeping():
            yield

    async def _claim(self, ingestion_id: UUID) -> Claim | None:
        lease_seconds = self.resources.settings.lease_seconds
        with self._leases.claiming():
            async with connection(self.resources.pool) as conn:
                return await claim(conn, ingestion_id, lease_seconds=lease_seconds, worker=self.name)

    async def _attempt(self, held: Claim) -> Outcome:
        settings = self.resources.settings
        try:
            async with _time_limit(settings.job_timeout):
                return await self._prepare_and_save(held)
        except Exception as exc:  # the job boundary: whatever it was, the status must say so
            if not isinstance(exc, Transient | Unprocessable):
                logger.exception("attempt failed", ingestion=held.ingestion_id.hex)
            return outcome_of(
                exc,
                attempts=held.attempts,
                most_retries=settings.job_max_retries,
                retry_delay_seconds=settings.job_retry_delay,
            )

    async def _prepare_and_save(self, held: Claim) -> Completed | Superseded:
        async with prepared(self.resources, held) as file:
            chunks = file.chunk_count
            async with connection(self.resources.pool) as conn:
                await note_progress(conn, held, stage="writing", chunks_total=chunks, chunks_embedded=chunks)
            async with self._writers, transaction(self.resources.pool) as conn:
                stores = await save_docs_to_multiple_collections(conn, held, file)
        return Superseded() if stores is None else Completed(chunks, stores)

    async def _settle(self, held: Claim, outcome: Outcome) -> tuple[Outcome, Hint | None]:
        """Write the outcome to the row, as soon as Postgres lets us; the transaction has written `Completed`.

        The lease is held meanwhile; when it is lost, so is the outcome, and somebody else's counts. Returns the
        outcome that counts, and what the queue is to be told.
        """
        if isinstance(outcome, Completed | Superseded):
            return outcome, None
        while True:
            try:
                return await self._write_outcome(held, outcome)
            except Transient as exc:
                logger.warning("outcome not written yet", ingestion=held.ingestion_id.hex, error=str(exc))
                await anyio.sleep(_SETTLE_AGAIN_SECONDS)

    async def _write_outcome(self, held: Claim, outcome: Failed | RetryLater) -> tuple[Outcome, Hint | None]:
        async with connection(self.resources.pool) as conn:
            if isinstance(outcome, Failed):
                counts = await fail(conn, held, code=outcome.code, message=outcome.message)
                return outcome if counts else Superseded(), None
            if outcome.pauses_key:  # first: it may be repeated
                await put_off_others(conn, held, delay_seconds=outcome.delay_seconds, message=outcome.message)
            hint = await retry_later(
                conn,
                held,
                delay_seconds=outcome.delay_seconds,
                message=outcome.message,
                costs_attempt=outcome.costs_attempt,
            )
        if hint is None:
            return Superseded(), None
        return outcome, None if outcome.waits_in_line else hint

    async def _give_back(self, held: Claim) -> None:
        with anyio.move_on_after(_GIVE_BACK_SECONDS, shield=True):
            try:
                async with connection(self.resources.pool) as conn:
                    await give_back(conn, held)
            except Transient as exc:
                # the lease ends by itself, then the sweep takes the row back
                logger.warning("claim not given back", ingestion=held.ingestion_id.hex, error=str(exc))
