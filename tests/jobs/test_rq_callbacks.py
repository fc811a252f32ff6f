"""RQ's callbacks: they run beside the other jobs, once, and not at all where Redis is not trusted."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis
from rq import Callback, Queue
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.webhook import Webhook

from app.jobs import AsyncWorker
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply


def result_of(job: Job) -> Result:
    found = job.latest_result()
    assert found is not None
    return found


@pytest.mark.parametrize(("function", "when"), [(f.nothing, "on_success"), (f.fail, "on_failure")])
async def test_a_callback_that_raises_an_os_error_fails_its_job_and_is_not_called_again(
    queue: Queue, run_worker: RunWorker, until: Until, *, function: Any, when: str
) -> None:
    """Redis' own errors are tried again; a user's, which may be of the same class, is not one of them."""
    job = queue.enqueue(function, **{when: Callback(f.break_callback_with_an_os_error)})
    async with run_worker(**PLAIN), asyncio.timeout(5):
        await until(lambda: reply(job.is_failed))
    assert queue.connection.get(f"test:calls:{job.id}") == b"1"
    assert "FileNotFoundError" in (result_of(job).exc_string or "")


async def test_a_slow_callback_holds_up_no_other_job(queue: Queue, run_worker: RunWorker, until: Until) -> None:
    client = queue.connection
    slow = queue.enqueue(f.nothing, on_success=Callback(f.wait_in_callback))
    async with run_worker(**PLAIN):
        await until(lambda: reply(client.llen("test:started")))
        others = [queue.enqueue(f.add, 1), queue.enqueue(f.nothing, on_success=Callback(f.note_success))]
        try:
            async with asyncio.timeout(5):
                await until(lambda: reply(all(job.is_finished for job in others)))
        finally:
            client.rpush("test:go", "go")
        await until(lambda: reply(slow.is_finished))


async def test_a_shutdown_waits_for_a_callback_and_what_rq_writes_after_it(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    client = queue.connection
    job = queue.enqueue(f.add, 1, on_success=Callback(f.wait_in_callback))
    async with run_worker(**PLAIN) as worker:
        await until(lambda: reply(client.llen("test:started")))
        worker.request_shutdown()
        client.rpush("test:go", "go")
    assert job.return_value() == 2
    assert not list(client.scan_iter("rq:execution*"))


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"on_success": Callback(f.note_success)}, "a success callback"),
        ({"on_failure": Callback(f.note_failure)}, "a failure callback"),
        ({"on_stopped": Callback(f.note_stopped)}, "a stopped callback"),
        ({"webhooks": [Webhook("http://127.0.0.1:9/", "finished")]}, "a webhook"),
    ],
)
def test_with_json_what_redis_holds_is_not_executed(
    sync_redis: redis.Redis, burst: Callable[..., AsyncWorker], options: dict[str, Any], refused: str
) -> None:
    queue = Queue("q", connection=sync_redis, serializer=JSONSerializer)
    job = queue.enqueue(f.count, "test:ran", **options)
    other = queue.enqueue(f.add, 1)
    burst(serializer="json")
    assert job.get_status() is JobStatus.FAILED
    assert f"brings {refused}" in (result_of(job).exc_string or "")
    assert not sync_redis.exists("test:ran", "test:notes")
    assert other.return_value() == 2
