"""What Redis holds after a job: the same whether RQ's `SimpleWorker` ran it or `AsyncWorker`."""

import asyncio
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import pytest
import redis
from rq import Callback, Queue, Repeat, Retry
from rq.exceptions import DuplicateJobError
from rq.group import Group
from rq.job import Dependency, Job
from rq.rate_limit import RateLimit
from rq.serializers import JSONSerializer
from rq.webhook import Webhook
from rq.worker import SimpleWorker
from rq.worker import Worker as ForkingWorker

from app.embedded import EmbeddedRedis
from app.jobs import AsyncWorker, RedisSettings
from tests.jobs import rq_functions as f
from tests.jobs.redis_snapshot import About, look, look_async, snapshot, taken_look


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant: in which cases (a pattern), where (a key, or key and field), and why."""

    cases: str
    where: str
    why: str


ALLOWED = (
    Allowed("*", "rq:scheduler-lock:q", "AsyncWorker moves due jobs itself, and keeps stock schedulers from it"),
    Allowed(
        "hash_that_is_gone",
        "rq:queue:q:intermediate",
        "stock leaves the id of a job that is gone there until a clean-up; AsyncWorker has no need of that list",
    ),
    Allowed(
        "stopped*",
        "rq:job:one ended_at|last_heartbeat|worker_name",
        "the parent of a stock work horse overwrites what the horse wrote with what it knew before",
    ),
    Allowed("killed_horse*", "rq:job:one last_heartbeat|worker_name", "the same"),
    Allowed(
        "dependent_of_two",
        "rq:job:parent0:dependents|rq:job:parent1:dependents",
        "both parents run at once; the one that ends first forgets its dependent",
    ),
    Allowed("stopped*", "rq:results:one execution_ended_at#0", "the same: the parent knows no end"),
    Allowed("stopped*", "rq:worker:w total_working_time", "the same: without an end, no time is counted"),
    Allowed(
        "exit_of_the_process",
        "rq:results:one exc_string#0",
        "a SystemExit ends that job, not the loop that all jobs share, so it is wrapped; it stands above as cause",
    ),
    Allowed(
        "timeout*", "rq:results:one exc_string#0", "a class of our own raises it; RQ's text is tested in interop"
    ),
    Allowed("unknown_*", "rq:results:one exc_string#0", "arq's words for a function that is not there"),
    Allowed(
        "job_that_*_itself",
        "rq:finished:q|rq:job:one|rq:results:one",
        "a job that was deleted or cancelled while it ran stays deleted or cancelled; stock writes it anew",
    ),
    Allowed("job_that_*_itself", "rq:job:one ended_at|status|ttl", "the same"),
    Allowed("job_that_*_itself", "rq:worker:w successful_job_count|total_working_time", "the same: not counted"),
    Allowed(
        "while it runs",
        "rq:clean_groups|rq:clean_registries:q",
        "AsyncWorker runs RQ's maintenance beside the jobs, stock before the first",
    ),
    Allowed(
        "while it runs",
        "rq:worker:w ttl",
        "a worker of many jobs is not known for as long as one of them may run, but for worker_ttl, as an idle one",
    ),
    Allowed(
        "hundreds_at_once",
        "rq:worker:w total_working_time",
        "the jobs wait for each other, and all wait is counted",
    ),
    Allowed("while it runs", "rq:worker:w:executions ttl", "a lease and a minute: it outlives what it names"),
)
"""Every difference that a test may find. All others are faults."""


@dataclass(frozen=True)
class Case:
    """Jobs to enqueue, and how both workers are made. `stock` runs them first."""

    enqueue: Callable[[Queue], Any]
    stock: type = SimpleWorker
    options: dict[str, Any] = field(default_factory=dict)
    queues: tuple[str, ...] = ("q",)
    ours: dict[str, Any] = field(default_factory=dict)
    serializer: Any = None


def _with(**options: Any) -> Callable[[Queue], Any]:
    function = options.pop("function", f.add)
    args = options.pop("args", (1, 2) if function is f.add else ())
    return lambda queue: queue.enqueue(function, *args, job_id="one", **options)


def _chain(first: Any, result_ttl: int | None = None, **dependency: Any) -> Callable[[Queue], None]:
    def enqueue(queue: Queue) -> None:
        job = queue.enqueue(first, job_id="one", result_ttl=result_ttl)
        queue.enqueue(f.add, 1, job_id="two", depends_on=Dependency([job], **dependency))

    return enqueue


def _two_parents(queue: Queue) -> None:
    parents = [queue.enqueue(f.add, n, job_id=f"parent{n}") for n in range(2)]
    queue.enqueue(f.add, 1, job_id="child", depends_on=parents)


def _group(queue: Queue) -> None:
    Group.create(queue.connection, "g").enqueue_many(
        queue, [Queue.prepare_data(f.add, (n,), job_id=f"g{n}") for n in range(3)]
    )


def _rate_limited(function: Any) -> Callable[[Queue], None]:
    def enqueue(queue: Queue) -> None:
        for number in range(3):
            queue.enqueue(function, job_id=f"limited{number}", rate_limit=RateLimit("r", 1))

    return enqueue


def _unique(queue: Queue) -> None:
    queue.enqueue(f.add, 1, job_id="one", unique=True)
    with suppress(DuplicateJobError):
        queue.enqueue(f.add, 2, job_id="one", unique=True)


def _requeued(queue: Queue) -> None:
    """A job that failed before and was requeued."""
    job = queue.enqueue(f.fail_once, job_id="one")
    queue.connection.lpop(queue.key)
    job.failed_job_registry.add(job)
    job.set_status("failed")
    job.requeue()


def _without_hash(queue: Queue) -> None:
    queue.enqueue(f.add, 1, job_id="gone")
    queue.connection.delete(Job.key_for("gone"))
    queue.enqueue(f.add, 1, job_id="one")


def _unreadable(queue: Queue) -> None:
    queue.enqueue(f.add, 1, job_id="one")
    queue.connection.hset(Job.key_for("one"), "data", zlib.compress(b"no pickle"))


def _canceled(queue: Queue) -> None:
    queue.enqueue(f.add, 1, job_id="one").cancel()
    queue.enqueue(f.add, 1, job_id="two")


def _at_front(queue: Queue) -> None:
    queue.enqueue(f.add, 1, job_id="one")
    queue.enqueue(f.add, 2, job_id="two", at_front=True)


def _several_queues(queue: Queue) -> None:
    low = Queue("low", connection=queue.connection)
    first = low.enqueue(f.add, 1, job_id="one")
    low.enqueue(f.fail, job_id="two")
    queue.enqueue(f.add, 2, job_id="three", depends_on=first)
    queue.enqueue(f.add, 3, job_id="four")


def _hundreds(queue: Queue) -> None:
    """More than settle in one batch, of several kinds."""
    for number in range(200):
        function = (f.add_async, f.add, f.fail_async, f.add_meta_async)[number % 4]
        args = [] if function is f.add_meta_async else ["1"] if function is f.fail_async else [number]
        ttl = {"result_ttl": (-1, 900, None)[number % 3], "failure_ttl": (-1, 900, None)[number % 3]}
        queue.enqueue(function, *args, job_id=f"n{number}", **ttl)


SUCCESS = Callback(f.note_success)
FAILURE = Callback(f.note_failure)
BROKEN = Callback(f.break_callback)
CASES: dict[str, Case] = {
    "success": Case(_with()),
    "success_of_a_coroutine": Case(_with(function=f.add_async, args=(1, 2))),
    "none_as_result": Case(_with(function=f.nothing)),
    "keyword_arguments": Case(_with(args=(1,), right=5)),
    "function_by_path": Case(_with(function="tests.jobs.rq_functions.add", args=(1,))),
    "method_of_an_instance": Case(_with(function=f.Counter(3).plus, args=(1,))),
    "callable_instance": Case(_with(function=f.Counter(3), args=(2,))),
    "static_method": Case(_with(function=f.Counter.twice, args=(2,))),
    "builtin": Case(_with(function=len, args=("four",))),
    "failure": Case(_with(function=f.fail)),
    "failure_of_a_coroutine": Case(_with(function=f.fail_async)),
    "failure_with_a_cause": Case(_with(function=f.fail_with_a_cause)),
    "failure_in_another_alphabet": Case(_with(function=f.fail, args=("Ünïcödé ✓",))),
    "exit_of_the_process": Case(_with(function=f.exit_process)),
    "unserializable_result": Case(_with(function=f.unserializable)),
    "result_ttl_0": Case(_with(result_ttl=0)),
    "result_ttl_forever": Case(_with(result_ttl=-1)),
    "result_ttl_1000": Case(_with(result_ttl=1000)),
    "result_ttl_of_the_worker": Case(_with(), options={"default_result_ttl": 200}),
    "result_ttl_0_of_the_worker": Case(_with(), options={"default_result_ttl": 0}),
    "result_ttl_0_of_a_failure": Case(_with(function=f.fail, result_ttl=0)),
    "failure_ttl_0": Case(_with(function=f.fail, failure_ttl=0)),
    "failure_ttl_forever": Case(_with(function=f.fail, failure_ttl=-1)),
    "failure_ttl_700": Case(_with(function=f.fail, failure_ttl=700)),
    "ttl_of_the_job": Case(_with(ttl=900)),
    "meta": Case(_with(meta={"kept": 1})),
    "meta_changed_by_the_job": Case(_with(function=f.add_meta, meta={"kept": 1})),
    "meta_changed_by_a_coroutine": Case(_with(function=f.add_meta_async)),
    "meta_changed_but_not_saved": Case(_with(function=f.change_meta_only, meta={"kept": 1})),
    "ttl_changed_by_the_job": Case(_with(function=f.change_ttls)),
    "description": Case(_with(description="says what it does")),
    "description_changed_by_the_job": Case(_with(function=f.describe_anew)),
    "job_that_deletes_itself": Case(_with(function=f.delete_itself)),
    "job_that_cancels_itself": Case(_with(function=f.cancel_itself)),
    "job_that_enqueues_another": Case(_with(function=f.enqueue_another, args=("two",))),
    "retry_until_it_fails": Case(_with(function=f.fail, retry=Retry(max=2))),
    "retry_until_it_works": Case(_with(function=f.fail_once, retry=Retry(max=2))),
    "retry_that_is_not_needed": Case(_with(retry=Retry(max=2))),
    "retry_later": Case(_with(function=f.fail, retry=Retry(max=2, interval=[60, 120]))),
    "retry_at_the_front": Case(_with(function=f.fail_once, retry=Retry(max=2, enqueue_at_front=True))),
    "retry_as_value": Case(_with(function=f.ask_again_once)),
    "retry_as_value_until_too_many": Case(_with(function=f.ask_again, args=(2,))),
    "retry_as_value_later": Case(_with(function=f.ask_again, args=(2, 60))),
    "retry_with_failure_ttl": Case(_with(function=f.ask_again_once, failure_ttl=800)),
    "dependent": Case(_chain(f.nothing)),
    "dependent_of_a_result_that_is_not_kept": Case(_chain(f.nothing, result_ttl=0)),
    "dependent_of_a_failure": Case(_chain(f.fail)),
    "dependent_that_allows_failure": Case(_chain(f.fail, allow_failure=True)),
    "dependent_at_the_front": Case(_chain(f.nothing, enqueue_at_front=True)),
    "dependent_of_two": Case(_two_parents),
    "success_callback": Case(_with(on_success=SUCCESS, on_failure=FAILURE)),
    "success_callback_by_path": Case(_with(on_success=Callback("tests.jobs.rq_functions.note_success", timeout=9))),
    "failure_callback": Case(_with(function=f.fail, on_success=SUCCESS, on_failure=FAILURE)),
    "broken_success_callback": Case(_with(on_success=BROKEN)),
    "broken_success_callback_noted": Case(_with(on_success=BROKEN, on_failure=FAILURE)),
    "broken_failure_callback": Case(_with(function=f.fail, on_failure=BROKEN)),
    "unknown_callback": Case(_with(on_success=Callback("tests.jobs.rq_functions.missing"))),
    "failure_callback_at_each_try": Case(_with(function=f.fail, on_failure=FAILURE, retry=Retry(max=1))),
    "callback_of_a_result_that_is_not_kept": Case(_with(on_success=SUCCESS, result_ttl=0)),
    "stopped": Case(_with(function=f.stop_itself), stock=ForkingWorker),
    "stopped_callback": Case(
        _with(function=f.stop_itself, on_stopped=Callback(f.note_stopped)), stock=ForkingWorker
    ),
    "stopped_is_not_tried_again": Case(_with(function=f.stop_itself, retry=Retry(max=3)), stock=ForkingWorker),
    "killed_horse": Case(_with(function=f.kill_horse), stock=ForkingWorker),
    "killed_horse_is_tried_again": Case(
        _with(function=f.kill_horse, retry=Retry(max=1, interval=60)), stock=ForkingWorker
    ),
    "repeat": Case(_with(repeat=Repeat(times=2))),
    "repeat_later": Case(_with(repeat=Repeat(times=2, interval=[60, 90]))),
    "repeat_of_a_failure": Case(_with(function=f.fail, repeat=Repeat(times=2))),
    "group": Case(_group),
    "rate_limit": Case(_rate_limited(f.nothing)),
    "rate_limit_of_failures": Case(_rate_limited(f.fail)),
    "unique": Case(_unique),
    "several_queues": Case(_several_queues, queues=("q", "low")),
    "hundreds": Case(_hundreds),
    "hundreds_at_once": Case(_hundreds, ours={"max_jobs": 100}),
    "requeued": Case(_requeued),
    "at_front": Case(_at_front),
    "canceled_before": Case(_canceled),
    "exception_handler": Case(_with(function=f.fail), options={"exception_handlers": [f.note_in_handler]}),
    "exception_handlers_that_end": Case(
        _with(function=f.fail), options={"exception_handlers": [f.end_handling, f.note_in_handler]}
    ),
    "no_default_handler": Case(
        _with(function=f.fail),
        options={"exception_handlers": [f.note_in_handler], "disable_default_exception_handler": True},
    ),
    "timeout": Case(_with(function=f.too_long, job_timeout=1)),
    "timeout_of_a_coroutine": Case(_with(function=f.too_long_async, job_timeout=1)),
    "no_timeout": Case(_with(job_timeout=-1)),
    "unknown_function": Case(_with(function="tests.jobs.rq_functions.missing")),
    "unknown_module": Case(_with(function="nowhere.to_be.found")),
    "wrong_arguments": Case(_with(args=(1, 2, 3))),
    "unreadable_body": Case(_unreadable),
    "hash_that_is_gone": Case(_without_hash),
    "webhook_that_nobody_hears": Case(_with(webhooks=[Webhook("http://127.0.0.1:9/", "finished", timeout=1)])),
    "json": Case(_with(), serializer=JSONSerializer),
    "json_failure": Case(_with(function=f.fail), serializer=JSONSerializer),
    "json_unserializable_result": Case(_with(function=f.unserializable), serializer=JSONSerializer),
    "json_retry": Case(_with(function=f.fail, retry=Retry(max=2)), serializer=JSONSerializer),
    "json_meta": Case(_with(function=f.add_meta, meta={"kept": 1}), serializer=JSONSerializer),
    "json_dependent": Case(_chain(f.nothing), serializer=JSONSerializer),
}


@pytest.fixture
def client(redis_server: EmbeddedRedis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client
        client.flushall()


@pytest.mark.parametrize("name", CASES)
def test_the_same_is_left_as_by_a_stock_worker(name: str, client: redis.Redis, redis_server: EmbeddedRedis) -> None:
    case = CASES[name]
    run_stock(case, client)
    stock = snapshot(client)
    client.flushall()
    run_ours(case, client, redis_server.url)
    found = differences(stock, snapshot(client), name)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("function", [look, look_async])
def test_the_same_is_there_while_a_job_runs(
    function: Callable[..., Any], client: redis.Redis, redis_server: EmbeddedRedis
) -> None:
    case = Case(_with(function=function, job_timeout=100))
    run_stock(case, client)
    stock = taken_look()
    client.flushall()
    run_ours(case, client, redis_server.url, lease_seconds=160)  # RQ's: the job's timeout and a minute
    found = differences(stock, taken_look(), "while it runs")
    assert not found, "\n" + "\n".join(found)


def run_stock(case: Case, client: redis.Redis) -> None:
    case.enqueue(Queue("q", connection=client, serializer=case.serializer))
    worker = case.stock(case.queues, name="w", connection=client, serializer=case.serializer, **case.options)
    worker.work(burst=True)


def run_ours(case: Case, client: redis.Redis, url: str, **options: Any) -> None:
    case.enqueue(Queue("q", connection=client, serializer=case.serializer))
    settings = RedisSettings.from_dsn(url)
    options |= case.options | case.ours
    worker = AsyncWorker(case.queues, name="w", redis_settings=settings, serializer=case.serializer, **options)
    with asyncio.Runner() as runner:
        runner.run(asyncio.wait_for(worker.run(burst=True), 30))


def differences(stock: dict[str, Any], ours: dict[str, Any], case: str = "") -> list[str]:
    """What is not the same and not allowed, a line each."""
    found = []
    for key in sorted(stock.keys() | ours.keys()):
        left, right = stock.get(key), ours.get(key)
        if left is None or right is None:
            if not is_allowed(case, key):
                found.append(f"{key}: {'only stock has' if left else 'only AsyncWorker has'} {left or right}")
            continue
        for name in sorted(left.keys() | right.keys()):
            here, there = left.get(name), right.get(name)
            if here != there and not is_allowed(case, key, name):
                found.append(f"{key} {name}: stock {here!r}, AsyncWorker {there!r}")
    return found


def is_allowed(case: str, key: str, name: str | None = None) -> bool:
    """Whether the table allows a key to be there or not, or a field of it to differ."""
    for each in ALLOWED:
        if not fnmatch(case, each.cases):
            continue
        allowed_key, _, names = each.where.partition(" ")
        if name is None and not names and key in allowed_key.split("|"):
            return True
        if name is not None and key == allowed_key and name in names.split("|"):
            return True
    return False


def test_two_snapshots_of_different_jobs_differ(client: redis.Redis) -> None:
    """The comparison itself: it sees a field, a score, a life and a key."""
    queue = Queue("q", connection=client)
    queue.enqueue(f.add, 1, job_id="one")
    before = snapshot(client)
    assert differences(before, snapshot(client)) == []
    client.hset("rq:job:one", "extra", "1")
    assert differences(before, snapshot(client)) == ["rq:job:one extra: stock None, AsyncWorker b'1'"]
    client.hdel("rq:job:one", "extra")
    client.expire("rq:job:one", 10)
    assert len(differences(before, snapshot(client))) == 1
    client.persist("rq:job:one")
    client.delete("rq:queues")
    assert differences(before, snapshot(client))[0].startswith("rq:queues: only stock has")
    client.zadd("rq:finished:q", {"one": time.time() + 60})
    assert snapshot(client)["rq:finished:q"]["one"] == About(60)
    assert snapshot(client)["rq:finished:q"]["one"] != About(90)
