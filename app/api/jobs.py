"""/v1/jobs: what RQ says of an attempt, beside what is true."""

import re
from dataclasses import asdict
from uuid import UUID

from fastapi import APIRouter

from app.api.callers import Caller, Parts
from app.api.wire.ingestions import IngestionAnswer, JobAnswer
from app.db import connection
from app.doorbell import Doorbell, DoorbellUnavailable
from app.errors import NotFound
from app.records.ingestions import get_ingestion
from app.settings import QUEUE_NAME

router = APIRouter()

_JOB_ID = re.compile(rf"{QUEUE_NAME}_([0-9a-f]{{32}})_[0-9]{{1,9}}")


@router.get("/v1/jobs/{job_id}")
async def retrieve_job(caller: Caller, resources: Parts, job_id: str) -> JobAnswer:
    """RQ's view of one attempt at a file and the ingestion's own row, which is the truth."""
    matched = _JOB_ID.fullmatch(job_id)
    if matched is None:
        raise NotFound(f"No job found with id '{job_id[:80]}'.", code="not_found")
    async with connection(resources.pool) as conn:
        ingestion = await get_ingestion(conn, UUID(hex=matched[1]), user_id=caller.user_id)
    view, note = await _ask_queue(resources.doorbell, job_id)
    return JobAnswer(id=job_id, rq=view, note=note, ingestion=IngestionAnswer.of(ingestion))


async def _ask_queue(doorbell: Doorbell, job_id: str) -> tuple[dict[str, object] | None, str | None]:
    if not doorbell.is_enabled:
        return None, "This server runs without a job queue (ENABLE_JOB_QUEUE=false)."
    try:
        view = await doorbell.get_job_status(job_id)
    except DoorbellUnavailable:
        return None, "The job queue does not answer at the moment; the ingestion goes on without it."
    if view is None:
        return None, "The job queue knows no such job: it has expired, or has not been enqueued yet."
    return asdict(view), None
