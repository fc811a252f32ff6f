"""Leases: one statement extends all that this process holds; work whose lease is lost is cancelled.

The beat has a thread, an event loop and a connection of its own: a busy loop must not lose its leases, nor must a
pool whose connections are all in use. A loop that has stopped for two thirds of a lease, on the other hand, must:
then the beat stops too.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import anyio
import structlog

from app.db import DatabaseUnavailable, NoConnection, Pool, connection, open_pool
from app.errors import Transient
from app.records.expired_leases import give_back_unanswered
from app.records.ingestions import Claim, extend_leases

logger = structlog.stdlib.get_logger(__name__)

_TICKS_A_LEASE = 30
_END_SECONDS = 2.0
_UNDER_WAY_SECONDS = 1.0
"""Until Postgres reckons back from its own clock; so shortly before us, no predecessor of our name was at work."""


@dataclass(slots=True, eq=False)
class Lease:
    """A held claim; `scope`, in which the work goes on, is cancelled once somebody else may work on it."""

    held: Claim
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Doubts:
    """The time in which answers to claims were lost; it grows in one thread and is looked at in another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._span: tuple[float, float] | None = None

    @property
    def span(self) -> tuple[float, float] | None:
        """From when to when, by the monotonic clock; None without any."""
        with self._lock:
            return self._span

    def add(self, began: float) -> None:
        """An answer was lost just now; the claim was sent after `began`."""
        with self._lock:
            first, _ = self._span or (began, began)
            self._span = (min(first, began), time.monotonic())

    def settle(self, span: tuple[float, float]) -> None:
        """That time has been looked at, and no answer has been lost since."""
        with self._lock:
            if self._span == span:
                self._span = None


class LeaseKeeper:
    """The leases that this process holds, extended three times as often as they would end.

    A beat that fails, or finds a row locked, is repeated soon, and one that hears nothing fails after a sixth of
    a lease: a single silent connection must not cost one.
    """

    def __init__(self, database_url: str, *, lease_seconds: float, name: str) -> None:
        self._database_url = database_url
        self._lease_seconds = lease_seconds
        self._dead_loop_seconds = lease_seconds * 2 / 3
        self._soon = lease_seconds / _TICKS_A_LEASE
        self._silence_seconds = max(1.0, lease_seconds / 6)
        self._name = name
        self._leases: set[Lease] = set()
        self._claims: dict[object, float] = {}  # that wait for their answers, and since when
        self._doubts = Doubts()
        self._ticked_at = time.monotonic()
        self._ended = threading.Event()

    @contextmanager
    def hold(self, held: Claim) -> Iterator[Lease]:
        """Keep a claim's lease alive while the block runs; the block is cancelled if the lease is lost."""
        lease = Lease(held)
        self._leases.add(lease)
        try:
            with lease.scope:
                yield lease
        finally:
            self._leases.discard(lease)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """For a claim. If its answer is lost, Postgres may have made it, and nobody works on it: the beat gives it
        back. Otherwise its lease would have to end, and the file would be a crash nearer to being poison.
        """
        claim_, began = object(), time.monotonic()
        self._claims[claim_] = began
        try:
            yield
        except NoConnection:  # so nothing was asked for
            raise
        except DatabaseUnavailable:
            self._doubts.add(began)
            raise
        finally:
            del self._claims[claim_]

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Beat while the block runs."""
        self._loop = asyncio.get_running_loop()
        self._ended.clear()
        self._ticked_at = time.monotonic()
        thread = threading.Thread(target=self._beat_in_thread, name=f"leases of {self._name}", daemon=True)
        thread.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._tick)
                try:
                    yield
                finally:
                    group.cancel_scope.cancel()
        finally:
            self._ended.set()
            with anyio.CancelScope(shield=True):
                await asyncio.to_thread(thread.join, _END_SECONDS)  # longer only while Postgres does not answer

    async def _tick(self) -> None:
        """The loop lives."""
        while True:
            self._ticked_at = time.monotonic()
            await anyio.sleep(self._soon)

    def _beat_in_thread(self) -> None:
        asyncio.run(self._beat_forever())

    async def _beat_forever(self) -> None:
        pool: Pool | None = None
        pause, usual_pause = 0.0, self._lease_seconds / 3
        while not await asyncio.to_thread(self._ended.wait, pause):
            pause = usual_pause
            try:
                # before there is a lease: the first one must not depend on Postgres having a connection left
                pool = pool or await open_pool(
                    self._database_url, max_size=1, application_name=f"sluice-leases-{self._name}"[:63]
                )
                if not self._leases and self._doubts.span is None:
                    continue
                if time.monotonic() - self._ticked_at > self._dead_loop_seconds:
                    logger.error("the event loop does not turn, so its leases are not extended", worker=self._name)
                elif not await self._beat(pool) or self._doubts.span is not None:
                    pause = self._soon
            except Transient as exc:
                # the leases may end meanwhile; the fence then keeps late writes out
                logger.warning("leases not extended", error=str(exc))
                pause = self._soon
            except Exception:  # the thread's boundary: without beats all work would be lost
                logger.exception("leases not extended")
        if pool is not None:
            await self._end(pool)

    async def _end(self, pool: Pool) -> None:
        """A last look, now that no claim waits for its answer; a second one, if this connection broke as well."""
        for _ in range(2):
            if (span := self._doubts.span) is not None:
                with suppress(Transient):
                    await self._settle_doubts(pool, span)
        pool.terminate()

    async def _beat(self, pool: Pool) -> bool:
        """Extend all leases now, and cancel the work whose claim is gone; False if some are locked.

        Raises:
            DatabaseUnavailable: Postgres is away; nothing is cancelled on a guess.
        """
        leases = {(lease.held.ingestion_id, lease.held.fence): lease for lease in list(self._leases)}
        async with connection(pool) as conn:
            ours = await extend_leases(
                conn, list(leases), lease_seconds=self._lease_seconds, timeout_seconds=self._silence_seconds
            )
        for claim, lease in leases.items():
            if claim not in ours:
                self._loop.call_soon_threadsafe(lease.scope.cancel)
        span = self._doubts.span
        if span is not None and self._knows_what_it_holds(span):
            await self._settle_doubts(pool, span)
        return all(ours.values())

    def _knows_what_it_holds(self, span: tuple[float, float]) -> bool:
        """Whether each claim of that time has its answer, and the loop has had its turn to hold it."""
        is_waiting = any(began <= span[1] for began in list(self._claims.values()))
        return not is_waiting and self._ticked_at - span[1] > self._soon

    async def _settle_doubts(self, pool: Pool, span: tuple[float, float]) -> None:
        """Give back what was claimed in our name in that time, and what nobody holds here."""
        now = time.monotonic()
        async with connection(pool) as conn:
            given_back = await give_back_unanswered(
                conn,
                worker=self._name,
                held=[(lease.held.ingestion_id, lease.held.fence) for lease in list(self._leases)],
                from_seconds_ago=now - span[0] + _UNDER_WAY_SECONDS,
                to_seconds_ago=now - span[1],
                timeout_seconds=self._silence_seconds,
            )
        if time.monotonic() - now < _UNDER_WAY_SECONDS:  # else Postgres may have reckoned back from too late
            self._doubts.settle(span)
        if given_back:
            logger.warning("claims without an answer given back", ingestions=given_back)
