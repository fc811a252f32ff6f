"""A million queued jobs: what they take in Redis, against stock RQ, and the worker's memory while it drains them.

python -m benchmarks.million [--jobs 1000000]
"""

import argparse
import asyncio
import multiprocessing
import time
from uuid import uuid4

import redis
import uvloop
from rich.console import Console
from rich.table import Table
from rq import Queue

from app.jobs import AsyncWorker, JobRequest, RedisSettings, create_pool, func
from benchmarks.memory import resident_mib
from benchmarks.queues import redis_server

CHUNK = 10_000
SAMPLES = 10
FUNCTION = "app.worker.process_file"


async def task(ctx: dict, ident: str) -> None:
    del ctx, ident


def enqueue_with_rq(url: str, jobs: int) -> None:
    queue = Queue("q", connection=redis.Redis.from_url(url))
    for start in range(0, jobs, CHUNK):
        calls = [Queue.prepare_data(FUNCTION, (str(uuid4()),)) for _ in range(start, min(start + CHUNK, jobs))]
        queue.enqueue_many(calls)


async def enqueue_with_ours(url: str, jobs: int) -> None:
    pool = await create_pool(RedisSettings.from_dsn(url), default_queue_name="q")
    for start in range(0, jobs, CHUNK):
        count = min(CHUNK, jobs - start)
        await pool.enqueue_jobs([JobRequest(FUNCTION, (str(uuid4()),)) for _ in range(count)])
    await pool.aclose()


def drain(url: str, jobs: int, told: "multiprocessing.SimpleQueue[list[float]]") -> None:
    """In a process of its own: MiB resident before, at each tenth, and after."""

    async def work() -> None:
        worker = AsyncWorker(
            ["q"],
            redis_settings=RedisSettings.from_dsn(url),
            functions=[func(task, name=FUNCTION)],
            max_jobs=100,
            keep_result=0,
        )
        samples = [resident_mib()]

        async def watch() -> None:
            for tenth in range(1, SAMPLES):
                while worker.jobs_complete < jobs * tenth / SAMPLES:
                    await asyncio.sleep(0.05)
                samples.append(resident_mib())

        watching = asyncio.ensure_future(watch())
        await worker.run(burst=True)
        await watching
        told.put([*samples, resident_mib()])

    uvloop.run(work())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    jobs = parser.parse_args().jobs
    console = Console(width=120)
    with redis_server() as url:
        client = redis.Redis.from_url(url)
        table = Table(title=f"{jobs:,} queued jobs with a UUID as argument")
        for title in ("", "seconds", "jobs/s", "Redis, MiB", "bytes a job"):
            table.add_column(title, justify="right")
        fills = (
            ("RQ, enqueue_many", enqueue_with_rq),
            ("ours, enqueue_jobs", lambda *given: uvloop.run(enqueue_with_ours(*given))),
        )
        for name, enqueue in fills:
            client.flushall()
            before, started = client.info("memory")["used_memory"], time.perf_counter()
            enqueue(url, jobs)
            seconds, used = time.perf_counter() - started, client.info("memory")["used_memory"] - before
            table.add_row(
                name, f"{seconds:.0f}", f"{jobs / seconds:,.0f}", f"{used / 2**20:,.0f}", f"{used / jobs:,.0f}"
            )
        console.print(table)
        told: multiprocessing.SimpleQueue[list[float]] = multiprocessing.get_context("spawn").SimpleQueue()
        started = time.perf_counter()
        process = multiprocessing.get_context("spawn").Process(target=drain, args=(url, jobs, told))
        process.start()
        samples = told.get()
        process.join()
        seconds = time.perf_counter() - started
        console.print(
            f"drained in {seconds:.0f} s ({jobs / seconds:,.0f} a second), {client.llen('rq:queue:q')} left"
        )
        console.print(
            f"worker, MiB, at the start, each tenth and the end: {', '.join(f'{each:.0f}' for each in samples)}"
        )


if __name__ == "__main__":
    main()
