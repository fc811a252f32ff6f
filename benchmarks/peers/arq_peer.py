"""arq at its best poll delay."""

import asyncio
import time

import tally
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

SETTINGS = RedisSettings.from_dsn(tally.URL)


async def noop(ctx) -> None:
    tally.begin()
    tally.end()


async def sleep(ctx) -> None:
    tally.begin()
    await asyncio.sleep(0.01)
    tally.end()


async def stamp(ctx, sent) -> None:
    tally.arrived(sent)


async def fill(kind, jobs) -> None:
    pool = await create_pool(SETTINGS)
    for start in range(0, jobs, 200):
        await asyncio.gather(*(pool.enqueue_job(kind) for _ in range(start, min(start + 200, jobs))))


async def enqueue(mode, jobs) -> None:
    pool = await create_pool(SETTINGS)
    started = time.perf_counter()
    if mode == "one":
        for _ in range(jobs):
            await pool.enqueue_job("noop")
    else:

        async def some() -> None:
            for _ in range(jobs // 64):
                await pool.enqueue_job("noop")

        await asyncio.gather(*(some() for _ in range(64)))
    print(time.perf_counter() - started)


async def latency(jobs) -> None:
    pool = await create_pool(SETTINGS)
    await pool.enqueue_job("stamp", time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        await asyncio.sleep(0.02)
        await pool.enqueue_job("stamp", time.time())


async def work(at_once) -> None:
    worker = Worker(
        [noop, sleep, stamp], redis_settings=SETTINGS, max_jobs=at_once, poll_delay=0.01, handle_signals=False
    )
    await worker.async_run()


if __name__ == "__main__":
    name, words = tally.command()
    call = {"fill": fill, "enqueue": enqueue, "latency": latency, "work": work}[name]
    uvloop.run(call(*(int(word) if word.isdigit() else word for word in words)))
