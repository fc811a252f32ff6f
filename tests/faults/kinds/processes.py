"""Faults of our own processes: API, workers, parsers."""

import asyncio
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import psutil

from tests.faults.family import of_this_version, owner_of, parsers, zygotes
from tests.faults.fault import faults
from tests.faults.harness import API_PROCESSES, EXTRACTION_SECONDS, LEASE_SECONDS, Harness, name_of
from tests.faults.inside import fail_points
from tests.faults.kinds.users import cancel, delete
from tests.faults.promises import API_LOST, LOST, REFUSED, REPEATED
from tests.faults.rows import held_by
from tests.faults.uploads import LARGE
from tests.support.fake_openai import Held

LONGER_THAN_THE_LEASE = LEASE_SECONDS + 1
PAUSE_SECONDS = 1.2
"""A second signal within the first second is taken for the first one's echo."""
ROLL_SECONDS = 120
_LOADED_SECONDS = 5
_LIBRARIES = Path("/usr/lib")
_SKEWS = ("+100s", "-100s")
ROOT = Path(__file__).resolve().parents[3]


def kill_worker(harness: Harness) -> None:
    """SIGKILL; a new one starts."""
    harness.replace_worker(signal.SIGKILL)


def end_worker(harness: Harness) -> None:
    """SIGTERM."""
    harness.replace_worker(signal.SIGTERM)


def end_worker_at_once(harness: Harness, *, held: int = 6) -> None:
    """Two SIGTERMs, while the provider is silent: what is in hand is given back, at no attempt's cost."""
    harness.provider.api.script(*[Held()] * held)
    harness.upload(LARGE, stores=harness.stores[2:])
    worker = harness.replace_worker(signal.SIGTERM)
    time.sleep(PAUSE_SECONDS)
    worker.terminate()


def freeze_worker(harness: Harness) -> None:
    """SIGSTOP for longer than its lease: it wakes up when others have its work."""
    harness.put_to_sleep(harness.busy_worker().pid, LONGER_THAN_THE_LEASE)


def freeze_worker_and_withdraw(harness: Harness) -> None:
    """What it had in hand is cancelled or deleted while it sleeps."""
    worker = harness.busy_worker()
    harness.put_to_sleep(worker.pid, LONGER_THAN_THE_LEASE)
    held = asyncio.run(held_by(harness.postgres.url, name_of(worker)))
    harness.dice.choice([cancel, delete])(harness, held)
    harness.took_place &= bool(held)


