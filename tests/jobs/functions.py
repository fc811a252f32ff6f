"""Functions that jobs name; imported by workers in other processes too."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from rq import get_current_job

from app.jobs import Retry


def add(left: int, right: int) -> int:
    return left + right


async def add_async(left: int, right: int) -> int:
    await asyncio.sleep(0)
    return left + right


def fail() -> None:
    raise ValueError("this one fails")


def whoami() -> str | None:
    job = get_current_job()
    return job.id if job else None


async def nothing(ctx: dict[str, Any]) -> None:
    pass


async def multiply(ctx: dict[str, Any], left: int, right: int) -> int:
    assert ctx["job_try"] == 1
    return left * right


async def fail_async(ctx: dict[str, Any]) -> None:
    raise ValueError("canary of the failure")


async def retry_twice(ctx: dict[str, Any]) -> int:
    if ctx["job_try"] < 3:
        raise Retry(defer=0.01)
    return ctx["job_try"]


async def forever(ctx: dict[str, Any]) -> None:
    ctx["started"].set()
    await asyncio.Event().wait()


async def meet(ctx: dict[str, Any]) -> int:
    """Ends only when all parties run at the same time."""
    async with asyncio.timeout(20):
        await ctx["barrier"].wait()
    return os.getpid()


async def kill_worker_once(ctx: dict[str, Any], mark: str) -> str:
    """Takes its worker down the first time."""
    path = Path(mark)
    if path.exists():
        return f"try {ctx['job_try']}"
    path.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def note_failure(job: object, connection: Any, *_error: object) -> None:
    connection.incr("noted")
