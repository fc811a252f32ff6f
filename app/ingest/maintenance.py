"""The sweep repairs what crashes leave behind; the drain takes work straight from Postgres without a queue."""

import math
import random

import anyio
import structlog
from anyio.abc import TaskGroup

from app.db import Connection, connection, transaction
from app.errors import Transient
from app.ingest.cleanup import clean_up
from app.ingest.process import Processor
from app.ingest.stalled import StalledWrites
from app.records.accepted_requests import forget_old_requests
from app.records.embedded_texts import forget_old_embedded
from app.records.expired_leases import take_back_expired
from app.records.hints import note_withdrawn, overtaken_hints, take_unhinted
from app.records.ingestions import Claim
from app.records.queue_epochs import note_epoch
from app.records.turns import NOBODY, users_waiting
from app.resources import Resources
from app.ringing import ring

_LEADER_LOCK = 0x534C55494345  # "SLUICE"
_MOST_CRASHES = 3
_HINTS_A_CALL = 5000
_USERS_A_CALL = 300
_SILENT_SWEEPS = 6
"""A due row is hinted again after so many sweeps without being claimed, times the queue's length in 5,000: in a
long queue that is no sign of a lost hint, and a million rows would be written anew every half minute."""
_API_CONCURRENCY = 2
_DRAIN_POLL_SECONDS = 0.5
_CLEANUP_SECONDS = 60.0
_BLOBS_SECONDS = 6 * 3600.0

logger = structlog.stdlib.get_logger(__name__)


async def run_maintenance(resources: Resources, *, name: str) -> None:
    """Sweep, and drain while there is no queue, in an API process; until cancelled."""
    processor = Processor(resources, name=name)
    async with processor.keeping_leases():
        concurrency = min(_API_CONCURRENCY, resources.settings.worker_concurrency)
        await maintain(processor, concurrency=concurrency, stop=anyio.Event())


async def maintain(processor: Processor, *, concurrency: int, stop: anyio.Event) -> None:
    """Sweep and drain, at most `concurrency` files at once, until `stop`; then finish what is in hand."""
    limiter = anyio.CapacityLimiter(concurrency)
    settings = processor.resources.settings
    interval = settings.sweep_interval_seconds
    next_sweep = -math.inf
    # leases may have ended because no beat got through: who lives is to beat before anybody judges. Who has just
    # started cannot know whether Postgres has just come back
    mercy_until = anyio.current_time() + settings.lease_seconds
    writes = StalledWrites(patience_seconds=settings.lease_seconds / 2)
    async with anyio.create_task_group() as group:
        group.start_soon(_clean_up_until, processor.resources, stop)
        while not stop.is_set():
            has_queue, drained = False, 0
            try:
                has_queue = await processor.resources.doorbell.is_job_queue_available()
                if anyio.current_time() >= next_sweep:
                    next_sweep = anyio.current_time() + interval
                    await writes.end(processor.resources.pool)
                    takes_back = anyio.current_time() >= mercy_until
                    has_queue = await sweep(
                        processor.resources, has_queue=has_queue, takes_back=takes_back, stop=stop
                    )
                if not has_queue and not stop.is_set():
                    drained = await _drain(processor, group, limiter)
            except Transient as exc:
                mercy_until = anyio.current_time() + settings.lease_seconds
                logger.warning("sweep skipped", error=str(exc))
            except Exception:  # the background task's boundary: a bug in it must not end the work of others
                logger.exception("sweep failed")
            if not drained:
                with anyio.move_on_after(interval if has_queue else min(interval, _DRAIN_POLL_SECONDS)):
                    await stop.wait()


async def _clean_up_until(resources: Resources, stop: anyio.Event) -> None:
    """Clean up every minute, one run after another; a run that is cut off goes on in the next process."""
    async with anyio.create_task_group() as group:
        group.start_soon(_clean_up_forever, resources)
        await stop.wait()
        group.cancel_scope.cancel()


async def _clean_up_forever(resources: Resources) -> None:
    next_look_at_blobs = anyio.current_time() + _BLOBS_SECONDS * random.random()  # noqa: S311 - spread
    while True:
        with_blobs = anyio.current_time() >= next_look_at_blobs
        next_look_at_blobs += _BLOBS_SECONDS * with_blobs
        await clean_up(resources, with_blobs=with_blobs)
        await anyio.sleep(_CLEANUP_SECONDS)


