"""Taking jobs from the queues, as many as there are free slots, and starting them, in one round trip."""

import asyncio
import logging
import random
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from redis.exceptions import RedisError
from rq.defaults import RQ_KEY_PREFIX
from rq.queue import Queue
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import as_text, now, utcformat
from rq.worker import DequeueStrategy

from app.jobs.lua import CLAIM
from app.jobs.lua_upkeep import DISOWN
from app.jobs.running import Running
from app.jobs.settle import MOST_AT_ONCE
from app.jobs.waiting import cancel_all, wait_at_most

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")

_SUSPENDED_SECONDS = 1.0
_FEW = 16
"""Of more free slots than this a claim fills half: jobs that start together end together, and the worker would idle
while the next ones come (measured: 10 ms jobs, 100 at once, 8,150 instead of 7,440 a second)."""
_MOST_UNSETTLED = 8 * MOST_AT_ONCE
"""Endings that Redis has not taken yet; with more, nothing new is claimed."""


class Claimer:
    """The worker's claiming loop."""

    def __init__(
        self, worker: "AsyncWorker", *, burst: bool, job_limit: int | None, max_idle_seconds: float | None
    ) -> None:
        self._worker = worker
        self._burst = burst
        self._left = job_limit
        self._max_idle_seconds = max_idle_seconds
        self._busy_at = time.monotonic()
        self._changed = asyncio.Event()
        self._blocked: dict[str, asyncio.Task[None]] = {}  # queue key → the wait for its first job
        self._claim_script = worker.redis.register_script(CLAIM)
        self._disown_script = worker.redis.register_script(DISOWN)
        self._next_queue = 0  # whose turn it is, with RQ's round robin
        self._unanswered = ""  # how the execution ids begin of a claim whose answer was lost

    def wake(self) -> None:
        """Something has changed: a slot is free, a job has come, the worker is to stop."""
        self._changed.set()

    @property
    def is_claiming(self) -> bool:
        """Whether Redis may have given jobs to this worker that have not started here."""
        return bool(self._unanswered)

    async def run(self) -> None:
        """Claim and start jobs until the worker is told to stop, the limit is reached, or a burst is over."""
        worker = self._worker
        try:
            while not worker.stop_event.is_set():
                self._changed.clear()
                if self._left is not None and self._left <= 0:
                    return
                free = self._free()
                if free <= 0:
                    await self._changed.wait()
                    continue
                claimed = await worker.until_redis_answers(partial(self._claim, free))
                if claimed < free and not worker.stop_event.is_set() and not await self._wait_for_jobs():
                    return
        finally:
            await self._unblock()

    def _free(self) -> int:
        worker = self._worker
        if worker.executor.unsettled_count > _MOST_UNSETTLED:
            return 0
        free = worker.max_jobs - worker.executor.active_count
        free = min(free, MOST_AT_ONCE, max(_FEW, free // 2))
        return free if self._left is None else min(free, self._left)

    async def _claim(self, most: int) -> int:
        """Start up to `most` jobs; how many left their queues (those that cannot be read, or are gone, too)."""
        worker = self._worker
        await self._disown()
        queues = self._in_order()
        keys = [WORKERS_SUSPENDED, worker.key, worker.executions_key]
        for queue in queues:
            keys += (queue.key, StartedJobRegistry.key_template.format(queue.name))
        running = worker.executor.active_by_queue
        share = "order" if worker.dequeue_strategy == DequeueStrategy.DEFAULT or len(queues) == 1 else "fair"
        self._unanswered = uuid4().hex[:24]
        answer = await self._claim_script(
            keys,
            [
                RQ_KEY_PREFIX,
                most,
                worker.record_ttl,
                worker.name,
                utcformat(now()),
                share,
                self._unanswered,
                int(worker.executor.has_suspect),
                *(running.get(queue.name, 0) for queue in queues),
            ],
        )
        self._unanswered = ""
        if answer[0] == b"suspended":
            if self._burst:  # as RQ's worker, which would wait for ever
                logger.info("Worker %s: suspended in burst mode, exiting", worker.name)
                self._left = 0
            else:
                await asyncio.sleep(_SUSPENDED_SECONDS)
            return most  # not idle: it is to be asked again
        taken = self._start(answer, queues)
        worker.executor.early_stops.clear()
        return taken

    async def _disown(self) -> None:
        """Put back what a claim started whose answer was lost."""
        if not self._unanswered:
            return
        worker = self._worker
        back = await self._disown_script([worker.executions_key], [RQ_KEY_PREFIX, self._unanswered])
        logger.warning("Worker %s: a claim's answer was lost; %d jobs were put back", worker.name, back)
        self._unanswered = ""

    async def disown_last(self, seconds: float) -> None:
        """After a shutdown cut a claim off: what it may have started is put back, if Redis answers in time."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await self._disown()

    def _start(self, answer: list[Any], queues: list[Queue]) -> int:
        worker = self._worker
        moment, lost, started, gone, broken = answer
        for _, job_id, why in broken:
            logger.warning("job %r cannot be started, and is back in its queue: %s", job_id, as_text(why))
        if broken and not started:
            raise RedisError("no job could be started")  # to be asked again after a pause
        for job_id in lost:
            logger.warning("job %r cannot be read; it is dropped", job_id)
        if not started:
            return len(lost) + int(gone)
        redis_time = float(moment)
        worker.set_redis_time(redis_time)
        for number, job_id, execution_id, flat in started:
            worker.executor.start(
                Running(
                    queue_name=queues[number - 1].name,
                    job_id=job_id.decode(),
                    execution_id=execution_id.decode(),
                    raw=dict(zip(flat[::2], flat[1::2], strict=True)),
                    started=redis_time,
                    worker_name=worker.name,
                    connection=worker.connection,
                    serializer=worker.serializer,
                )
            )
        self._busy_at = time.monotonic()
        self._next_queue = worker.queues.index(queues[started[-1][0] - 1]) + 1
        if self._left is not None:
            self._left -= len(started)
        return len(started) + len(lost) + int(gone)

    def _in_order(self) -> list[Queue]:
        worker = self._worker
        if worker.dequeue_strategy == DequeueStrategy.RANDOM:
            return random.sample(worker.queues, len(worker.queues))
        if worker.dequeue_strategy == DequeueStrategy.ROUND_ROBIN:
            turn = self._next_queue % len(worker.queues)
            return worker.queues[turn:] + worker.queues[:turn]
        return worker.queues

    async def _wait_for_jobs(self) -> bool:
        """The queues are empty: until a slot is free or a job has come; False when there is nothing more to do."""
        if self._changed.is_set():  # while the claim was on its way: a job may be back in its queue
            return True
        executor = self._worker.executor
        is_working = executor.active_count > 0 or executor.unsettled_count > 0
        if self._burst and not is_working and not await self._burst_waits():
            return False
        self._block()
        if self._max_idle_seconds is None:
            await self._changed.wait()
            return True
        if is_working:
            self._busy_at = time.monotonic()
        left = self._max_idle_seconds - (time.monotonic() - self._busy_at)
        if left <= 0:
            return False
        await wait_at_most(self._changed, left)
        return True

    async def _burst_waits(self) -> bool:
        """Whether a burst waits for jobs that are due later, as arq's does."""
        worker = self._worker
        if not worker.burst_waits_for_deferred:
            return False
        keys = [ScheduledJobRegistry.key_template.format(queue.name) for queue in worker.queues]
        keys += worker.queue_keys()  # where the upkeep may just have moved them
        return bool(await worker.until_redis_answers(lambda: worker.redis.exists(*keys)))

    def _block(self) -> None:
        """Have the first job of each queue wake us, on one connection a queue: no polling."""
        for queue in self._worker.queues:
            task = self._blocked.get(queue.key)
            if task is None or task.done():
                task = asyncio.create_task(self._wake_by(queue.key))
                task.add_done_callback(self._end_with_its_error)
                self._blocked[queue.key] = task

    def _end_with_its_error(self, waiting: "asyncio.Task[None]") -> None:
        """A worker that is not woken would stand still for ever: it ends, and says why."""
        if not waiting.cancelled() and isinstance(error := waiting.exception(), Exception):
            self._worker.end_with(error)

    async def _wake_by(self, key: str) -> None:
        """Wait for a queue, taking nothing: LMOVE of a list onto itself at the same end changes nothing."""
        worker = self._worker

        async def block() -> Any:
            return await worker.blocking_redis.execute_command(
                "BLMOVE", key, key, "LEFT", "LEFT", worker.block_seconds
            )

        while await worker.until_redis_answers(block) is None:
            pass
        self._changed.set()

    async def _unblock(self) -> None:
        await cancel_all(self._blocked.values())
