"""arq's documented examples, as written, with the import changed."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlparse

import pytest

from app.jobs import (
    ArqRedis,
    FailedJobs,
    Job,
    JobStatus,
    RedisSettings,
    ResultNotFound,
    Worker,
    check_health,
    create_pool,
    create_worker,
    run_worker,
)
from tests.jobs.arq_examples import (
    cron,
    custom_serialization_msgpack,
    deferred,
    job_abort,
    job_ids,
    job_results,
    main_demo,
    retry,
    slow_job,
    sync_job,
)

# ruff: noqa: DTZ001, DTZ005 - the examples' times are naive
EXAMPLES = (custom_serialization_msgpack, deferred, job_abort, job_ids, job_results, main_demo, retry, slow_job)


@pytest.fixture(autouse=True)
async def pools_are_closed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The examples leave that to the end of their process."""
    pools: list[ArqRedis] = []

    async def create(*args: Any, **options: Any) -> ArqRedis:
        pools.append(await create_pool(*args, **options))
        return pools[-1]

    for example in EXAMPLES:
        monkeypatch.setattr(example, "create_pool", create)
    yield
    for pool in pools:
        await pool.aclose()


@pytest.fixture(autouse=True)
def redis_where_the_examples_expect_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They connect to localhost:6379, which may be somebody's; the default leads to the test's Redis instead."""
    defaults = list(RedisSettings.__init__.__defaults__ or ())
    defaults[2] = urlparse(redis_url).path
    assert RedisSettings().unix_socket_path is None
    monkeypatch.setattr(RedisSettings.__init__, "__defaults__", tuple(defaults))
    monkeypatch.setattr(main_demo, "REDIS_SETTINGS", RedisSettings())
    monkeypatch.setattr(main_demo.WorkerSettings, "redis_settings", main_demo.REDIS_SETTINGS)


@pytest.fixture
async def pool() -> Any:
    pool = await create_pool()
    yield pool
    await pool.aclose()


class _Site(BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = b"hello" * 10
        self.send_response(503 if self.path == "/status/503" and self.asked < 3 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def site() -> Iterator[str]:
    _Site.asked = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def run_to_the_end(settings: Any, **options: Any) -> Worker:
    worker = create_worker(settings, burst=True, poll_delay=0.01, handle_signals=False, **options)
    try:
        await worker.async_run()
    finally:
        await worker.close()
    return worker


async def test_main_demo(pool: ArqRedis, site: str, capsys: pytest.CaptureFixture[str]) -> None:
    await main_demo.main()
    queued = await pool.queued_jobs()
    assert [each.function for each in queued] == ["download_content"] * 3
    assert {each.args for each in queued} == {
        ("https://facebook.com",),
        ("https://microsoft.com",),
        ("https://github.com",),
    }
    await pool.flushdb()  # there is no such net here
    job = await pool.enqueue_job("download_content", site)
    assert job is not None
    worker = await run_to_the_end(main_demo.WorkerSettings)
    assert (worker.jobs_complete, worker.jobs_failed) == (1, 0)
    assert await job.result(timeout=5) == 50
    assert f"{site}: hellohello" in capsys.readouterr().out


def test_main_demo_by_the_workers_own_loop(site: str) -> None:
    async def enqueue() -> None:
        pool = await create_pool()
        await pool.enqueue_job("download_content", site)
        await pool.aclose()

    asyncio.run(enqueue())
    worker = run_worker(main_demo.WorkerSettings, burst=True)
    assert repr(worker) == "<Worker j_complete=1 j_failed=0 j_retried=0 j_ongoing=0>"


async def test_retry(pool: ArqRedis, site: str) -> None:
    job = await pool.enqueue_job("download_content", f"{site}/status/503")
    assert job is not None
    worker = create_worker(retry.WorkerSettings, poll_delay=0.01, handle_signals=False)
    running = asyncio.ensure_future(worker.async_run())
    async with asyncio.timeout(20):
        while await job.status() is not JobStatus.deferred:
            await asyncio.sleep(0.01)
        due = (await job.info()).score / 1000  # type: ignore[union-attr]
        assert 4 < due - datetime.now().timestamp() <= 5.1
        # nobody wants to wait for 15 s
        for _ in range(2):
            while not await pool.zcard("rq:scheduled:arq:queue") and await job.status() is not JobStatus.complete:
                await asyncio.sleep(0.01)
            await pool.zadd("rq:scheduled:arq:queue", {job.job_id: 1}, xx=True)
        assert await job.result() == 50
    assert worker.jobs_retried == 2
    info = await job.result_info()
    assert info is not None
    assert info.job_try == 3
    worker.handle_sig(signal.SIGINT)
    with pytest.raises(asyncio.CancelledError):
        await running
    await worker.close()


async def test_deferred(pool: ArqRedis) -> None:
    await deferred.main()
    first, second, third = await pool.queued_jobs()
    here = datetime.now().timestamp()
    assert first.score is not None
    assert second.score is not None
    assert first.score / 1000 - here == pytest.approx(10, abs=2)
    assert second.score / 1000 - here == pytest.approx(60, abs=2)
    assert third.score == datetime(2032, 1, 28).timestamp() * 1000
    assert await Job(first.job_id, pool).status() is JobStatus.deferred


async def test_job_abort(pool: ArqRedis) -> None:
    worker = create_worker(job_abort.WorkerSettings, handle_signals=False)
    running = asyncio.ensure_future(worker.async_run())
    async with asyncio.timeout(20):
        await job_abort.main()
    assert worker.jobs_failed == 1
    results = await pool.all_job_results()
    assert [(each.success, type(each.result)) for each in results] == [(False, asyncio.CancelledError)]
    worker.handle_sig(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await running
    await worker.close()


async def test_job_ids(pool: ArqRedis, capsys: pytest.CaptureFixture[str]) -> None:
    await job_ids.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("<arq job ")
    assert lines[0] != lines[1]
    assert lines[2:] == ["<arq job foobar>", "None", "<arq job my_job>"]
    worker = await run_to_the_end(job_ids.WorkerSettings)
    assert worker.jobs_complete == 4
    assert "running the task with id foobar" in capsys.readouterr().out


async def test_job_results(pool: ArqRedis, capsys: pytest.CaptureFixture[str]) -> None:
    worker = create_worker(job_results.WorkerSettings, handle_signals=False)
    running = asyncio.ensure_future(worker.async_run())
    await job_results.main()
    out = capsys.readouterr().out
    assert "function='the_task'" in out
    assert out.rstrip().endswith("42")
    assert check_health_in_a_thread is not None
    worker.handle_sig(signal.SIGTERM)
    with pytest.raises(asyncio.CancelledError):
        await running
    await worker.close()


async def test_slow_job_is_cancelled_by_a_signal_and_runs_again(pool: ArqRedis) -> None:
    await slow_job.main()
    worker = create_worker(slow_job.WorkerSettings, handle_signals=False)
    running = asyncio.ensure_future(worker.async_run())
    async with asyncio.timeout(20):
        while not (jobs := await pool.queued_jobs()) or await Job(jobs[0].job_id, pool).status() is not (
            JobStatus.in_progress
        ):
            await asyncio.sleep(0.01)
        worker.handle_sig(signal.SIGINT)
        with pytest.raises(asyncio.CancelledError):
            await running
        await worker.close()
    assert worker.jobs_retried == 1
    job = Job(jobs[0].job_id, pool)
    assert await job.status() is JobStatus.queued
    info = await job.info()
    assert info is not None
    assert info.job_try == 2


async def test_sync_job(pool: ArqRedis) -> None:
    await pool.enqueue_job("the_task", 0.01)
    contexts: list[dict[str, Any]] = []

    async def shut_the_pool(ctx: dict[str, Any]) -> None:
        contexts.append(ctx)
        ctx["pool"].shutdown()

    worker = await run_to_the_end(sync_job.WorkerSettings, on_shutdown=shut_the_pool)
    assert worker.jobs_complete == 1
    assert len(contexts) == 1


async def test_custom_serialization(pool: ArqRedis) -> None:
    await custom_serialization_msgpack.main()
    worker = await run_to_the_end(custom_serialization_msgpack.WorkerSettings)
    assert worker.jobs_complete == 1
    await pool.flushdb()
    await custom_serialization_msgpack.main()
    with pytest.raises(FailedJobs):
        await _run_check(Worker([custom_serialization_msgpack.the_task], burst=True, handle_signals=False))


async def _run_check(worker: Worker) -> int:
    try:
        return await worker.run_check()
    finally:
        await worker.close()


def test_cron() -> None:
    [job] = cron.WorkerSettings.cron_jobs
    job.calculate_next(datetime(2026, 11, 23, 9, 12, 30))
    assert job.next_run == datetime(2026, 11, 23, 12, 12, 0, 123_456)
    assert job.name == "cron:run_regularly"


async def test_a_cron_job_runs_once_for_two_workers(pool: ArqRedis) -> None:
    ran: list[str] = []

    async def tick(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    async def until_two_have_run() -> None:
        async with asyncio.timeout(20):
            while len(ran) < 2:
                await asyncio.sleep(0.01)

    from app.jobs import cron as cron_job  # noqa: PLC0415 - the example has taken the name

    workers = [
        Worker(cron_jobs=[cron_job(tick, second=None, name="tick")], handle_signals=False, poll_delay=0.05)
        for _ in range(2)
    ]
    running = [asyncio.ensure_future(each.async_run()) for each in workers]
    await until_two_have_run()
    for worker in workers:
        await worker.close()
    for task in running:
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(set(ran)) == len(ran)
    assert all(each.startswith("tick:") for each in ran)
    assert await pool.zrange("rq:cron_jobs", 0, -1) == [b"tick"]
    assert await pool.zcard("rq:cron_job:tick:jobs") >= 2


def check_health_in_a_thread() -> int:
    return check_health(slow_job.WorkerSettings)


async def test_health_is_recorded_and_ends_with_the_worker(pool: ArqRedis) -> None:
    assert await asyncio.to_thread(check_health_in_a_thread) == 1
    worker = create_worker(slow_job.WorkerSettings, handle_signals=False)
    running = asyncio.ensure_future(worker.async_run())
    async with asyncio.timeout(20):
        while not (line := await pool.get("arq:queue:health-check")):
            await asyncio.sleep(0.01)
    assert line.decode().endswith("j_complete=0 j_failed=0 j_retried=0 j_ongoing=0 queued=0")
    assert await asyncio.to_thread(check_health_in_a_thread) == 0
    assert 3500 < await pool.ttl("arq:queue:health-check") <= 3601
    await worker.close()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await asyncio.to_thread(check_health_in_a_thread) == 1


async def test_results_raise_the_jobs_own_exception(pool: ArqRedis) -> None:
    class Ours(ValueError):
        pass

    async def fail(ctx: dict[str, Any]) -> None:
        raise KeyError("the cause")

    async def fail_with_a_local_class(ctx: dict[str, Any]) -> None:
        raise Ours("cannot be pickled")

    jobs = [await pool.enqueue_job(name) for name in ("fail", "other", "missing")]
    worker = Worker(
        _named(fail=fail, other=fail_with_a_local_class),
        burst=True,
        handle_signals=False,
        redis_settings=RedisSettings(),
    )
    await worker.async_run()
    await worker.close()
    assert worker.jobs_failed == 3
    with pytest.raises(KeyError, match="the cause"):
        await jobs[0].result()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="Ours: cannot be pickled"):
        await jobs[1].result()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="function 'missing' not found"):
        await jobs[2].result()  # type: ignore[union-attr]
    with pytest.raises(ResultNotFound):
        await Job("nobody", pool).result()


def _named(**functions: Callable[..., Any]) -> list[Any]:
    from app.jobs import func  # noqa: PLC0415 - only here

    return [func(function, name=name) for name, function in functions.items()]


async def test_an_expired_job_fails_instead_of_running(pool: ArqRedis) -> None:
    ran: list[int] = []

    async def task(ctx: dict[str, Any]) -> None:
        ran.append(1)

    job = await pool.enqueue_job("task", _expires=timedelta(milliseconds=1))
    assert job is not None
    await asyncio.to_thread(_wait_for_the_clock_of, 0.01)
    worker = await run_to_the_end({"functions": _named(task=task)})
    assert (worker.jobs_failed, ran) == (1, [])
    with pytest.raises(RuntimeError, match="job expired"):
        await job.result()


def _wait_for_the_clock_of(seconds: float) -> None:
    until = datetime.now().timestamp() + seconds
    while datetime.now().timestamp() < until:
        pass


async def test_run_number_max_tries_and_one_does_not_start(pool: ArqRedis) -> None:
    from app.jobs import Retry  # noqa: PLC0415 - only here

    tries: list[int] = []

    async def again(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])
        raise Retry

    job = await pool.enqueue_job("again", _job_try=2)
    worker = await run_to_the_end({"functions": _named(again=again)})
    assert tries == [2, 3, 4, 5]
    assert (worker.jobs_retried, worker.jobs_failed) == (4, 1)
    with pytest.raises(RuntimeError, match="max 5 retries exceeded"):
        await job.result()  # type: ignore[union-attr]


async def test_hooks_run_in_order_and_an_error_in_one_ends_the_worker(pool: ArqRedis) -> None:
    order: list[str] = []

    def noted(name: str) -> Callable[[dict[str, Any]], Any]:
        async def hook(ctx: dict[str, Any]) -> None:
            order.append(name)

        return hook

    hooks = {
        name: noted(name) for name in ("on_startup", "on_job_start", "on_job_end", "after_job_end", "on_shutdown")
    }
    await pool.enqueue_job("task")
    await run_to_the_end({"functions": _named(task=noted("job")), **hooks})
    assert order == ["on_startup", "on_job_start", "job", "on_job_end", "after_job_end", "on_shutdown"]

    async def broken(ctx: dict[str, Any]) -> None:
        raise ZeroDivisionError

    await pool.enqueue_job("task")
    with pytest.raises(ZeroDivisionError):
        await run_to_the_end({"functions": _named(task=noted("job")), "on_job_start": broken})


def test_settings_take_only_a_workers_parameters_and_the_classs_own() -> None:
    class Parent:
        max_jobs = 3

    class Settings(Parent):
        functions = _named(x=noop)
        queue_name = "x"
        unknown = 1

    from app.jobs import get_kwargs  # noqa: PLC0415 - only here

    assert set(get_kwargs(Settings)) == {"functions", "queue_name"}
    with pytest.raises(RuntimeError, match="at least one function or cron_job must be registered"):
        Worker()
    with pytest.raises(ValueError, match="queue_name is absent"):
        Worker([noop], queue_name=None)
    with pytest.raises(RuntimeError, match="must be instances of CronJob"):
        Worker(cron_jobs=[noop])  # type: ignore[list-item]


async def noop(ctx: dict[str, Any]) -> None:
    """Nothing."""


class CliSettings:
    """What the command's test names."""

    functions = (noop,)
    burst = True


async def run_command(redis_url: str, *words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app.jobs", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_the_command_says_what_is_wrong(redis_url: str) -> None:
    code, out = await run_command(redis_url, "tests.jobs.nowhere.Settings")
    assert code == 2
    assert "cannot be imported" in out
    code, out = await run_command(redis_url, "--version")
    assert code == 0
    assert "arq 0.28" in out
