"""The job queue as Sluice uses it: a doorbell. Postgres holds the work; a hint that is lost costs seconds."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import structlog
from redis.exceptions import RedisError

from app.errors import Transient
from app.jobs import ArqRedis, JobRequest, JobView, jobs_status, view_job
from app.records.hints import OvertakenHint
from app.records.ingestions import Hint
from app.settings import QUEUE_NAME, Settings

FUNCTION_NAME = "app.worker.process_file_job"
"""Importable, so that a stock `rq worker` can run the jobs too."""

_MOST_HINTS_A_CALL = 500
_PROBE_KEY = "sluice:probe"
_PROBE_SECONDS = 10
_EPOCH_KEY = "sluice:epoch"
_QUEUE_KEY = f"rq:queue:{QUEUE_NAME}"
_SLACK_SECONDS = 60
"""The pipeline's own time limit ends an attempt and counts it; RQ's comes later, it would look like a shutdown."""

logger = structlog.stdlib.get_logger(__name__)


class DoorbellUnavailable(Transient):
    """Redis does not answer; work goes on without it."""


def job_id_of(ingestion_id: UUID, fence: int) -> str:
    """The RQ job id of one attempt."""
    return f"{QUEUE_NAME}_{ingestion_id.hex}_{fence}"


class Doorbell:
    """Rings workers about ingestions; `redis` None means ENABLE_JOB_QUEUE=false."""

    def __init__(self, redis: ArqRedis | None, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._is_away = False
        self.epoch: UUID | None = None  # of Redis' memory; it ends when that is lost
        self.waiting = 0  # jobs in the queue when it was last looked at

    @property
    def is_enabled(self) -> bool:
        """Whether there is a queue at all."""
        return self._redis is not None

    @property
    def seems_away(self) -> bool:
        """Whether there is no queue, or Redis did not take what it was last told."""
        return self._redis is None or self._is_away

    async def is_job_queue_available(self) -> bool:
        """Whether Redis takes a write now, within the budget: a full one, or a replica, answers but takes none.

        Learns in the same round trip which memory Redis has (`epoch`), and how many jobs wait there (`waiting`).
        """
        if self._redis is None:
            return False
        try:
            async with self._redis.within_budget():
                pipeline = self._redis.pipeline(transaction=False)
                pipeline.set(_PROBE_KEY, "1", ex=_PROBE_SECONDS)
                pipeline.set(_EPOCH_KEY, uuid4().hex, nx=True)
                pipeline.get(_EPOCH_KEY)
                pipeline.llen(_QUEUE_KEY)
                probe, _, epoch, waiting = await pipeline.execute(raise_on_error=False)
                _raise_first(probe, waiting)
                self.epoch = _epoch_of(epoch) or await self._new_epoch()
        except RedisError as exc:
            self._note(exc)
            return False
        self._note(None)
        self.waiting = waiting
        return True

    async def _new_epoch(self) -> UUID:
        """Overwrites what somebody else has put in the place of the epoch."""
        epoch = uuid4()
        if self._redis is not None:
            await self._redis.set(_EPOCH_KEY, epoch.hex)
        return epoch

    async def enqueue_file_processing_jobs(self, hints: Sequence[Hint]) -> bool:
        """Enqueue one job a hint, in one round trip for up to 500; False if Redis did not take them all in time.

        Call it after the commit. A job carries ids only; enqueuing the same attempt twice is one job, until
        that job is over.
        """
        if not hints:
            return True
        if self._redis is None:
            return False
        try:
            for start in range(0, len(hints), _MOST_HINTS_A_CALL):
                await self._redis.enqueue_jobs(
                    [self._request(h) for h in hints[start : start + _MOST_HINTS_A_CALL]]
                )
        except RedisError as exc:
            self._note(exc)
            return False
        self._note(None)
        return True

    async def withdraw_file_processing_jobs(self, overtaken: Sequence[OvertakenHint]) -> bool:
        """Take jobs back whose ingestions were settled without them; False if Redis does not answer."""
        if self._redis is None or not overtaken:
            return True
        job_ids = [job_id_of(each.ingestion_id, each.fence) for each in overtaken]
        # a cancel raises the fence: of a row that ran, the job is that of the fence before
        job_ids += [job_id_of(each.ingestion_id, each.fence - 1) for each in overtaken if each.state == "cancelled"]
        try:
            await self._redis.withdraw_jobs(job_ids)
        except RedisError as exc:
            self._note(exc)
            return False
        self._note(None)
        return True

    async def get_job_status(self, job_id: str) -> JobView | None:
        """What RQ says of a job; None if it knows none, or there is no queue.

        Raises:
            DoorbellUnavailable: Redis is away.
        """
        if self._redis is None:
            return None
        try:
            return await view_job(self._redis, job_id)
        except RedisError as exc:
            raise DoorbellUnavailable(str(exc)) from exc

    async def statuses(self, job_ids: Sequence[str]) -> dict[str, str | None]:
        """RQ's status word for each job, None where it knows none.

        Raises:
            DoorbellUnavailable: Redis is away.
        """
        if self._redis is None or not job_ids:
            return {}
        try:
            return await jobs_status(self._redis, job_ids)
        except RedisError as exc:
            raise DoorbellUnavailable(str(exc)) from exc

    def _note(self, error: RedisError | None) -> None:
        """One line when Redis goes and one when it is back, not one an upload."""
        if error is not None and not self._is_away:
            logger.warning("job queue unavailable, files are taken from Postgres", error=str(error))
        elif error is None and self._is_away:
            logger.info("job queue available again")
        self._is_away = error is not None

    def _request(self, hint: Hint) -> JobRequest:
        settings = self._settings
        key_id = None if hint.embedding_key_id is None else str(hint.embedding_key_id)
        return JobRequest(
            FUNCTION_NAME,
            args=(str(hint.ingestion_id), str(hint.user_id), key_id),
            job_id=job_id_of(hint.ingestion_id, hint.next_fence),
            queue_name=QUEUE_NAME,
            defer_by=timedelta(seconds=hint.delay_seconds) if hint.delay_seconds else None,
            timeout=settings.job_timeout + _SLACK_SECONDS,
            result_ttl=settings.job_result_ttl,
            failure_ttl=settings.job_failure_ttl,
            # an attempt whose job ended without effect (Postgres away, not yet due) must be rung for again
            replace_settled=True,
        )


def _raise_first(*answers: object) -> None:
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer


def _epoch_of(answer: object) -> UUID | None:
    """The epoch in Redis' answer; None if that is anything else, an error included."""
    try:
        return UUID(answer.decode()) if isinstance(answer, bytes) else None
    except ValueError:
        return None
