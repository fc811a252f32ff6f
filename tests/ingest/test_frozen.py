"""A worker that is frozen while it holds a file's lock: others take the file over, and it comes too late."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from app.ingest.maintenance import sweep
from app.ingest.outcomes import Completed
from tests.ingest.conftest import Workbench
from tests.support.environment import clean_environment

LEASE_SECONDS = 1.0


@contextmanager
def asleep_in_the_write(bench: Workbench, ingestion: UUID) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the row's lock and is stopped."""
    settings = bench.resources.settings
    environment = clean_environment() | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url or "",
        "STORAGE_URL": settings.storage_url,
        "LEASE_SECONDS": str(LEASE_SECONDS),
    }
    command = [sys.executable, "-m", "tests.ingest.sleeper", str(ingestion)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            yield process
        finally:
            process.kill()


async def test_who_sleeps_inside_its_write_neither_blocks_the_rescue_nor_commits(bench: Workbench) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    with asleep_in_the_write(bench, ingestion) as sleeper:
        async with asyncio.timeout(30):
            while not isinstance(await bench.processor.process(ingestion), Completed):
                await sweep(bench.resources, has_queue=False)  # nobody is there to be rung for
                await asyncio.sleep(0.02)
        sleeper.send_signal(signal.SIGCONT)
        answer, _ = await asyncio.to_thread(sleeper.communicate, timeout=30)
    assert answer.split() == ["refused"]
    row = await bench.row(ingestion)
    assert (row.state, row.fence, row.crashes) == ("completed", 2, 1)
    assert await bench.findings() == []


async def test_a_transaction_may_stand_still_for_half_a_lease(bench: Workbench) -> None:
    assert bench.resources.settings.lease_seconds == 3
    assert await bench.sql("SHOW idle_in_transaction_session_timeout") == "1500ms"
