"""What every peer's script shares: counting jobs inside the worker, and the commands of `benchmarks.queues`.

Runs in the environments of the peers: the standard library and redis-py only.
"""

import functools
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path

import redis

URL = os.environ.get("BENCH_REDIS", "redis://localhost:6379")
JOBS = int(os.environ.get("BENCH_JOBS", "0"))
LATENCIES = int(os.environ.get("BENCH_LATENCIES", "0"))
DONE = "bench:done"
WAITS = "bench:waits"
LISTENING = "bench:listening"

_started = itertools.count()
_ended = itertools.count(1)
_first: list[float] = []


@functools.cache
def _client() -> redis.Redis:
    return redis.Redis.from_url(URL, socket_timeout=90)


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def begin() -> None:
    """A job begins."""
    if next(_started) == 0:
        _first.extend((time.perf_counter(), _cpu()))


def end() -> None:
    """A job has ended; the last one reports."""
    if next(_ended) == JOBS:
        report()


def report() -> None:
    """Tell `benchmarks.queues` how long it took since the first job began."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    outcome = {
        "seconds": time.perf_counter() - _first[0],
        "cpu": _cpu() - _first[1],
        "rss": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    }
    _client().rpush(DONE, json.dumps(outcome))


def arrived(sent: float) -> None:
    """A job of the latency scenario runs: the first one tells that the worker listens, the last one reports.

    Counted in Redis, for a forking worker's jobs share no memory.
    """
    wait = time.time() - sent
    client = _client()
    number = client.rpush(WAITS, wait)
    if number == 1:
        client.rpush(LISTENING, "1")
    if number == LATENCIES + 1:
        waits = [float(each) for each in client.lrange(WAITS, 1, -1)]
        client.rpush(DONE, json.dumps({"waits": waits}))


def wait_until_listening() -> None:
    """Return when the first job of the latency scenario has run.

    Raises:
        SystemExit: it has not in a minute.
    """
    if _client().blpop([LISTENING], 60) is None:
        raise SystemExit("the worker does not listen")


def command() -> tuple[str, list[str]]:
    """The script's command: fill KIND N, enqueue MODE N, latency N, work AT_ONCE."""
    return sys.argv[1], sys.argv[2:]
