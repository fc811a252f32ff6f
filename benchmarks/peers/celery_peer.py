"""Celery: threads, results in Redis."""

import subprocess
import sys
import time

import tally
from celery import Celery

app = Celery("celery_peer", broker=tally.URL, backend=tally.URL)
app.conf.update(task_ignore_result=False, result_expires=3600, worker_prefetch_multiplier=4)


@app.task(name="noop")
def noop() -> None:
    tally.begin()
    tally.end()


@app.task(name="sleep")
def sleep() -> None:
    tally.begin()
    time.sleep(0.01)
    tally.end()


@app.task(name="stamp")
def stamp(sent) -> None:
    tally.arrived(sent)


TASKS = {"noop": noop, "sleep": sleep}


def fill(kind, jobs) -> None:
    for _ in range(jobs):
        TASKS[kind].delay()


def enqueue(_mode, jobs) -> None:
    started = time.perf_counter()
    for _ in range(jobs):
        noop.delay()
    print(time.perf_counter() - started)


def latency(jobs) -> None:
    stamp.delay(time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        time.sleep(0.02)
        stamp.delay(time.time())


if __name__ == "__main__":
    name, words = tally.command()
    if name == "work":
        options = ["--pool", "threads", "--concurrency", words[0], "--loglevel", "ERROR", "--without-gossip"]
        sys.exit(subprocess.call([sys.executable, "-m", "celery", "-A", "celery_peer", "worker", *options]))
    {"fill": fill, "enqueue": enqueue, "latency": latency}[name](
        *(int(word) if word.isdigit() else word for word in words)
    )
