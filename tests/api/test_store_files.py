import asyncio

import openai
import pytest

from app.db import Pool
from tests.api.conftest import Person, upload


async def test_an_attached_file_is_in_progress_until_it_is_searchable(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    attached = await ada.openai.vector_stores.files.create(
        store.id, file_id=await upload(ada), attributes={"year": 2026, "draft": True, "by": "ada", "x": 0.5}
    )
    assert (attached.status, attached.last_error, attached.usage_bytes) == ("in_progress", None, 0)
    assert attached.attributes == {"year": 2026, "draft": True, "by": "ada", "x": 0.5}
    assert attached.chunking_strategy is not None
    assert attached.chunking_strategy.to_dict() == {
        "type": "static",
        "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
    }
    read = await ada.openai.vector_stores.files.retrieve(attached.id, vector_store_id=store.id)
    assert read == attached


async def test_static_chunking_is_answered_as_given(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    attached = await ada.openai.vector_stores.files.create(
        store.id,
        file_id=await upload(ada),
        chunking_strategy={"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 50}},
    )
    assert attached.chunking_strategy is not None
    assert attached.chunking_strategy.to_dict()["static"] == {
        "max_chunk_size_tokens": 200,
        "chunk_overlap_tokens": 50,
    }


async def test_an_uploaded_file_becomes_searchable_text(eve: Person):
    store = await eve.openai.vector_stores.create(name="s")
    done = await eve.openai.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("a.txt", b"Sluices hold back water."), poll_interval_ms=50
    )
    assert (done.status, done.last_error) == ("completed", None)
    assert done.usage_bytes > 0
    content = await eve.openai.vector_stores.files.content(done.id, vector_store_id=store.id)
    assert content.object == "vector_store.file_content.page"
    assert [piece.text for piece in content.data] == ["Sluices hold back water."]
    assert (await eve.openai.vector_stores.retrieve(store.id)).usage_bytes == done.usage_bytes


async def test_a_file_that_cannot_be_read_fails_with_a_reason(eve: Person):
    store = await eve.openai.vector_stores.create(name="s")
    failed = await eve.openai.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("a.xyz", bytes(range(256)) * 40), poll_interval_ms=50
    )
    assert failed.status == "failed"
    assert failed.last_error is not None
    assert failed.last_error.code == "unsupported_file"
    assert failed.last_error.message.startswith("unsupported_file: ")
    assert failed.last_error.to_dict()["reason"] == "unsupported_file"


async def test_files_of_a_store_are_listed_by_status_both_ways_and_back(ada: Person, pool: Pool):
    store = await ada.openai.vector_stores.create(name="s")
    attached = []
    for n in range(5):
        made = await ada.openai.vector_stores.files.create(store.id, file_id=await upload(ada, f"{n}.txt"))
        attached.append(made.id)
    files = ada.openai.vector_stores.files
    assert [each.id async for each in files.list(store.id, limit=2)] == attached[::-1]
    assert [each.id async for each in files.list(store.id, limit=2, order="asc")] == attached
    page = await files.list(store.id, limit=2, order="asc", before=attached[4])
    assert [each.id for each in page.data] == attached[2:4]
    assert len([each async for each in files.list(store.id, filter="in_progress")]) == 5
    assert [each async for each in files.list(store.id, filter="completed")] == []


async def test_attributes_are_replaced(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    attached = await ada.openai.vector_stores.files.create(
        store.id, file_id=await upload(ada), attributes={"old": 1}
    )
    changed = await ada.openai.vector_stores.files.update(
        attached.id, vector_store_id=store.id, attributes={"new": "value"}
    )
    assert changed.attributes == {"new": "value"}
    emptied = await ada.openai.vector_stores.files.update(attached.id, vector_store_id=store.id, attributes=None)
    assert emptied.attributes == {}


async def test_attributes_of_a_file_that_is_not_in_the_store_are_a_404(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    with pytest.raises(openai.NotFoundError):
        await ada.openai.vector_stores.files.update(
            await upload(ada), vector_store_id=store.id, attributes={"k": "v"}
        )


async def test_a_detached_file_leaves_no_chunks_and_stays_a_file(eve: Person, pool: Pool):
    store = await eve.openai.vector_stores.create(name="s")
    file_id = await upload(eve)
    await eve.openai.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=50)
    deleted = await eve.openai.vector_stores.files.delete(file_id, vector_store_id=store.id)
    assert (deleted.deleted, deleted.object) == (True, "vector_store.file.deleted")
    assert await pool.fetchval("SELECT count(*) FROM chunks") == 0
    with pytest.raises(openai.NotFoundError):
        await eve.openai.vector_stores.files.retrieve(file_id, vector_store_id=store.id)
    with pytest.raises(openai.NotFoundError):
        await eve.openai.vector_stores.files.delete(file_id, vector_store_id=store.id)
    assert (await eve.openai.files.retrieve(file_id)).id == file_id


async def test_deleting_a_file_takes_it_out_of_its_stores(eve: Person, pool: Pool):
    stores = [(await eve.openai.vector_stores.create(name=str(n))).id for n in range(2)]
    file_id = await upload(eve)
    for store_id in stores:
        await eve.openai.vector_stores.files.create_and_poll(file_id, vector_store_id=store_id, poll_interval_ms=50)
    await eve.openai.files.delete(file_id)
    assert await pool.fetchval("SELECT count(*) FROM chunks") == 0
    for store_id in stores:
        assert (await eve.openai.vector_stores.retrieve(store_id)).file_counts.total == 0


async def test_a_file_attached_again_is_there_once(eve: Person, pool: Pool):
    store = await eve.openai.vector_stores.create(name="s")
    file_id = await upload(eve)
    for _ in range(2):
        done = await eve.openai.vector_stores.files.create_and_poll(
            file_id, vector_store_id=store.id, poll_interval_ms=50
        )
        assert done.status == "completed"
    assert await pool.fetchval("SELECT count(*) FROM chunks") == 1
    assert (await eve.openai.vector_stores.retrieve(store.id)).file_counts.total == 1


async def test_rivals_that_attach_and_delete_one_file_leave_no_loose_ends(ada: Person, pool: Pool):
    store = await ada.openai.vector_stores.create(name="s")
    file_id = await upload(ada)
    path = f"/v1/vector_stores/{store.id}/files"
    answers = await asyncio.gather(
        *(ada.http.post(path, json={"file_id": file_id}) for _ in range(8)),
        ada.http.delete(f"/v1/files/{file_id}"),
        *(ada.http.post(path, json={"file_id": file_id}) for _ in range(8)),
    )
    assert {answer.status_code for answer in answers} <= {200, 404}
    assert await pool.fetchval("SELECT count(*) FROM vector_store_files") == 0
    assert await pool.fetchval("SELECT count(*) FROM ingestions") == 0


async def test_rivals_that_attach_one_file_leave_one_live_ingestion(ada: Person, pool: Pool):
    store = await ada.openai.vector_stores.create(name="s")
    file_id = await upload(ada)
    path = f"/v1/vector_stores/{store.id}/files"
    answers = await asyncio.gather(*(ada.http.post(path, json={"file_id": file_id}) for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert await pool.fetchval("SELECT count(*) FROM ingestions WHERE state = 'queued'") == 1


async def test_rivals_that_attach_to_a_store_and_delete_it_leave_no_loose_ends(ada: Person, pool: Pool):
    store = await ada.openai.vector_stores.create(name="s")
    file_ids = [await upload(ada, f"{n}.txt") for n in range(8)]
    path = f"/v1/vector_stores/{store.id}/files"
    answers = await asyncio.gather(
        *(ada.http.post(path, json={"file_id": file_id}) for file_id in file_ids),
        ada.http.delete(f"/v1/vector_stores/{store.id}"),
        *(
            ada.http.post(f"/v1/vector_stores/{store.id}/file_batches", json={"file_ids": file_ids})
            for _ in range(3)
        ),
    )
    assert {answer.status_code for answer in answers} <= {200, 404}
    assert await pool.fetchval("SELECT count(*) FROM vector_store_files") == 0
    assert await pool.fetchval("SELECT count(*) FROM ingestions WHERE state IN ('queued', 'running')") == 0


async def test_who_deletes_while_listing_sees_every_file(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    for number in range(5):
        await ada.openai.vector_stores.files.create(store.id, file_id=await upload(ada, f"{number}.txt"))
    seen = 0
    async for file in ada.openai.vector_stores.files.list(store.id, limit=2):
        await ada.openai.vector_stores.files.delete(file.id, vector_store_id=store.id)
        seen += 1
    assert seen == 5
