"""Brings queued texts to the embeddings API: packs, paces, retries, and tells each call how it ended.

One lane a credential and model, with one task that waits for the key's next free slot and only then decides what
leaves: an idle key sends at once, and whatever comes while requests are under way is packed into the next one. This
is the one layer of retries for rate limits, time-outs and failing servers; the SDK's own are off.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from traceback import format_tb

import structlog

from app.embedding.answers import Answer
from app.embedding.faults import Fault
from app.embedding.limiter import Clock, KeyLimiter, backoff_seconds
from app.embedding.openai_api import OpenAIEmbeddings
from app.embedding.packing import Call, Pack, PackQueue
from app.embedding.values import EmbeddingCredential, EmbeddingModel
from app.errors import Broken, SluiceError, Transient

MAX_LIMITERS = 1024
SHARED_RETRIES = 2

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Lane:
    credential: EmbeddingCredential
    model: EmbeddingModel
    limiter: KeyLimiter
    queue: PackQueue


class Dispatcher:
    """Carries calls to the API and their vectors back, on one event loop."""

    def __init__(
        self,
        api: OpenAIEmbeddings,
        *,
        batch_size: int,
        concurrency: int,
        patience_seconds: float,
        throttle_patience_seconds: float,
        clock: Clock,
    ) -> None:
        self._api = api
        self._batch_size = batch_size
        self._concurrency = concurrency
        self._patience_seconds = patience_seconds
        self._throttle_patience_seconds = throttle_patience_seconds
        self._clock = clock
        self._lanes: dict[tuple[EmbeddingCredential, EmbeddingModel], _Lane] = {}
        self._limiters: dict[tuple[str, str], KeyLimiter] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, call: Call, *, model: EmbeddingModel, credential: EmbeddingCredential) -> None:
        """Queue a call; its future says how it ended. It leaves at the next turn of the loop if its key is free."""
        self._lane(credential, model).queue.add(call)

    def limiter_of(self, credential: EmbeddingCredential) -> KeyLimiter | None:
        """What is known of a key's limits; None before its first request."""
        return self._limiters.get((credential.key_id, credential.base_url))

    async def aclose(self) -> None:
        """End every request; calls that still wait fail as `Transient`."""
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    def _lane(self, credential: EmbeddingCredential, model: EmbeddingModel) -> _Lane:
        """The lane for these two, with its task running."""
        lane = self._lanes.get((credential, model))
        if lane is None:
            queue = PackQueue(batch_size=self._batch_size)
            lane = _Lane(credential, model, self._limiter(credential), queue)
            self._lanes[credential, model] = lane
            self._spawn(self._run(lane), calls=partial(self._close, lane))
        return lane

    def _limiter(self, credential: EmbeddingCredential) -> KeyLimiter:
        name = (credential.key_id, credential.base_url)
        if name not in self._limiters:
            if len(self._limiters) >= MAX_LIMITERS:
                self._limiters = {name: one for name, one in self._limiters.items() if not one.is_idle}
            self._limiters[name] = KeyLimiter(concurrency=self._concurrency, clock=self._clock)
        return self._limiters[name]

    def _close(self, lane: _Lane) -> list[Call]:
        """Forget a lane; returns those who still waited there. Safe to repeat."""
        if self._lanes.get((lane.credential, lane.model)) is lane:
            del self._lanes[lane.credential, lane.model]
        return lane.queue.drain()

    async def _run(self, lane: _Lane) -> None:
        """Send what the lane holds until it holds no more."""
        while lane.queue:
            parked_seconds = await lane.limiter.acquire(patience_seconds=self._throttle_patience_seconds)
            if parked_seconds:
                for call in self._close(lane):
                    call.fail(_parked(lane, parked_seconds).as_error())
                return
            pack = lane.queue.take()
            if pack is None:  # all were cancelled while we waited for the slot
                lane.limiter.release()
            else:
                self._spawn(self._carry(pack, lane), calls=partial(_calls_of, pack))
        self._close(lane)

    async def _carry(self, pack: Pack, lane: _Lane) -> None:
        """Make one request, whose slot is taken already, and settle, queue again or fail its calls."""
        started_at = self._clock.now()
        with pack.under_way():
            try:
                outcome = await self._api.request(pack.texts, model=lane.model, credential=lane.credential)
            finally:
                lane.limiter.release()
            if isinstance(outcome, Answer):
                lane.limiter.widen()
                pack.settle(outcome)
                return
        if outcome.failure is not None:
            self._refuse(pack, lane, outcome)
        else:
            await self._retry(pack, lane, outcome, started_at=started_at)

    def _refuse(self, pack: Pack, lane: _Lane, fault: Fault) -> None:
        """No retry of this very request can help; parts of it may pass alone."""
        smaller: list[Pack] = []
        waiting = self._lanes.get((lane.credential, lane.model))
        if fault.kind == "lane" and waiting is not None:
            for call in waiting.queue.drain():
                call.fail(fault.as_error())
        if fault.kind in ("texts", "size") and len(pack.calls) > 1:
            smaller = pack.by_call()
        elif fault.kind == "size" and pack.size > 1:
            smaller = pack.halves()
        if not smaller:
            _fail(pack, fault)
        for part in smaller:
            self._lane(lane.credential, lane.model).queue.put_back(part)

    async def _retry(self, pack: Pack, lane: _Lane, fault: Fault, *, started_at: float) -> None:
        """Queue the request again after a wait; or fail it, if that would outlast its patience."""
        first_tried_at = started_at if pack.first_tried_at is None else pack.first_tried_at
        wait = max(backoff_seconds(pack.retries), fault.wait_seconds or 0.0)  # some ask for a pause of 0 seconds
        patience = self._patience_seconds
        if fault.kind == "throttled":
            lane.limiter.park(wait, started_at=started_at)
            patience = self._throttle_patience_seconds
        patience_left = patience - (self._clock.now() - first_tried_at)
        _log.info("embedding_retry", reason=fault.sentence, key_id=lane.credential.key_id, wait_seconds=wait)
        if wait > patience_left:
            _fail(pack, fault, wait_seconds=wait)
            return
        if fault.kind != "throttled":  # a throttled key is waited for by its lane
            await self._clock.sleep(wait)
        again = replace(pack, retries=pack.retries + 1, first_tried_at=first_tried_at)
        # A server may fail over one text: what fails time and again is no longer shared.
        stubborn = fault.kind == "passing" and again.retries > SHARED_RETRIES
        for part in again.by_call() if stubborn else [again]:
            self._lane(lane.credential, lane.model).queue.put_back(part)

    def _spawn(self, work: Coroutine[None, None, None], *, calls: Callable[[], list[Call]]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, calls))

    def _ended(self, calls: Callable[[], list[Call]], task: asyncio.Task[None]) -> None:
        """Let nobody wait for a task that was cancelled, or that died of an error of ours."""
        self._tasks.discard(task)
        if task.cancelled():
            error: Callable[[], SluiceError] = partial(Transient, "The embedder was closed before it was done.")
        elif died_of := task.exception():
            name = type(died_of).__name__
            # The place but not the message, which could quote a request and its key.
            _log.error("embedding_broke", error=name, place="".join(format_tb(died_of.__traceback__)))
            error = partial(Broken, f"Embedding broke inside Sluice ({name}); the log says where.")
        else:
            return
        for call in calls():
            call.fail(error())


def _calls_of(pack: Pack) -> list[Call]:
    return pack.calls


def _fail(pack: Pack, fault: Fault, *, wait_seconds: float | None = None) -> None:
    for call in pack.calls:
        call.fail(fault.as_error(wait_seconds=wait_seconds))


def _parked(lane: _Lane, seconds: float) -> Fault:
    where = f"{lane.model.name} at {lane.credential.host}"
    sentence = f"The API for {where} told this key to pause for {seconds:.0f} seconds."
    return Fault("throttled", sentence, wait_seconds=seconds)
