"""What the scripts make of a Redis that is full or refuses a command, and of records with odd fields."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from rq import Queue
from rq import Retry as RQRetry
from rq.job import JobStatus
from rq.rate_limit import RateLimit
from rq.scheduler import RQScheduler

from app.embedded import EmbeddedRedis
from app.jobs import ArqRedis
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, lose_worker, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of


@pytest.fixture
def client(own_redis: EmbeddedRedis) -> Iterator[redis.Redis]:
    """Of a Redis that may be limited."""
    with redis.Redis.from_url(own_redis.url) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.execute_command("ACL", "SETUSER", "default", "+@all")


# claims


async def test_a_job_that_cannot_be_started_takes_no_other_with_it(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    jobs = [queue.enqueue(f.nothing, job_id=f"n{number}") for number in range(5)]
    queue.connection.set("rq:executions:n2", "of another type")
    async with run_worker(**PLAIN, lease_seconds=600):
        await until(lambda: reply(all(job.is_finished for job in jobs)))


@pytest.mark.parametrize("strategy", ["default", "round_robin"])
async def test_jobs_wait_in_their_queues_while_redis_lets_nobody_start_them(
    client: redis.Redis, own_redis: EmbeddedRedis, run_worker: RunWorker, until: Until, *, strategy: str
) -> None:
    queues = [Queue(name, connection=client) for name in ("q", "r")]
    for queue in queues:
        for _ in range(70):
            queue.enqueue(f.nothing)
    client.execute_command("ACL", "SETUSER", "default", "-persist")
    async with run_worker(**PLAIN, url=own_redis.url, queues=["q", "r"]) as worker:
        worker.dequeue_strategy = strategy  # type: ignore[assignment]  # an enum of strings
        await until(lambda: reply(len(client.execute_command("ACL", "LOG")) > 1 or client.llen("rq:queue:q") == 70))
        await until(lambda: reply(client.execute_command("ACL", "LOG")))
        assert [queue.count for queue in queues] == [70, 70]
        client.execute_command("ACL", "SETUSER", "default", "+persist")
        await until(lambda: reply([client.zcard(f"rq:finished:{queue.name}") for queue in queues] == [70, 70]))


async def test_a_registry_of_another_type_keeps_jobs_in_their_queue(
    queue: Queue, run_worker: RunWorker, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    job = queue.enqueue(f.nothing)
    queue.connection.set("rq:wip:q", "of another type")
    async with run_worker(**PLAIN):
        await until(lambda: reply("cannot be started" in caplog.text))
        queue.connection.delete("rq:wip:q")
        await until(lambda: reply(job.is_finished))


@pytest.mark.parametrize("strategy", ["default", "round_robin"])
async def test_a_queue_of_another_type_loses_no_jobs_of_the_others(
    queue: Queue, run_worker: RunWorker, until: Until, *, strategy: str
) -> None:
    client = queue.connection
    jobs = [queue.enqueue(f.nothing) for _ in range(3)]
    due = Queue("broken", connection=client).enqueue_in(timedelta(0), f.nothing, job_id="due")
    client.set("rq:queue:broken", "of another type")
    async with run_worker(**PLAIN, queues=["q", "broken"]) as worker:
        worker.dequeue_strategy = strategy  # type: ignore[assignment]  # an enum of strings
        await until(lambda: reply(all(job.is_finished for job in jobs)))
        assert client.zscore("rq:scheduled:broken", "due") is not None
        client.delete("rq:queue:broken")
        await until(lambda: reply(due.is_finished))


# ids that stand twice


@pytest.mark.parametrize("max_jobs", [1, 8])
async def test_an_id_that_stands_in_its_queue_twice_runs_once(
    queue: Queue, run_worker: RunWorker, until: Until, *, max_jobs: int
) -> None:
    """Its record was deleted, as WITHDRAW does, and it was enqueued anew."""
    client = queue.connection
    queue.enqueue(f.nothing, job_id="twice")
    client.delete("rq:job:twice")
    twice = queue.enqueue(f.nothing, job_id="twice")
    last = queue.enqueue(f.nothing)
    async with run_worker(**PLAIN, max_jobs=max_jobs):
        await until(lambda: reply(twice.is_finished and last.is_finished))
    assert client.xlen("rq:results:twice") == 1
    assert_no_run_is_recorded(client)


async def test_a_job_that_is_said_to_run_and_does_not_is_started(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    job = queue.enqueue(f.nothing)
    job.set_status(JobStatus.STARTED)
    async with run_worker(**PLAIN):
        await until(lambda: reply(job.is_finished))


# a full Redis


async def test_a_full_redis_takes_heartbeats_due_jobs_and_jobs_of_lost_workers(
    client: redis.Redis, own_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    queue = Queue("q", connection=client)
    queue.enqueue(f.tell_and_wait, job_id="running")
    async with run_worker(**PLAIN, url=own_redis.url, lease_seconds=1.5):
        await until(lambda: reply(client.llen("test:started")))
        lost = queue.enqueue(f.nothing, job_id="lost")
        due = queue.enqueue_at(datetime.now(UTC) + timedelta(seconds=1), f.nothing, job_id="due")
        lose_worker(queue, "lost")
        client.config_set("maxmemory", 1)
        (member,) = [each for each in client.zrange("rq:wip:q", 0, -1) if each.startswith(b"running")]
        lease = client.zscore("rq:wip:q", member)
        assert isinstance(lease, float)
        await until(lambda: reply((client.zscore("rq:wip:q", member) or 0) > lease + 1))
        await until(lambda: reply(not client.exists("rq:scheduled:q") and client.zcard("rq:wip:q") == 1))
        client.config_set("maxmemory", 0)
        await until(lambda: reply(lost.is_finished and due.is_finished))
        assert place_of(client, "running") == ["started", "wip"]


# due jobs


@pytest.mark.parametrize("is_stock", [False, True])
async def test_due_jobs_go_to_the_front_where_they_ask_for_it(
    queue: Queue, run_worker: RunWorker, until: Until, *, is_stock: bool
) -> None:
    client, past = queue.connection, datetime.now(UTC) - timedelta(seconds=1)
    queue.enqueue(f.nothing, job_id="waiting")
    queue.enqueue_at(past, f.nothing, job_id="front", at_front=True)
    queue.enqueue_at(past + timedelta(seconds=0.5), f.nothing, job_id="back")
    queue.enqueue_at(past, f.nothing, job_id="tried", retry=RQRetry(max=3, enqueue_at_front=True))
    queue.enqueue_at(past, f.nothing, job_id="untried", retry=RQRetry(max=3, enqueue_at_front=True))
    client.hset("rq:job:tried", "ended_at", "2026-01-01T00:00:00.000000Z")
    if is_stock:
        scheduler = RQScheduler(["q"], connection=client)
        scheduler.acquire_locks()
        scheduler.enqueue_scheduled_jobs()
    else:
        client.set("rq:suspended", 1)
        async with run_worker(**PLAIN):
            await until(lambda: reply(not client.exists("rq:scheduled:q")))
    places = client.lrange("rq:queue:q", 0, -1)
    assert set(places[:2]) == {b"front", b"tried"}
    assert places[2] == b"waiting"
    assert set(places[3:]) == {b"untried", b"back"}


async def test_a_due_job_waits_for_a_slot_of_its_rate_limit(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    client, limit = queue.connection, RateLimit("r", 1)
    queue.enqueue(f.tell_and_wait_in_thread, job_id="one", rate_limit=limit)
    async with run_worker(**PLAIN) as worker:
        await until(lambda: reply(client.llen("test:started")))
        later = queue.enqueue_at(datetime.now(UTC), f.nothing, job_id="two", rate_limit=limit)
        await until(lambda: reply(not client.exists("rq:scheduled:q")))
        assert place_of(client, "two") == ["rate_limited"]
        assert worker.running
        assert client.zrange("rq:rl:r:rate_limited", 0, -1) == [b"two"]
        client.rpush("test:go", "go")
        await until(lambda: reply(later.is_finished))
        await until(lambda: reply(not client.exists("rq:rl:r:allowed")))


# endings


@pytest.mark.parametrize("spoilt", [10**17, 3.5, float("inf"), timedelta(hours=1)])
async def test_an_odd_life_of_a_result_harms_no_other_job(
    queue: Queue, run_worker: RunWorker, until: Until, *, spoilt: Any
) -> None:
    client = queue.connection
    for _ in range(4):
        queue.enqueue(f.nothing)
    odd = queue.enqueue(f.spoil_result_ttl, spoilt, job_id="odd")
    async with run_worker(**PLAIN) as worker:
        await until(lambda: reply(not worker.running and not queue.count))
        assert client.zcard("rq:finished:q") + client.zcard("rq:failed:q") == 5
        assert client.scard(f"{worker.key}:executions") == 0
        assert int(client.hget(worker.key, "successful_job_count") or 0) == client.zcard("rq:finished:q")
    assert odd.is_failed if isinstance(spoilt, timedelta) else odd.is_finished
    assert client.ttl("rq:job:odd") > 0
    assert_no_run_is_recorded(client)


async def test_a_key_of_another_type_makes_way_for_the_results(
    queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    job = queue.enqueue(f.add, 1, job_id="one")
    queue.connection.set("rq:results:one", "of another type")
    async with run_worker(**PLAIN):
        await until(lambda: reply(job.is_finished))
    assert job.return_value() == 2


async def test_an_ending_that_cannot_be_written_fails_its_job_alone(
    client: redis.Redis, own_redis: EmbeddedRedis, run_worker: RunWorker, until: Until
) -> None:
    """As far as Redis lets anybody say so."""
    queue = Queue("q", connection=client)
    job = queue.enqueue(f.tell_and_wait_in_thread, job_id="one")
    client.set("rq:finished:q", "of another type")
    async with run_worker(**PLAIN, url=own_redis.url) as worker:
        client.rpush("test:go", "go")
        await until(lambda: reply(job.is_failed and not worker.running))
    assert place_of_failed(client) == [b"one"]
    assert_no_run_is_recorded(client)


def place_of_failed(client: redis.Redis) -> list[bytes]:
    found: list[bytes] = client.zrange("rq:failed:q", 0, -1)
    return found


async def test_arqs_retry_counts_though_the_job_has_been_looked_at(
    pool: ArqRedis, run_worker: RunWorker, sync_redis: redis.Redis, until: Until
) -> None:
    await pool.enqueue_job("arq_retry_after_a_look", _job_id="one")
    sync_redis.hset("rq:job:one", mapping={"number_of_retries": 1, "job_try": 1})
    async with run_worker(functions=[f.arq_retry_after_a_look]):
        await until(lambda: reply(place_of(sync_redis, "one") == ["scheduled", "scheduled"]))
    assert sync_redis.hmget("rq:job:one", "number_of_retries", "job_try", "worker_name") == [b"2", b"2", b""]