def skew_clock(harness: Harness) -> None:
    """A worker whose clock is 100 s ahead or behind."""
    skewed = {
        "LD_PRELOAD": str(_faketime()),
        "FAKETIME": harness.dice.choice(_SKEWS),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    before = list(harness.workers)
    harness.replace_worker(signal.SIGTERM, environment=skewed)
    started = [worker for worker in harness.workers if worker not in before]
    harness.took_place &= _until(lambda: all(map(_is_skewed, started)), _LOADED_SECONDS)


def _is_skewed(worker: "subprocess.Popen[bytes]") -> bool:
    """Whether it has loaded the library; one that cannot be loaded is left out with a warning."""
    with suppress(OSError):
        return b"libfaketime" in Path(f"/proc/{worker.pid}/maps").read_bytes()
    return False


@cache
def _faketime() -> Path:
    """The library that lies about the time; installed if it is not there."""
    pattern = "*/faketime/libfaketime.so.1"
    if not any(_LIBRARIES.glob(pattern)):
        print("installing Debian's faketime")
        subprocess.run(["apt-get", "install", "-y", "-q", "faketime"], check=True, stdout=subprocess.DEVNULL)
    return next(_LIBRARIES.glob(pattern))


def previous_version(harness: Harness) -> None:
    """A worker of the version before the newest migration beside the new ones."""
    without_points = {fail_points.FOLDER: ""}  # they are at functions of this version
    root = version_before_newest_migration(harness.folder)
    harness.replace_worker(signal.SIGTERM, environment=without_points, root=root)
    harness.took_place &= root != ROOT


@cache
def version_before_newest_migration(folder: Path) -> Path:
    """Its sources, taken from git; this version's where there is no git."""
    root = folder / "previous"
    newest = max((ROOT / "migrations/versions").glob("*.py"))
    asked = ["git", "log", "--diff-filter=A", "--format=%H", "-1", "--", str(newest.relative_to(ROOT))]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    if not commit:
        return ROOT
    packed = subprocess.check_output(["git", "archive", f"{commit}^", "app", "migrations", "alembic.ini"], cwd=ROOT)
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(root, filter="data")
    return root


def kill_api(harness: Harness) -> None:
    """SIGKILL of an API process while an upload comes in; uvicorn starts another."""
    uploading = threading.Thread(target=harness.upload)
    uploading.start()
    time.sleep(harness.dice.uniform(0, 0.05))
    harness.took_place = _signal_one(harness, harness.api_processes(), signal.SIGKILL)
    uploading.join()


def freeze_api(harness: Harness) -> None:
    """An API process sleeps for longer than a lease, and whatever it drains or sweeps with it."""
    harness.put_to_sleep(harness.dice.choice(harness.api_processes()).pid, LONGER_THAN_THE_LEASE)
    harness.upload()


def rolling_restart(harness: Harness) -> None:
    """SIGHUP to the API, whose processes are replaced one by one, and SIGTERM to every worker."""
    _until(lambda: len(harness.api_processes()) == API_PROCESSES, ROLL_SECONDS)
    before = {each.pid for each in harness.api_processes()}
    os.kill(harness.service.processes[0].pid, signal.SIGHUP)
    harness.upload()
    for number, worker in enumerate(harness.workers):
        harness.workers[number] = harness.start_worker()
        harness.end_worker(worker, signal.SIGTERM)

    def are_new() -> bool:
        now = {each.pid for each in harness.api_processes()}
        return len(now) == API_PROCESSES and not now & before

    if not _until(are_new, ROLL_SECONDS):
        harness.wrong.append("a rolling restart was given up: there are old API processes")


def _until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait for it; whether it came."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def kill_zygote(harness: Harness) -> None:
    """SIGKILL of a process that forks the parsers: that is no file's fault."""
    harness.upload(documents=8)
    harness.took_place = _signal_one(harness, zygotes(harness.workers), signal.SIGKILL)


def kill_parsers(harness: Harness) -> None:
    """SIGKILL of children that parse, as the kernel does when memory is short: no file fails of it."""
    # of the previous version a file does
    _meet_parsers(harness, of_this_version(harness.workers), signal.SIGKILL)


def freeze_parsers(harness: Harness) -> None:
    """Children that parse hang, and meet their wall time."""
    harness.promises.may_fail |= {"parser_timeout"}
    _meet_parsers(harness, harness.workers, signal.SIGSTOP)


def _meet_parsers(harness: Harness, workers: Sequence["subprocess.Popen[bytes]"], number: signal.Signals) -> None:
    harness.upload(documents=12)
    met, until = 0, time.monotonic() + 0.5
    while met < 3 and time.monotonic() < until:
        for parser in parsers(workers):
            met += _signal(parser, number)
    harness.done[f"parsers met by {number.name}"] += met
    harness.took_place = met > 0


def late_verdict(harness: Harness) -> None:
    """A worker sleeps over its lease and a parser's wall time; when it wakes up and gives its verdict, others are
    at the same files. Redis is away: nobody but the row can tell it that they are no longer its own.
    """
    harness.redis.stop(kill_signal=signal.SIGKILL)
    try:
        harness.upload(documents=15)
        _give_late_verdict(harness)
    finally:
        harness.redis.start()


def _give_late_verdict(harness: Harness) -> None:
    frozen: set[psutil.Process] = set()
    sleeper = _stop_parsers(harness, frozen, None, seconds=1.0)
    if sleeper is None:
        harness.took_place = False
        return
    sleeper.send_signal(signal.SIGSTOP)
    started = time.monotonic()
    time.sleep(LEASE_SECONDS)
    taken_over_at = time.monotonic()
    before = len(frozen)
    _stop_parsers(harness, frozen, sleeper, seconds=1.5)
    time.sleep(max(0.0, started + EXTRACTION_SECONDS + 0.2 - time.monotonic()))
    sleeper.send_signal(signal.SIGCONT)
    time.sleep(0.7)  # for its verdict
    for parser in frozen:
        _signal(parser, signal.SIGCONT)
    if len(frozen) == before or time.monotonic() - taken_over_at > EXTRACTION_SECONDS - 0.5:
        harness.promises.may_fail |= {
            "parser_timeout"
        }  # a busy machine: the verdict was not late, or theirs is true
    else:
        harness.done["late verdicts"] += 1


def _stop_parsers(
    harness: Harness,
    frozen: set[psutil.Process],
    sleeper: "subprocess.Popen[bytes] | None",
    *,
    seconds: float,
) -> "subprocess.Popen[bytes] | None":
    """Freeze the parsers of one worker, which is returned, or with `sleeper` those of all others."""
    until = time.monotonic() + seconds
    found = None
    while time.monotonic() < until:
        for parser in parsers(harness.workers):
            try:
                owner = owner_of(parser, harness.workers)
            except psutil.NoSuchProcess:
                continue
            is_wanted = (
                owner is not sleeper if sleeper is not None else owner is not None and owner is (found or owner)
            )
            if parser not in frozen and is_wanted and _signal(parser, signal.SIGSTOP):
                frozen.add(parser)
                found = owner
        if found is not None and sleeper is None:
            return found
    return found


def _signal_one(harness: Harness, processes: list[psutil.Process], number: signal.Signals) -> bool:
    return bool(processes) and _signal(harness.dice.choice(processes), number)


def _signal(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


FAULTS = (
    faults(end_worker, end_worker_at_once, skew_clock, previous_version, freeze_parsers)
    + faults(kill_worker, freeze_worker, freeze_worker_and_withdraw, late_verdict, may=(REPEATED, LOST))
    + faults(kill_zygote, kill_parsers, may=(REPEATED,))
    + faults(kill_api, freeze_api, rolling_restart, may=(REFUSED, API_LOST))
)
