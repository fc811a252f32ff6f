"""What RQ's `func_name` field holds for arq's jobs: RQ names an importable path, arq a registered name.

A stock `rq worker` imports and runs `run_by_name`, which imports the named function; `AsyncWorker` looks the name
up among the functions that it was given and calls it with its own `ctx`.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import rq
from rq.job import get_current_job
from rq.utils import import_attribute

from app.jobs.ids import from_rq_id
from app.jobs.values import JobExecutionFailed, Retry

TRAMPOLINE = "app.jobs.trampoline.run_by_name"


def function_name(function: Callable[..., Any]) -> str:
    """The name by which a function can be enqueued and imported."""
    return f"{function.__module__}.{function.__qualname__}"


def import_by_name(name: str) -> Callable[..., Any]:
    """The function at a dotted path.

    Raises:
        JobExecutionFailed: there is none, in arq's words.
    """
    try:
        return import_attribute(name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise JobExecutionFailed(f"function '{name}' not found") from exc


def import_string(dotted_path: str) -> Any:
    """What a module holds under a name; as arq's, for paths in the code of whoever runs the worker.

    Raises:
        ImportError: there is no such module (or what it imports), or it has no such name.
    """
    module_path, _, name = dotted_path.strip(" ").rpartition(".")
    if not module_path:
        raise ImportError(f'"{dotted_path}" doesn\'t look like a module path')
    module = importlib.import_module(module_path)
    try:
        return getattr(module, name)
    except AttributeError as exc:
        raise ImportError(f'Module "{module_path}" does not define a "{name}" attribute') from exc


async def run_by_name(name: str, *args: Any, **kwargs: Any) -> Any:
    """Run an arq job under a stock RQ worker: one whose name is a dotted path.

    arq retries only on `Retry`; RQ on any error while retries are left, so they are put to 0 first.
    """
    job = get_current_job()
    tries = (job.number_of_retries or 0) + 1 if job else 1
    ctx = {
        "job_id": from_rq_id(job.id) if job else None,
        "job_try": tries,
        "enqueue_time": job.enqueued_at if job else None,
        "score": None,
        "redis": None,
    }
    try:
        return await import_by_name(name)(ctx, *args, **kwargs)
    except Retry as retry:
        return rq.Retry(max=5, interval=math.ceil(retry.defer_seconds))
    except Exception:
        if job is not None:
            job.retries_left = 0
        raise
