"""What RQ's jobs call in these tests; imported by workers in other processes too, stock ones among them."""

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from rq import Retry as RQRetry
from rq import get_current_job
from rq.command import send_kill_horse_command, send_stop_job_command
from rq.job import Job
from rq.timeouts import JobTimeoutException

from app.jobs import Retry


def current() -> Job:
    job = get_current_job()
    assert job is not None
    return job


def connection() -> Redis:
    found = current().connection
    assert isinstance(found, Redis)
    return found


def add(left: int, right: int = 1) -> int:
    return left + right


async def add_async(left: int, right: int = 1) -> int:
    await asyncio.sleep(0)
    return left + right


def nothing() -> None:
    pass


def fail(text: str = "this one fails") -> None:
    raise ValueError(text)


async def fail_async(text: str = "this one fails") -> None:
    await asyncio.sleep(0)
    raise ValueError(text)


def fail_with_a_cause() -> None:
    try:
        fail("the cause")
    except ValueError as exc:
        raise KeyError("the effect") from exc


def fail_once() -> str:
    """Fails the first time that the job runs."""
    if connection().incr(f"test:runs:{current().id}") == 1:
        raise ValueError("only once")
    return "then it works"


def exit_process() -> None:
    sys.exit(3)


def unserializable() -> Any:
    return lambda: None


def ask_again(most: int, interval: int = 0) -> RQRetry:
    return RQRetry(max=most, interval=interval)


def ask_again_once(interval: int = 0) -> Any:
    """Asks to run again the first time that the job runs."""
    if connection().incr(f"test:runs:{current().id}") == 1:
        return RQRetry(max=3, interval=interval)
    return "then it works"


def whoami() -> tuple[str, str | None]:
    return current().id, current().worker_name


async def whoami_async() -> tuple[str, str | None]:
    before = current().id
    await asyncio.sleep(0.01)
    assert current().id == before
    return before, current().worker_name


def add_meta() -> dict[str, Any]:
    job = current()
    job.meta["note"] = "written by the job"
    job.save_meta()
    return job.meta


async def add_meta_async() -> None:
    job = current()
    job.meta["note"] = "written by the job"
    await asyncio.to_thread(job.save_meta)


def change_meta_only() -> None:
    """Changes meta without saving it."""
    current().meta["note"] = "never saved"


def change_ttls() -> None:
    current().result_ttl = 77


def change_what_redis_does_not_take() -> None:
    current().result_ttl = timedelta(hours=1)  # type: ignore[assignment]


def change_what_rq_cannot_write() -> None:
    current().created_at = "yesterday"  # type: ignore[assignment]


def describe_anew() -> None:
    current().description = "changed by the job"


def delete_itself() -> None:
    current().delete()


def cancel_itself() -> None:
    current().cancel()


def enqueue_another(job_id: str) -> None:
    from rq import Queue  # noqa: PLC0415 - only this one needs it

    Queue(current().origin, connection=connection()).enqueue(add, 1, job_id=job_id)


def too_long() -> None:
    """In steps: an exception that is set from another thread is raised between two of them."""
    for _ in range(3000):
        time.sleep(0.01)


async def too_long_async() -> None:
    await asyncio.sleep(30)


async def stop_itself() -> None:
    """Has its worker stop it, with RQ's command."""
    job = current()
    await asyncio.to_thread(send_stop_job_command, job.connection, job.id, job.serializer)
    await asyncio.Event().wait()


async def tell_and_wait(channel: str = "test:started") -> None:
    """Says that it runs, and never ends."""
    await asyncio.to_thread(connection().rpush, channel, f"{current().id} {os.getpid()}")
    await asyncio.Event().wait()


def tell_and_wait_in_thread(channel: str = "test:started", go: str = "test:go") -> str:
    """Says that it runs, and ends when told."""
    connection().rpush(channel, f"{current().id} {os.getpid()}")
    connection().blpop([go], timeout=20)
    return "went"


def take_steps(channel: str = "test:started") -> None:
    """Says that it runs, and what ends it between two steps."""
    connection().rpush(channel, current().id)
    try:
        for _ in range(3000):
            time.sleep(0.01)
    except BaseException as exc:
        connection().rpush("test:notes", f"ended by {type(exc).__name__}")
        raise


def return_at_timeout() -> str:
    try:
        too_long()
    except JobTimeoutException:
        return "what there was by then"
    return "never"


