"""Named points on the way of a file, where a process kills or freezes itself if it is told to.

Whoever wants that arms a point: a file with its name, which holds the number of a signal, in the folder that
`SLUICE_FAIL_POINTS` names. The first process to pass the point in its situation takes the file, adds its process id
to the name, and sends itself the signal. The program knows nothing of this: its functions are wrapped as their
modules are imported.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "SLUICE_FAIL_POINTS"
BEFORE, AFTER = "before", "after"


def anyhow(_args: Sequence[Any], _result: object) -> bool:
    """Each call is the situation."""
    return True


def with_some(args: Sequence[Any], _result: object) -> bool:
    """It has something to do: the last argument is a sequence that is not empty."""
    return bool(args[-1])


def with_effect(_args: Sequence[Any], result: object) -> bool:
    """It has done something: its result is True, a claim, rows that are not none."""
    return bool(result)


def with_some_heard(args: Sequence[Any], result: object) -> bool:
    """There was something to be told, and it was heard."""
    return with_some(args, result) and with_effect(args, result)


def of_completed(args: Sequence[Any], _result: object) -> bool:
    """The outcome that it is called with is `Completed`."""
    return type(args[-1]).__name__ == "Completed"


@dataclass(frozen=True)
class FailPoint:
    """Before or after a call of a function, by the name under which its caller's module has it.

    Sweeps call theirs all the time, mostly with nothing to do: `is_met` tells, by the positional arguments and the
    result (None before the call), whether a call is the situation.
    """

    when: str
    module: str
    function: str
    situation: str
    is_met: Callable[[Sequence[Any], Any], bool] = anyhow


POINTS = {
    "stored": FailPoint(AFTER, "app.api.uploads", "Uploads.store", "a file's bytes are stored, it has no row"),
    "recorded": FailPoint(AFTER, "app.api.attaching", "insert_ingestions", "an upload's rows are not committed"),
    "accepted": FailPoint(
        BEFORE, "app.api.ingestions", "ring", "an upload is committed, the queue has not heard of it", with_some
    ),
    "rung": FailPoint(
        AFTER, "app.api.ingestions", "ring", "the queue has heard of an upload, the client has not", with_some_heard
    ),
    "job_started": FailPoint(BEFORE, "app.ingest.process", "claim", "RQ's job runs, its row is not claimed"),
    "claimed": FailPoint(AFTER, "app.ingest.process", "claim", "the row is claimed, nothing is done", with_effect),
    "drained": FailPoint(
        AFTER, "app.ingest.process", "claim_due", "claims without a queue, not committed", with_effect
    ),
    "reading": FailPoint(BEFORE, "app.ingest.prepare", "_extract", "before a file is read"),
    "extracted": FailPoint(AFTER, "app.ingest.prepare", "_extract", "a file is read and cut"),
    "billed": FailPoint(BEFORE, "app.ingest.embedding", "keep_embedded", "vectors are paid for and not kept"),
    "kept": FailPoint(AFTER, "app.ingest.embedding", "_keep", "vectors are kept, some may be missing"),
    "encoded": FailPoint(AFTER, "app.ingest.prepare", "_embed", "before the write"),
    "locked": FailPoint(AFTER, "app.ingest.commit", "lock_claim", "in the write: the row is locked", with_effect),
    "cleared": FailPoint(AFTER, "app.ingest.commit", "delete_chunks", "in the write: old chunks are deleted"),
    "copied": FailPoint(AFTER, "app.ingest.commit", "copy_chunks", "in the write: the chunks are copied"),
    "completing": FailPoint(AFTER, "app.ingest.commit", "complete", "in the write: all but its COMMIT"),
    "committed": FailPoint(
        BEFORE, "app.ingest.process", "Processor._settle", "after the write's COMMIT", of_completed
    ),
    "failing": FailPoint(BEFORE, "app.ingest.process", "fail", "a failure is not written yet"),
    "failed": FailPoint(AFTER, "app.ingest.process", "fail", "a failure is written, its job runs", with_effect),
    "put_off": FailPoint(
        AFTER, "app.ingest.process", "retry_later", "an attempt is put off, the queue not told", with_effect
    ),
    "giving_back": FailPoint(BEFORE, "app.ingest.process", "give_back", "a worker that ends, before it gives back"),
    "given_back": FailPoint(
        AFTER, "app.ingest.process", "give_back", "a worker that ends, its row is given back", with_effect
    ),
    "settling": FailPoint(BEFORE, "app.jobs.settle", "Settler._settle_plain", "jobs are over, Redis knows nothing"),
    "settled": FailPoint(AFTER, "app.jobs.settle", "Settler._settle_plain", "jobs are over, and Redis knows"),
    "taken_back": FailPoint(
        AFTER,
        "app.ingest.maintenance",
        "take_back_expired",
        "a sweep that takes leases back, before its COMMIT",
        with_effect,
    ),
    "ringing": FailPoint(
        AFTER, "app.ingest.maintenance", "take_unhinted", "a sweep that rings again, before its COMMIT", with_effect
    ),
    "epoch_noted": FailPoint(
        AFTER,
        "app.ingest.maintenance",
        "note_epoch",
        "a sweep that finds Redis empty, before its COMMIT",
        with_effect,
    ),
    "unheard": FailPoint(BEFORE, "app.ringing", "mark_unhinted", "the queue did not hear of an upload", with_some),
    "overtaken": FailPoint(
        AFTER, "app.ingest.maintenance", "overtaken_hints", "a sweep that found jobs without a purpose", with_effect
    ),
    "withdrawn": FailPoint(
        BEFORE,
        "app.ingest.maintenance",
        "note_withdrawn",
        "a sweep that has withdrawn jobs and not noted it",
        with_some,
    ),
    "cancelling": FailPoint(AFTER, "app.api.ingestions", "cancel", "a cancel before its COMMIT"),
    "deleting": FailPoint(AFTER, "app.api.files", "delete_file", "the DELETE of a file before its COMMIT"),
    "row_deleted": FailPoint(
        BEFORE, "app.api.files", "discard_blob", "the row of a file is deleted, its bytes not"
    ),
}


def install(folder: str) -> None:
    """Have every module that a point names wrapped when it is imported."""
    sys.meta_path.insert(0, _Wrapper(Path(folder)))


def arm(folder: Path, name: str, number: int) -> None:
    """Whoever passes the point next gets this signal."""
    draft = folder / "draft"
    draft.write_text(str(number), encoding="ascii")
    draft.rename(folder / name)


def disarm(folder: Path, name: str) -> int | None:
    """The process id of who has met the armed point; None if nobody has, and now nobody will."""
    with suppress(FileNotFoundError):
        (folder / name).unlink()
        return None
    met = next(folder.glob(f"{name}.*"))
    met.unlink()
    return int(met.suffix[1:])


def is_armed(folder: Path, name: str) -> bool:
    """Whether nobody has met it yet."""
    return (folder / name).exists()


def wrapped(module: ModuleType, point: FailPoint) -> tuple[Any, str, Callable[..., Any]]:
    """Who holds the function that a point is at, under which name, and the function.

    Raises:
        AttributeError: there is none of that name.
    """
    *path, name = point.function.split(".")
    owner: Any = module
    for each in path:
        owner = getattr(owner, each)
    return owner, name, getattr(owner, name)


class _Wrapper(MetaPathFinder):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules = {point.module for point in POINTS.values()}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._modules:
            return None
        others = (each.find_spec(fullname, path, target) for each in sys.meta_path if each is not self)
        spec = next((each for each in others if each is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            self._wrap(module)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec

    def _wrap(self, module: ModuleType) -> None:
        for name, point in POINTS.items():
            if point.module == module.__name__:
                owner, attribute, function = wrapped(module, point)
                setattr(owner, attribute, self._with_point(function, name, point))

    def _with_point(self, function: Callable[..., Any], name: str, point: FailPoint) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"fail point {name}: {function} is no coroutine function")

        @wraps(function)
        async def passing(*args: Any, **kwargs: Any) -> Any:
            if point.when == BEFORE and point.is_met(args, None):
                self._pass(name)
            result = await function(*args, **kwargs)
            if point.when == AFTER and point.is_met(args, result):
                self._pass(name)
            return result

        return passing

    def _pass(self, name: str) -> None:
        armed = self._folder / name
        with suppress(FileNotFoundError):
            number = int(armed.read_text(encoding="ascii"))
            armed.rename(self._folder / f"{name}.{os.getpid()}")  # by one process only
            os.kill(os.getpid(), number)