async def sweep(
    resources: Resources, *, has_queue: bool, takes_back: bool = True, stop: anyio.Event | None = None
) -> bool:
    """Take back expired leases, ring again for due work that nobody was told of, withdraw jobs without a purpose.

    One process at a time, by an advisory lock; the others return at once. Whether the queue still counts: one
    that does not take our hints is none. Without `takes_back`, leases are left alone; after `stop`, the rest
    is left to others.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    stop = stop or anyio.Event()
    async with transaction(resources.pool) as conn:
        if not await _is_leader(conn):
            return has_queue
        apart = resources.settings.lease_seconds
        taken_back = (
            await take_back_expired(conn, most_crashes=_MOST_CRASHES, apart_seconds=apart) if takes_back else 0
        )
        epoch = resources.doorbell.epoch
        if has_queue and epoch is not None and await note_epoch(conn, epoch):
            logger.warning("Redis is new, or has lost its memory: it is told of all waiting files again")
    await _forget_old(resources)
    if taken_back:
        logger.warning("leases taken back", ingestions=taken_back)
    if not resources.doorbell.is_enabled:
        await _withdraw(resources, stop)
        return False
    return has_queue and await _ring(resources, stop) and await _withdraw(resources, stop)


async def _forget_old(resources: Resources) -> None:
    """In a transaction of its own: the rows that are taken back are not to be locked for as long as it takes."""
    async with transaction(resources.pool) as conn:
        if await _is_leader(conn):
            await forget_old_embedded(conn)
            await forget_old_requests(conn)


async def _ring(resources: Resources, stop: anyio.Event) -> bool:
    """Ring for what is next of each user and unheard of; False if the queue does not take it."""
    settings, after = resources.settings, NOBODY
    while not stop.is_set() and await resources.doorbell.is_job_queue_available():
        length = max(1.0, resources.doorbell.waiting / _HINTS_A_CALL)
        silent_seconds = _SILENT_SWEEPS * settings.sweep_interval_seconds * length
        async with transaction(resources.pool) as conn:
            if not await _is_leader(conn):
                return True
            user_ids = await users_waiting(conn, after=after, limit=_USERS_A_CALL)
            hints = await take_unhinted(
                conn, user_ids, most_a_user=settings.hints_a_user, silent_seconds=silent_seconds
            )
        if not await ring(resources, hints):
            return False
        if len(user_ids) < _USERS_A_CALL:
            return True
        after = user_ids[-1]
    return stop.is_set()


async def _withdraw(resources: Resources, stop: anyio.Event) -> bool:
    """Take jobs out of the queue whose ingestions were settled without them; False if the queue does not answer."""
    while not stop.is_set():
        async with connection(resources.pool) as conn:
            overtaken = await overtaken_hints(conn, limit=_HINTS_A_CALL)
        if not await resources.doorbell.withdraw_file_processing_jobs(overtaken):
            return False
        async with connection(resources.pool) as conn:
            noted = await note_withdrawn(conn, overtaken)
        if len(overtaken) < _HINTS_A_CALL or not noted:  # else the same locked rows would be found over and over
            break
    return True


async def _is_leader(conn: Connection) -> bool:
    return bool(await conn.fetchval("SELECT pg_try_advisory_xact_lock($1)", _LEADER_LOCK))


async def _drain(processor: Processor, group: TaskGroup, limiter: anyio.CapacityLimiter) -> int:
    """Claim as many due files as there are free places and start them; how many."""
    free = int(limiter.available_tokens)
    if free < 1:
        return 0
    with anyio.CancelScope(shield=True):  # claimed is claimed: whoever is cancelled then gives it back in `run`
        claims = await processor.claim_due(free)
    for held in claims:
        borrower = object()
        limiter.acquire_on_behalf_of_nowait(borrower)
        group.start_soon(_run_and_release, processor, held, limiter, borrower)
    return len(claims)


async def _run_and_release(
    processor: Processor, held: Claim, limiter: anyio.CapacityLimiter, borrower: object
) -> None:
    try:
        await processor.run(held)
    except Exception:  # one file's boundary: the lease ends, and the sweep takes the row back
        logger.exception("drained file failed", ingestion=held.ingestion_id.hex)
    finally:
        limiter.release_on_behalf_of(borrower)
