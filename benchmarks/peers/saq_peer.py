"""SAQ."""

import asyncio
import time

import tally
import uvloop
from saq import Queue, Worker


async def noop(ctx) -> None:
    tally.begin()
    tally.end()


async def sleep(ctx) -> None:
    tally.begin()
    await asyncio.sleep(0.01)
    tally.end()


async def stamp(ctx, *, sent) -> None:
    tally.arrived(sent)


def queue() -> Queue:
    return Queue.from_url(tally.URL, name="q")


async def fill(kind, jobs) -> None:
    to = queue()
    await to.connect()
    for start in range(0, jobs, 200):
        await asyncio.gather(*(to.enqueue(kind) for _ in range(start, min(start + 200, jobs))))
    await to.disconnect()


async def enqueue(mode, jobs) -> None:
    to = queue()
    await to.connect()
    started = time.perf_counter()
    if mode == "one":
        for _ in range(jobs):
            await to.enqueue("noop")
    else:

        async def some() -> None:
            for _ in range(jobs // 64):
                await to.enqueue("noop")

        await asyncio.gather(*(some() for _ in range(64)))
    print(time.perf_counter() - started)
    await to.disconnect()


async def latency(jobs) -> None:
    to = queue()
    await to.connect()
    await to.enqueue("stamp", sent=time.time())
    tally.wait_until_listening()
    for _ in range(jobs):
        await asyncio.sleep(0.02)
        await to.enqueue("stamp", sent=time.time())
    await to.disconnect()


async def work(at_once) -> None:
    worker = Worker(queue(), functions=[noop, sleep, stamp], concurrency=at_once)
    await worker.start()


if __name__ == "__main__":
    name, words = tally.command()
    call = {"fill": fill, "enqueue": enqueue, "latency": latency, "work": work}[name]
    uvloop.run(call(*(int(word) if word.isdigit() else word for word in words)))