def hang(channel: str = "test:started") -> None:
    """Says that it runs, and cannot be interrupted."""
    connection().rpush(channel, current().id)
    time.sleep(600)


async def block_the_loop_once() -> str:
    """Blocks, the first time that the job runs."""
    if connection().incr(f"test:runs:{current().id}") == 1:
        time.sleep(600)  # noqa: ASYNC251 - that is the point
    return "then it works"


async def swallow_cancellations(channel: str = "test:started") -> None:
    """Says that it runs, and cannot be ended."""
    await asyncio.to_thread(connection().rpush, channel, current().id)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def kill_worker_once(mark: str) -> str:
    path = Path(mark)
    if path.exists():
        return "survived"
    path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


class Counter:
    def __init__(self, start: int) -> None:
        self.start = start

    def plus(self, number: int) -> int:
        return self.start + number

    @staticmethod
    def twice(number: int) -> int:
        return 2 * number

    def __call__(self, number: int) -> int:
        return self.start * number


def note_success(job: Job, connection: Redis, result: Any) -> None:
    connection.rpush("test:notes", f"success {job.id} {result!r}")


def note_failure(job: Job, connection: Redis, kind: type, value: BaseException, _trace: object) -> None:
    connection.rpush("test:notes", f"failure {job.id} {kind.__name__} {value}")


def note_stopped(job: Job, connection: Redis) -> None:
    connection.rpush("test:notes", f"stopped {job.id}")


def break_callback(*_args: object) -> None:
    raise RuntimeError("the callback is broken")


def break_callback_with_an_os_error(job: Job, connection: Redis, *_rest: object) -> None:
    connection.incr(f"test:calls:{job.id}")
    raise FileNotFoundError("a file of the user's is not there")


def wait_in_callback(job: Job, connection: Redis, *_rest: object) -> None:
    """Says that it runs, and ends when told."""
    connection.rpush("test:started", job.id)
    connection.blpop(["test:go"], timeout=20)


def note_in_handler(job: Job, kind: type, *_error: object) -> bool:
    job.connection.rpush("test:notes", f"handler {job.id} {kind.__name__}")
    return True


def end_handling(job: Job, *_error: object) -> bool:
    job.connection.rpush("test:notes", f"last handler {job.id}")
    return False


# what arq's API enqueues: the first argument is arq's ctx


async def arq_multiply(ctx: dict[str, Any], left: int, right: int) -> int:
    assert ctx["job_id"]
    return left * right


async def arq_fail(ctx: dict[str, Any]) -> None:
    raise ValueError("canary of arq's failure")


async def arq_retry(ctx: dict[str, Any], until: int, defer: float = 0) -> int:
    if ctx["job_try"] < until:
        raise Retry(defer=defer)
    tries: int = ctx["job_try"]
    return tries


async def arq_forever(ctx: dict[str, Any]) -> None:
    ctx["started"].set()
    await asyncio.Event().wait()


async def kill_horse() -> None:
    """Has its worker kill the horse, with RQ's command."""
    job = current()
    assert job.worker_name
    await asyncio.to_thread(send_kill_horse_command, job.connection, job.worker_name)
    await asyncio.Event().wait()


def count(key: str) -> None:
    connection().hincrby(key, current().id, 1)


async def kill_worker_with_others(mates: int) -> None:
    """Kills its worker once so many run beside it, or one has ended."""
    client, queue = connection(), current().origin
    while client.zcard(f"rq:wip:{queue}") <= mates and not client.zcard(f"rq:finished:{queue}"):
        await asyncio.sleep(0.01)
    kill_worker()


async def take_a_second() -> None:
    await asyncio.sleep(1)


def count_call(job: Job, connection: Redis, *_rest: object) -> None:
    connection.incr(f"test:calls:{job.id}")


def exit_callback(*_args: object) -> None:
    sys.exit(3)


def break_handler(job: Job, *_error: object) -> bool:
    raise RuntimeError("the handler is broken")


def spoil_result_ttl(value: Any) -> None:
    current().result_ttl = value


async def arq_retry_after_a_look(ctx: dict[str, Any]) -> None:
    assert current().description
    raise Retry(defer=60)


def tell_and_succeed() -> None:
    tell_and_wait_in_thread()


def tell_and_fail() -> None:
    tell_and_wait_in_thread()
    fail()


def tell_and_ask_again() -> RQRetry:
    tell_and_wait_in_thread()
    return RQRetry(max=3, interval=60)
