"""dramatiq: threads, no results."""

import subprocess
import sys
import time

import dramatiq
import tally
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=tally.URL)
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    tally.begin()
    tally.end()


@dramatiq.actor
def sleep() -> None:
    tally.begin()
    time.sleep(0.01)
    tally.end()


@dramatiq.actor
def stamp(sent) -> None:
    tally.arrived(sent)


TASKS = {"noop": noop, "sleep": sleep}


def fill(kind, jobs) -> None:
    for _ in range(jobs):
        TASKS[kind].send()


def enqueue(_mode, jobs) -> None:
    started = time.perf_counter()
    for _ in range(jobs):
        noop.send()
    print(time.perf_counter() - started)


def latency(jobs) -> None:
    stamp.send(time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        time.sleep(0.02)
        stamp.send(time.time())


if __name__ == "__main__":
    name, words = tally.command()
    if name == "work":
        options = ["--processes", "1", "--threads", str(min(int(words[0]), 64))]
        sys.exit(subprocess.call([sys.executable, "-m", "dramatiq", "dramatiq_peer", *options]))
    {"fill": fill, "enqueue": enqueue, "latency": latency}[name](
        *(int(word) if word.isdigit() else word for word in words)
    )
