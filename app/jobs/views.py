"""Jobs as RQ sees them: its status words, for those that watch over queues."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from rq.job import Job as RQJob
from rq.results import Result
from rq.utils import as_text, str_to_date

from app.jobs.ids import to_rq_id
from app.jobs.job import failure_of
from app.jobs.values import JobView

if TYPE_CHECKING:
    from app.jobs.client import ArqRedis


async def view_job(redis: "ArqRedis", job_id: str) -> JobView | None:
    """What RQ stores of a job, None if it knows none.

    Raises:
        QueueUnavailable: with a budget, Redis is away.
    """
    rq_id = to_rq_id(job_id)
    pipeline = redis.pipeline(transaction=False)
    pipeline.hgetall(RQJob.key_for(rq_id))
    pipeline.xrevrange(Result.get_key(rq_id), count=1)
    async with redis.within_budget():
        raw, entries = await pipeline.execute()
    if not raw:
        return None
    stored = {as_text(name): value for name, value in raw.items()}
    entry = {as_text(name): as_text(value) for name, value in entries[0][1].items()} if entries else {}

    def moment(name: str) -> datetime | None:
        return str_to_date(stored[name]) if stored.get(name) else None

    return JobView(
        job_id=job_id,
        status=as_text(stored.get("status", b"")),
        enqueued_at=moment("enqueued_at"),
        started_at=moment("started_at"),
        ended_at=moment("ended_at"),
        worker_name=as_text(stored["worker_name"]) if stored.get("worker_name") else None,
        error=str(failure_of(entry)) if entry.get("exc_string") else None,
    )


async def jobs_status(redis: "ArqRedis", job_ids: Sequence[str]) -> dict[str, str | None]:
    """RQ's status word for each job in one round trip; None where RQ knows none.

    Raises:
        QueueUnavailable: with a budget, Redis is away.
    """
    pipeline = redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipeline.hget(RQJob.key_for(to_rq_id(job_id)), "status")
    async with redis.within_budget(len(job_ids)):
        answers = await pipeline.execute() if job_ids else []
    return {
        job_id: None if status is None else as_text(status) for job_id, status in zip(job_ids, answers, strict=True)
    }
