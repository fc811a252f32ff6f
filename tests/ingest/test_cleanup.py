"""Expiry and orphans: what nobody needs any more goes, and nothing else."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from structlog.testing import capture_logs

from app.api.attaching import FileToAttach, attach_files
from app.db import transaction
from app.extraction import Chunking
from app.ids import new_id
from app.ingest.cleanup import clean_up, remove_expired_files, remove_expired_stores, remove_orphaned_blobs
from app.ingest.outcomes import Completed, Superseded
from app.records.files import blob_key
from app.records.vector_stores import expired_stores, lock_expired_store, note_activity
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
    await remove_expired_files(bench.resources)
    assert await bench.sql("SELECT array_agg(id) FROM files") == [kept]
    assert await bench.chunks(store) == before // 2
    assert not place_of(bench, gone).exists()
    assert place_of(bench, kept).exists()
    assert await bench.findings() == []


async def test_a_file_that_expires_on_its_way_is_superseded(bench: Workbench) -> None:
    file, store = await bench.file(), await bench.store()
    ingestion = await bench.attach(file, [store])
    await bench.sql("UPDATE files SET expires_at = now() - interval '1 s'")
    await remove_expired_files(bench.resources)
    assert isinstance(await bench.processor.process(ingestion), Superseded)


async def test_all_that_has_expired_goes_though_one_cannot(bench: Workbench) -> None:
    bad = await bench.file()
    await bench.sql(
        """
        INSERT INTO files (id, owner_id, filename, purpose, size_bytes, sha256, expires_at)
        SELECT gen_random_uuid(), $1, 'a.txt', 'assistants', 1, '', now() - interval '1 h'
        FROM generate_series(1, 250)
        """,
        bench.owner.user_id,
    )
    await bench.sql("UPDATE files SET expires_at = now() - interval '2 h' WHERE id = $1", bad)
    await bench.sql("CREATE TABLE holds (file_id uuid REFERENCES files)")
    await bench.sql("INSERT INTO holds VALUES ($1)", bad)
    with capture_logs() as logs:
        await remove_expired_files(bench.resources)
    assert await bench.sql("SELECT array_agg(id) FROM files") == [bad]
    assert place_of(bench, bad).exists()
    assert logs[-1] | {"removed": 250, "left": 1} == logs[-1]


async def test_an_expired_store_goes_and_its_files_stay(bench: Workbench) -> None:
    gone, kept = await bench.store(), await bench.store()
    file = await bench.file()
    assert isinstance(await bench.processor.process(await bench.attach(file, [gone, kept])), Completed)
    await expire(bench, gone)
    await remove_expired_stores(bench.resources)
    assert await bench.sql("SELECT array_agg(id) FROM vector_stores") == [kept]
    assert await bench.chunks(gone) == 0 < await bench.chunks(kept)
    assert await bench.sql("SELECT count(*) FROM files") == 1
    assert await bench.findings() == []


async def expire(bench: Workbench, store: UUID) -> None:
    await bench.sql(
        "UPDATE vector_stores SET expires_after_days = 1, last_active_at = now() - interval '2 days' WHERE id = $1",
        store,
    )


async def test_a_store_that_files_are_on_their_way_to_does_not_expire(bench: Workbench) -> None:
    store = await bench.store()
    ingestion = await bench.attach(await bench.file(), [store])
    await expire(bench, store)
    await remove_expired_stores(bench.resources)
    assert isinstance(await bench.processor.process(ingestion), Completed)
    await remove_expired_stores(bench.resources)
    assert await bench.sql("SELECT count(*) FROM vector_stores") == 0


async def test_a_store_that_is_used_while_others_are_deleted_stays(bench: Workbench) -> None:
    store = await bench.store()
    await expire(bench, store)
    async with transaction(bench.resources.pool) as conn:
        assert await expired_stores(conn, skip=[], limit=9) == [store]
        await note_activity(conn, [store])
    async with transaction(bench.resources.pool) as conn:
        assert await lock_expired_store(conn, store) is None


async def test_attaching_a_file_is_activity(bench: Workbench) -> None:
    store, file = await bench.store(), await bench.file()
    await expire(bench, store)
    async with transaction(bench.resources.pool) as conn:
        await attach_files(
            conn,
            bench.resources.settings,
            bench.owner,
            files=[FileToAttach(file, Chunking(800, 400))],
            store_ids=[store],
        )
    assert await bench.sql("SELECT last_active_at > now() - interval '1 minute' FROM vector_stores")


async def test_what_uploads_that_were_cut_off_have_left_goes_after_a_day(bench: Workbench) -> None:
    whole = place_of(bench, await bench.file())
    old, fresh = (whole.with_name(f"{new_id().hex}#{n}") for n in (1, 2))
    foreign = whole.with_name("notes#1")
    for path in (old, fresh, foreign):
        path.write_bytes(b"half")
    age(old)
    age(foreign)
    assert await remove_orphaned_blobs(bench.resources) == 1
    assert {path.name for path in whole.parent.iterdir()} == {whole.name, fresh.name, foreign.name}


async def test_one_fault_keeps_nothing_else_from_being_cleaned_up(bench: Workbench) -> None:
    await expire(bench, await bench.store())
    await bench.sql("ALTER TABLE files RENAME COLUMN expires_at TO something_else")
    with capture_logs() as logs:
        await clean_up(bench.resources, with_blobs=False)
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["clean-up failed"]
    assert await bench.sql("SELECT count(*) FROM vector_stores") == 0


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
    others = [place_of(bench, new_id()) for _ in range(5)]
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
