"""taskiq-redis: a stream broker with acknowledgements, and results."""

import asyncio
import subprocess
import sys
import time

import tally
import uvloop
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

broker = RedisStreamBroker(tally.URL).with_result_backend(RedisAsyncResultBackend(tally.URL, result_ex_time=3600))


@broker.task(task_name="noop")  # by default it holds the module: in the client that is __main__
async def noop() -> None:
    tally.begin()
    tally.end()


@broker.task(task_name="sleep")
async def sleep() -> None:
    tally.begin()
    await asyncio.sleep(0.01)
    tally.end()


@broker.task(task_name="stamp")
async def stamp(sent: float) -> None:
    tally.arrived(sent)


TASKS = {"noop": noop, "sleep": sleep}


async def fill(kind, jobs) -> None:
    await broker.startup()
    for start in range(0, jobs, 200):
        await asyncio.gather(*(TASKS[kind].kiq() for _ in range(start, min(start + 200, jobs))))
    await broker.shutdown()


async def enqueue(mode, jobs) -> None:
    await broker.startup()
    started = time.perf_counter()
    if mode == "one":
        for _ in range(jobs):
            await noop.kiq()
    else:

        async def some() -> None:
            for _ in range(jobs // 64):
                await noop.kiq()

        await asyncio.gather(*(some() for _ in range(64)))
    print(time.perf_counter() - started)
    await broker.shutdown()


async def latency(jobs) -> None:
    await broker.startup()
    await stamp.kiq(time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        await asyncio.sleep(0.02)
        await stamp.kiq(time.time())
    await broker.shutdown()


if __name__ == "__main__":
    name, words = tally.command()
    if name == "work":
        options = ["--workers", "1", "--max-async-tasks", words[0], "--log-level", "ERROR"]
        sys.exit(subprocess.call([sys.executable, "-m", "taskiq", "worker", "taskiq_peer:broker", *options]))
    call = {"fill": fill, "enqueue": enqueue, "latency": latency}[name]
    uvloop.run(call(*(int(word) if word.isdigit() else word for word in words)))
