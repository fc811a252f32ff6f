"""What goes wrong: each fault happens while an upload is on its way through the service."""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import redis

from tests.faults.harness import LARGE, Harness

LONGER_THAN_THE_LEASE = 3.0


def kill_worker(harness: Harness) -> None:
    """SIGKILL; a new one starts."""
    harness.replace_worker(signal.SIGKILL)


def end_worker(harness: Harness) -> None:
    """SIGTERM, as in a rolling restart."""
    harness.replace_worker(signal.SIGTERM)


def freeze_worker(harness: Harness) -> None:
    """SIGSTOP for longer than its lease: it wakes up when others have its work."""
    worker = harness.dice.choice(harness.workers)
    worker.send_signal(signal.SIGSTOP)
    threading.Timer(LONGER_THAN_THE_LEASE, lambda: worker.send_signal(signal.SIGCONT)).start()


def freeze_worker_and_withdraw(harness: Harness) -> None:
    """What it had in hand is cancelled or deleted while it sleeps."""
    harness.upload(LARGE)
    freeze_worker(harness)
    harness.dice.choice([cancel_some, delete_some])(harness)


def flush_redis(harness: Harness) -> None:
    """FLUSHALL."""
    harness.redis.flush()


def restart_redis(harness: Harness) -> None:
    """Killed or ended; an upload comes while it is away."""
    harness.redis.stop(kill_signal=harness.dice.choice([signal.SIGKILL, signal.SIGTERM]))
    harness.upload()
    time.sleep(harness.dice.choice([0, 1]))
    harness.redis.start()


def freeze_redis(harness: Harness) -> None:
    """It takes connections and answers nobody; an upload must not wait for it."""
    os.kill(harness.redis.pid, signal.SIGSTOP)
    try:
        harness.upload()
        time.sleep(1)
    finally:
        os.kill(harness.redis.pid, signal.SIGCONT)


def fill_redis(harness: Harness) -> None:
    """It refuses every write for want of memory."""
    with suppress(redis.RedisError):
        harness.queue.config_set("maxmemory", "1")
        harness.upload()
        time.sleep(0.5)
    harness.queue.config_set("maxmemory", "0")


def cut_redis(harness: Harness) -> None:
    """Every connection to it is cut."""
    with suppress(redis.RedisError):
        harness.queue.client_kill_filter(_type="normal", skipme=True)
        harness.queue.client_kill_filter(_type="pubsub", skipme=True)


def restart_postgres(harness: Harness) -> None:
    """Immediately, as a crash, or in order."""
    harness.postgres.stop(immediately=harness.dice.random() < 0.7)
    time.sleep(harness.dice.choice([0, 0.5]))
    harness.postgres.start()


def cut_postgres(harness: Harness) -> None:
    """Backends are terminated, some of them inside their write."""

    async def cut() -> None:
        conn = await asyncpg.connect(harness.postgres.url)
        try:
            for _ in range(5):
                await conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                    " AND application_name LIKE 'sluice-%' AND random() < 0.5"
                )
                await asyncio.sleep(0.05)
        finally:
            await conn.close()

    asyncio.run(cut())


def cancel_some(harness: Harness) -> None:
    """POST …/cancel of files on their way."""
    for each in harness.some_ingestions():
        if harness.ask("POST", f"/v1/ingestions/{each['id']}/cancel").get("status") == "cancelled":
            harness.cancelled.add(each["id"])


def delete_some(harness: Harness) -> None:
    """DELETE of files on their way."""
    for each in harness.some_ingestions():
        if harness.ask("DELETE", f"/v1/files/{each['file_id']}").get("deleted"):
            harness.deleted.add(each["id"])


def ring_twice(harness: Harness) -> None:
    """Every waiting hint once more, and the ones that run too."""
    with suppress(redis.RedisError):
        for key in harness.queue.scan_iter("rq:job:file_processing_*", count=1000):
            harness.queue.lpush("rq:queue:file_processing", key.removeprefix(b"rq:job:"))


def forge_jobs(harness: Harness) -> None:
    """Whoever can write to Redis tries it: no job, no function, a pickle, a callback, a key of another kind."""
    queue = harness.queue
    with suppress(redis.RedisError):
        queue.lpush("rq:queue:file_processing", b"\xff\xfe", "no:such job", "nobody")
        body = json.dumps(["os.system", None, ["touch /tmp/forged"], {}])
        known = json.dumps(["app.worker.process_file_job", None, ["not-an-id", "", None], {}])
        forged = {
            "forged1": {"data": b"\x80\x04cos\nsystem\n(S'touch /tmp/forged'\ntR."},
            "forged2": {"data": body},
            "forged3": {"data": known},
            "forged4": {"data": known, "success_callback_name": "os.abort", "meta": b"\x80\x04cos\nabort\n(tR."},
            "forged5": {},
        }
        for name, fields in forged.items():
            queue.delete(f"rq:job:{name}")
            mapping = {"status": "queued", "origin": "file_processing", "created_at": "never", **fields}
            queue.hset(f"rq:job:{name}", mapping=mapping)
            queue.lpush("rq:queue:file_processing", name)
        queue.set("rq:job:forged6", "a string")
        queue.lpush("rq:queue:file_processing", "forged6")


Fault = Callable[[Harness], None]
FAULTS: tuple[Fault, ...] = (
    kill_worker,
    end_worker,
    freeze_worker,
    freeze_worker_and_withdraw,
    flush_redis,
    restart_redis,
    freeze_redis,
    fill_redis,
    cut_redis,
    restart_postgres,
    cut_postgres,
    cancel_some,
    delete_some,
    ring_twice,
    forge_jobs,
)


def draw(dice: random.Random, count: int) -> list[Fault]:
    """`count` faults in random order, each kind as often as any other, give or take one."""
    rounds = [dice.sample(FAULTS, len(FAULTS)) for _ in range(count // len(FAULTS) + 1)]
    return [fault for each in rounds for fault in each][:count]
