"""What is shown of jobs; only the reading is tested, so a fake Redis will do."""

from collections.abc import AsyncIterator

import fakeredis
import pytest

from app.jobs import ArqRedis, Job, JobStatus, jobs_status, view_job


class FakeArq(fakeredis.FakeAsyncRedis, ArqRedis):
    """An ArqRedis whose commands go to a fake server in this process."""


@pytest.fixture
async def redis() -> AsyncIterator[FakeArq]:
    async with FakeArq() as client:
        yield client


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("queued", JobStatus.queued),
        ("scheduled", JobStatus.deferred),
        ("deferred", JobStatus.deferred),
        ("started", JobStatus.in_progress),
        ("finished", JobStatus.complete),
        ("failed", JobStatus.complete),
        ("stopped", JobStatus.complete),
        ("canceled", JobStatus.complete),
    ],
)
async def test_rqs_status_in_arqs_words(redis: FakeArq, stored: str, shown: JobStatus) -> None:
    await redis.hset("rq:job:one", "status", stored)
    assert await Job("one", redis, "q").status() is shown


async def test_a_result_whose_job_has_gone_is_complete(redis: FakeArq) -> None:
    await redis.xadd("rq:results:one", {"type": 1})
    assert await Job("one", redis, "q").status() is JobStatus.complete


async def test_the_statuses_of_many_jobs_come_together(redis: FakeArq) -> None:
    await redis.hset("rq:job:one", "status", "started")
    assert await jobs_status(redis, ["one", "two"]) == {"one": "started", "two": None}
    assert await jobs_status(redis, []) == {}


async def test_a_job_that_rq_does_not_know_has_no_view(redis: FakeArq) -> None:
    assert await view_job(redis, "none") is None
