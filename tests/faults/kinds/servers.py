"""Faults of what the service stands on: Redis, Postgres, the wires to them, the disk."""

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from uuid import uuid4

import asyncpg
import redis

from tests.faults.fault import faults
from tests.faults.harness import LEASE_SECONDS, Harness
from tests.faults.promises import LOST, REFUSED, REPEATED
from tests.faults.rows import files_named
from tests.support.proxy import Proxy


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
    """RST on every connection to it."""
    harness.redis_wire.reset()


def slow_redis(harness: Harness) -> None:
    """Every piece takes 50 ms."""
    _slow(harness, harness.redis_wire)


def part_from_redis(harness: Harness) -> None:
    """Nothing gets through for longer than a lease, and then all that was swallowed arrives."""
    _part(harness, harness.redis_wire)


def restart_postgres(harness: Harness) -> None:
    """Immediately, as a crash, or in order."""
    harness.postgres.stop(immediately=harness.dice.random() < 0.7)
    time.sleep(harness.dice.choice([0, 0.5]))
    harness.postgres.start()


def end_backends(harness: Harness) -> None:
    """Backends are terminated, some of them inside their write."""

    async def end() -> None:
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

    asyncio.run(end())


def cut_postgres(harness: Harness) -> None:
    """RST on every connection to it."""
    harness.postgres_wire.reset()


def cut_at_commit(harness: Harness) -> None:
    """Some connections break at a COMMIT, before or after Postgres has it; what is refused is sent again."""
    cuts = 0
    for _ in range(5):
        harness.postgres_wire.cuts_after = harness.dice.random() < 0.5
        harness.postgres_wire.cut_at = b"COMMIT"
        cuts += _send_as_an_sdk(harness)
    harness.took_place = cuts > 0


def _send_as_an_sdk(harness: Harness) -> bool:
    """A few files; a refused upload is sent again with the same body, and its header says so: it counts once.

    Whether a connection was cut meanwhile, this upload's or another.
    """
    upload = harness.draw_upload(documents=0)
    name, (_, (_, text)) = f"{uuid4().hex}.txt", upload["files"][0]
    upload["files"] = [("files", (name, text)), *upload["files"][1:3]]
    batch = harness.send(upload)
    was_cut = harness.postgres_wire.cut_at is None
    harness.postgres_wire.cut_at = None
    for retries in (1, 2):
        if batch is None:
            harness.done["uploads sent again"] += 1
            batch = harness.send(upload, **{"X-Stainless-Retry-Count": str(retries)})
    if batch is not None:
        harness.checks.append(lambda: _unless_once(harness, name))
    return was_cut


def _unless_once(harness: Harness, name: str) -> list[str]:
    found = asyncio.run(files_named(harness.postgres.url, name))
    return [] if found == 1 else [f"an upload that was sent again until it was accepted is there {found} times"]


def slow_postgres(harness: Harness) -> None:
    """Every piece takes 50 ms."""
    _slow(harness, harness.postgres_wire)


def part_from_postgres(harness: Harness) -> None:
    """Nothing gets through for longer than a lease, and then all that was swallowed arrives."""
    _part(harness, harness.postgres_wire)


def _slow(harness: Harness, wire: Proxy) -> None:
    wire.latency_seconds = 0.05
    try:
        harness.upload()
        time.sleep(0.5)
    finally:
        wire.latency_seconds = 0.0


def _part(harness: Harness, wire: Proxy) -> None:
    wire.swallow()
    try:
        time.sleep(LEASE_SECONDS + 0.5)
    finally:
        wire.pass_on()


def fill_disk(harness: Harness) -> None:
    """No room for uploads: they are refused, and what was accepted goes on."""
    if not harness.blobs.is_mount():  # the machine's own disk is not ours to fill
        harness.took_place = False
        return
    room = os.statvfs(harness.blobs)
    filler = harness.blobs / "filler"
    with filler.open("wb") as file, suppress(OSError):
        for _ in range(room.f_bavail):
            file.write(bytes(room.f_frsize))
    harness.upload()
    filler.unlink()


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
        touch = f"touch {harness.forged}"
        body = json.dumps(["os.system", None, [touch], {}])
        known = json.dumps(["app.worker.process_file_job", None, ["not-an-id", "", None], {}])
        forged = {
            "forged1": {"data": f"\x80\x04cos\nsystem\n(S'{touch}'\ntR.".encode("latin-1")},
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


FAULTS = (
    faults(
        flush_redis, restart_redis, freeze_redis, fill_redis, cut_redis, slow_redis, part_from_redis,
        slow_postgres, ring_twice, forge_jobs,
    )
    + faults(fill_disk, may=(REFUSED,))
    + faults(end_backends, cut_postgres, cut_at_commit, may=(REFUSED, REPEATED))
    + faults(restart_postgres, part_from_postgres, may=(REFUSED, REPEATED, LOST))
)  # fmt: skip
