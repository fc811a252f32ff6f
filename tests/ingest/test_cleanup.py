"""Expiry and orphans: what nobody needs any more goes, and nothing else."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from structlog.testing import capture_logs

from app.ids import new_id
from app.ingest.cleanup import clean_up, remove_expired, remove_orphaned_blobs
from app.ingest.outcomes import Completed, Superseded
from app.records.files import blob_key
from tests.ingest.conftest import Workbench

TWO_DAYS = 2 * 24 * 3600


def place_of(bench: Workbench, file: UUID) -> Path:
    folder = bench.resources.settings.storage_path
    assert folder is not None
    return folder / blob_key(file)


def age(path: Path) -> None:
    then = time.time() - TWO_DAYS
    os.utime(path, (then, then))


async def test_an_expired_file_goes_with_its_chunks_and_its_bytes(bench: Workbench) -> None:
    store = await bench.store()
    gone, kept = await bench.file(), await bench.file()
    for file in (gone, kept):
        assert isinstance(await bench.processor.process(await bench.attach(file, [store])), Completed)
    before = await bench.chunks(store)
    await bench.sql("UPDATE files SET expires_at = now() - interval '1 s' WHERE id = $1", gone)
    await bench.sql("UPDATE files SET expires_at = now() + interval '1 h' WHERE id = $1", kept)
    await remove_expired(bench.resources)
    assert await bench.sql("SELECT array_agg(id) FROM files") == [kept]
    assert await bench.chunks(store) == before // 2
    assert not place_of(bench, gone).exists()
    assert place_of(bench, kept).exists()
    assert await bench.findings() == []


async def test_a_file_that_expires_on_its_way_is_superseded(bench: Workbench) -> None:
    file, store = await bench.file(), await bench.store()
    ingestion = await bench.attach(file, [store])
    await bench.sql("UPDATE files SET expires_at = now() - interval '1 s'")
    await remove_expired(bench.resources)
    assert isinstance(await bench.processor.process(ingestion), Superseded)


async def test_an_expired_store_goes_and_its_files_stay(bench: Workbench) -> None:
    gone, kept = await bench.store(), await bench.store()
    file = await bench.file()
    assert isinstance(await bench.processor.process(await bench.attach(file, [gone, kept])), Completed)
    await bench.sql(
        "UPDATE vector_stores SET expires_after_days = 1, last_active_at = now() - interval '2 days' WHERE id = $1",
        gone,
    )
    await remove_expired(bench.resources)
    assert await bench.sql("SELECT array_agg(id) FROM vector_stores") == [kept]
    assert await bench.chunks(gone) == 0 < await bench.chunks(kept)
    assert await bench.sql("SELECT count(*) FROM files") == 1
    assert await bench.findings() == []


async def test_old_blobs_without_a_file_go(bench: Workbench) -> None:
    known = await bench.file()
    orphan, fresh = new_id(), new_id()
    for file in (orphan, fresh):
        place_of(bench, file).write_bytes(b"nobody's")
    foreign = place_of(bench, known).with_name("notes.txt")
    foreign.write_bytes(b"not ours")
    for path in (place_of(bench, known), place_of(bench, orphan), foreign):
        age(path)
    assert await remove_orphaned_blobs(bench.resources) == 1
    assert not place_of(bench, orphan).exists()
    assert place_of(bench, known).exists()
    assert place_of(bench, fresh).exists()
    assert foreign.exists()


async def test_another_databases_blobs_are_not_taken_for_orphans(bench: Workbench) -> None:
    await bench.file()
    others = [place_of(bench, new_id()) for _ in range(150)]
    for path in others:
        path.write_bytes(b"another's")
        age(path)
    with capture_logs() as logs:
        assert await remove_orphaned_blobs(bench.resources) == 0
    assert "STORAGE_URL" in logs[-1]["event"]
    assert all(path.exists() for path in others)


async def test_what_cannot_be_cleaned_up_now_is_left(bench: Workbench) -> None:
    file = await bench.file()
    await bench.sql("UPDATE files SET expires_at = $1", datetime(2000, 1, 1, tzinfo=UTC))
    folder = place_of(bench, file).parent
    folder.chmod(0o500)
    try:
        await clean_up(bench.resources, with_blobs=True)
    finally:
        folder.chmod(0o700)
    assert await bench.sql("SELECT count(*) FROM files") == 0
