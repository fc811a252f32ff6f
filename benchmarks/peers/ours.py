"""app.jobs."""

import asyncio
import time

import tally
import uvloop

from app.jobs import ArqRedis, AsyncWorker, JobRequest, RedisSettings, create_pool

SETTINGS = RedisSettings.from_dsn(tally.URL)
AT_ONCE = 64


async def noop(ctx: dict) -> None:
    tally.begin()
    tally.end()


async def sleep(ctx: dict) -> None:
    tally.begin()
    await asyncio.sleep(0.01)
    tally.end()


async def stamp(ctx: dict, sent: float) -> None:
    tally.arrived(sent)


async def connect() -> ArqRedis:
    return await create_pool(SETTINGS, default_queue_name="q")


async def fill(kind: str, jobs: int) -> None:
    pool = await connect()
    for start in range(0, jobs, 1000):
        await pool.enqueue_jobs([JobRequest(kind)] * min(1000, jobs - start))
    await pool.aclose()


async def enqueue(mode: str, jobs: int) -> None:
    pool = await connect()
    started = time.perf_counter()
    if mode == "one":
        for _ in range(jobs):
            await pool.enqueue_job("noop")
    elif mode == "many":

        async def some() -> None:
            for _ in range(jobs // AT_ONCE):
                await pool.enqueue_job("noop")

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    else:
        for start in range(0, jobs, 1000):
            await pool.enqueue_jobs([JobRequest("noop") for _ in range(start, min(start + 1000, jobs))])
    print(time.perf_counter() - started)
    await pool.aclose()


async def latency(jobs: int) -> None:
    pool = await connect()
    await pool.enqueue_job("stamp", time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        await asyncio.sleep(0.02)
        await pool.enqueue_job("stamp", time.time())
    await pool.aclose()


async def report_when_settled() -> None:
    """Stricter than with the others: until Redis holds all results."""
    pool = await connect()
    while await pool.zcard("rq:finished:q") < tally.JOBS:
        await asyncio.sleep(0.005)
    tally.report()


async def work(at_once: int) -> None:
    worker = AsyncWorker(["q"], redis_settings=SETTINGS, functions=[noop, sleep, stamp], max_jobs=at_once)
    tally.end = lambda: None
    async with asyncio.TaskGroup() as both:
        both.create_task(worker.run())
        if tally.JOBS:
            both.create_task(report_when_settled())


if __name__ == "__main__":
    name, words = tally.command()
    call = {"fill": fill, "enqueue": enqueue, "latency": latency, "work": work}[name]
    uvloop.run(call(*(int(word) if word.isdigit() else word for word in words)))
