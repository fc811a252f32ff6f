"""RQ: SimpleWorker and, with BENCH_FORK, the forking Worker. One job at a time."""

import logging
import os
import time

import redis
import tally
from rq import Queue, SimpleWorker, Worker

FORKS = bool(os.environ.get("BENCH_FORK"))  # then the worker counts, not its children


def noop() -> None:
    if not FORKS:
        tally.begin()
        tally.end()


def sleep() -> None:
    if not FORKS:
        tally.begin()
    time.sleep(0.01)
    if not FORKS:
        tally.end()


def stamp(sent) -> None:
    tally.arrived(sent)


def queue() -> Queue:
    return Queue("q", connection=redis.Redis.from_url(tally.URL))


def fill(kind, jobs) -> None:
    for start in range(0, jobs, 1000):
        queue().enqueue_many([Queue.prepare_data(f"rq_peer.{kind}")] * min(1000, jobs - start))


def enqueue(mode, jobs) -> None:
    to = queue()
    started = time.perf_counter()
    if mode == "bulk":
        for start in range(0, jobs, 1000):
            to.enqueue_many([Queue.prepare_data("rq_peer.noop") for _ in range(start, min(start + 1000, jobs))])
    else:
        for _ in range(jobs):
            to.enqueue("rq_peer.noop")
    print(time.perf_counter() - started)


def latency(jobs) -> None:
    to = queue()
    to.enqueue("rq_peer.stamp", time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        time.sleep(0.02)
        to.enqueue("rq_peer.stamp", time.time())


class ReportingWorker(Worker):
    """The work happens in forks, so the parent counts."""

    def execute_job(self, job, queue) -> None:
        tally.begin()
        super().execute_job(job, queue)
        tally.end()


def work(_at_once) -> None:
    logging.disable(logging.INFO)
    if FORKS:
        ReportingWorker([queue()], connection=redis.Redis.from_url(tally.URL)).work(logging_level="ERROR")
    else:
        SimpleWorker([queue()], connection=redis.Redis.from_url(tally.URL)).work(logging_level="ERROR")


if __name__ == "__main__":
    name, words = tally.command()
    {"fill": fill, "enqueue": enqueue, "latency": latency, "work": work}[name](
        *(int(word) if word.isdigit() else word for word in words)
    )
