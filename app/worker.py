"""The worker's root: RQ's queue and Postgres's sweep in one event loop, on the same resources as the API."""

import os
import signal
import socket
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import structlog

from app.errors import Transient, Unprocessable
from app.ingest.maintenance import maintain
from app.ingest.outcomes import Completed, Failed, RetryLater
from app.ingest.process import Processor
from app.jobs import AsyncWorker, RedisSettings, Retry, ShutdownSignals
from app.resources import open_resources
from app.settings import QUEUE_NAME, Settings, load_settings

_AGAIN_SECONDS = 0.25
_MOST_AGAIN_SECONDS = 5.0
_GRACE_SECONDS = 25.0
_NO_LIMIT = 2**31
"""The row counts the attempts; a job may be given back, or find Postgres away, as often as it likes."""

logger = structlog.stdlib.get_logger(__name__)


def worker_name() -> str:
    """The name under which RQ's tools show this process."""
    return f"file_processor_{socket.gethostname()}_{os.getpid()}"


async def process_file_job(
    ctx: dict[str, Any],
    ingestion_id: str,
    user_id: str,  # noqa: ARG001 - for whoever looks at the queue
    embedding_key_id: str | None,  # noqa: ARG001 - likewise
) -> dict[str, object]:
    """The job that a hint runs; the arguments are ids only, and only the first one is trusted.

    The user and the key stand in the row; in the job they are for whoever looks at the queue. Under a stock
    `rq worker` there is no context, so the job opens resources of its own.

    Raises:
        Unprocessable: the ingestion failed; RQ then shows the job as failed, with the reason.
        Retry: Postgres is away, or somebody is changing the file, so nothing could be claimed; RQ shows the job
            as scheduled.
    """
    processor = ctx.get("processor")
    if isinstance(processor, Processor):
        return await _process(ctx, processor, UUID(ingestion_id))
    async with open_resources(load_settings(), role="stock-worker") as resources:
        processor = Processor(resources, name=worker_name())
        async with processor.keeping_leases():
            return await _process(ctx, processor, UUID(ingestion_id))


async def _process(ctx: dict[str, Any], processor: Processor, ingestion_id: UUID) -> dict[str, object]:
    try:
        outcome = await processor.process(ingestion_id)
    except Transient as exc:
        doublings = min(int(ctx.get("job_try", 1)) - 1, 10)
        raise Retry(min(_AGAIN_SECONDS * 2**doublings, _MOST_AGAIN_SECONDS)) from exc
    match outcome:
        case Failed(code, message):
            raise Unprocessable(code, f"{code}: {message}")
        case Completed(chunks, stores):
            return {"outcome": "completed", "chunks": chunks, "stores": stores}
        case RetryLater(delay_seconds):
            return {"outcome": "retry_later", "delay_seconds": delay_seconds}
        case _:
            return {"outcome": "superseded"}


async def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then give back what does not finish in time, or at once at a second signal."""
    async with anyio.create_task_group() as group:
        shutdown = _Shutdown(group.cancel_scope)
        group.start_soon(shutdown.listen)  # to the very end: a signal while all is closed must not cut that off
        await _work(settings, shutdown)
        group.cancel_scope.cancel()


async def _work(settings: Settings, shutdown: "_Shutdown") -> None:
    name = worker_name()
    patience = settings.database_patience_seconds
    async with open_resources(settings, role="worker", patience_seconds=patience) as resources:
        processor = Processor(resources, name=name)
        queue_worker = _queue_worker(settings, processor)
        async with processor.keeping_leases(), anyio.create_task_group() as work:
            shutdown.begin(queue_worker)
            logger.info("worker ready", worker=name, queue=QUEUE_NAME if queue_worker else None)
            work.start_soon(_maintain, processor, settings.worker_concurrency, shutdown)
            if queue_worker is not None:
                work.start_soon(partial(queue_worker.run, stop=shutdown.stop))
    logger.info("worker stopped", worker=name)


async def _maintain(processor: Processor, concurrency: int, shutdown: "_Shutdown") -> None:
    """Sweep and drain; files in hand at a shutdown have as long to finish as the queue's."""
    async with anyio.create_task_group() as group:
        group.start_soon(shutdown.cancel_in_time, group.cancel_scope)
        await maintain(processor, concurrency=concurrency, stop=shutdown.stop)
        group.cancel_scope.cancel()


def _queue_worker(settings: Settings, processor: Processor) -> AsyncWorker | None:
    if settings.redis_url is None or not settings.enable_job_queue:
        return None
    return AsyncWorker(
        [QUEUE_NAME],
        redis_settings=RedisSettings.from_dsn(settings.redis_url),
        functions=[process_file_job],
        ctx={"processor": processor},
        max_jobs=settings.worker_concurrency,
        max_tries=_NO_LIMIT,
        name=processor.name,
        serializer="json",
        lease_seconds=settings.lease_seconds,
        shutdown_grace_seconds=_GRACE_SECONDS,
    )


class _Shutdown:
    """What signals ask for: `stop`, to claim nothing more; `give_back`, to end what is in hand at once.

    Before the work has begun nothing is in hand: a signal then cancels `starting`.
    """

    def __init__(self, starting: anyio.CancelScope) -> None:
        self._starting: anyio.CancelScope | None = starting
        self._queue_worker: AsyncWorker | None = None
        self.stop = anyio.Event()
        self._give_back = anyio.Event()

    def begin(self, queue_worker: AsyncWorker | None) -> None:
        """The work begins."""
        self._starting, self._queue_worker = None, queue_worker

    async def listen(self) -> None:
        """Follow the signals until cancelled."""
        on_signal = ShutdownSignals(is_stopping=self.stop.is_set, warm=self._stop, cold=self._end)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for received in signals:
                logger.info("stopping", signal=received.name)
                on_signal()

    async def cancel_in_time(self, scope: anyio.CancelScope) -> None:
        """Cancel a scope at the end of the grace, or at a second signal."""
        await self.stop.wait()
        with anyio.move_on_after(_GRACE_SECONDS):
            await self._give_back.wait()
        scope.cancel()

    def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._queue_worker is not None:
            self._queue_worker.shut_down_warm()
        self.stop.set()

    def _end(self) -> None:
        if self._queue_worker is not None:
            self._queue_worker.shut_down_cold()
        self._give_back.set()
