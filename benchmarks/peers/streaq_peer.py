"""streaQ."""

import asyncio
import os
import time

import tally
import uvloop
from streaq import Worker

worker = Worker(redis_url=tally.URL, concurrency=int(os.environ.get("BENCH_AT_ONCE", "64")), queue_name="q")


@worker.task()
async def noop() -> None:
    tally.begin()
    tally.end()


@worker.task()
async def sleep() -> None:
    tally.begin()
    await asyncio.sleep(0.01)
    tally.end()


@worker.task()
async def stamp(sent: float) -> None:
    tally.arrived(sent)


TASKS = {"noop": noop, "sleep": sleep}


async def fill(kind, jobs) -> None:
    async with worker:
        for start in range(0, jobs, 1000):
            await worker.enqueue_many([TASKS[kind].enqueue() for _ in range(start, min(start + 1000, jobs))])


async def enqueue(mode, jobs) -> None:
    async with worker:
        started = time.perf_counter()
        if mode == "one":
            for _ in range(jobs):
                await noop.enqueue()
        elif mode == "many":

            async def some() -> None:
                for _ in range(jobs // 64):
                    await noop.enqueue()

            await asyncio.gather(*(some() for _ in range(64)))
        else:
            for start in range(0, jobs, 1000):
                await worker.enqueue_many([noop.enqueue() for _ in range(start, min(start + 1000, jobs))])
        print(time.perf_counter() - started)


async def latency(jobs) -> None:
    async with worker:
        await stamp.enqueue(time.time())
        tally.wait_until_listening()
        for _ in range(jobs):
            await asyncio.sleep(0.02)
            await stamp.enqueue(time.time())


if __name__ == "__main__":
    name, words = tally.command()
    if name == "work":
        worker.run_sync()
    else:
        call = {"fill": fill, "enqueue": enqueue, "latency": latency}[name]
        uvloop.run(call(*(int(word) if word.isdigit() else word for word in words)))
