"""Claims that are cut off, and jobs that end before they have begun."""

from pathlib import Path
from urllib.parse import urlparse

import pytest
from rq import Queue

from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply
from tests.jobs.redis_snapshot import assert_no_run_is_recorded, place_of
from tests.support.proxy import Proxy


async def test_a_claim_that_a_shutdown_cut_off_leaves_its_job_in_the_queue(
    queue: Queue, run_worker: RunWorker, redis_url: str, until: Until
) -> None:
    """Redis has started it, and nobody here has heard of that."""
    client = queue.connection
    with Proxy(urlparse(redis_url).path) as wire:
        wire.answer_to_swallow = b"description"
        async with run_worker(**PLAIN, url=f"redis://127.0.0.1:{wire.port}", lease_seconds=600):
            queue.enqueue(f.nothing, job_id="one")
            await until(lambda: reply(wire.answer_to_swallow is None))
    assert place_of(client, "one") == ["queued", "queue"]
    assert client.hmget("rq:job:one", "crashes", "job_try") == [None, None]
    assert_no_run_is_recorded(client)


async def test_a_module_that_exits_when_it_is_imported_fails_its_job_alone(
    queue: Queue, run_worker: RunWorker, until: Until, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    jobs = [queue.enqueue("module_that_exits.function"), queue.enqueue(f.nothing)]
    async with run_worker(**PLAIN):
        await until(lambda: reply(jobs[0].is_failed and jobs[1].is_finished))
