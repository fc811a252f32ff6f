import openai
import pytest

from tests.api.conftest import Person, upload


async def test_a_batch_counts_each_file_once(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    file_ids = [await upload(ada, f"{n}.txt") for n in range(3)]
    batch = await ada.openai.vector_stores.file_batches.create(store.id, file_ids=[*file_ids, file_ids[1]])
    assert (batch.status, batch.vector_store_id) == ("in_progress", store.id)
    assert batch.file_counts.to_dict() == {
        "in_progress": 3,
        "completed": 0,
        "failed": 0,
        "cancelled": 0,
        "total": 3,
    }
    assert await ada.openai.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id) == batch
    listed = ada.openai.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=2)
    assert sorted([each.id async for each in listed]) == sorted(file_ids)


async def test_files_of_a_batch_have_attributes_and_chunking_of_their_own(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    first, second = await upload(ada, "1.txt"), await upload(ada, "2.txt")
    sizes = {"max_chunk_size_tokens": 300, "chunk_overlap_tokens": 100}
    await ada.openai.vector_stores.file_batches.create(
        store.id,
        files=[
            {"file_id": first, "attributes": {"n": 1}},
            {"file_id": second, "chunking_strategy": {"type": "static", "static": sizes}},
        ],
    )
    one = await ada.openai.vector_stores.files.retrieve(first, vector_store_id=store.id)
    two = await ada.openai.vector_stores.files.retrieve(second, vector_store_id=store.id)
    assert one.attributes == {"n": 1}
    assert two.chunking_strategy is not None
    assert two.chunking_strategy.to_dict()["static"] == sizes


async def test_attributes_of_a_batch_hold_for_all_its_files(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    file_id = await upload(ada)
    await ada.openai.vector_stores.file_batches.create(store.id, file_ids=[file_id], attributes={"k": "v"})
    found = await ada.openai.vector_stores.files.retrieve(file_id, vector_store_id=store.id)
    assert found.attributes == {"k": "v"}


async def test_a_cancelled_batch_has_only_cancelled_files(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    file_ids = [await upload(ada, f"{n}.txt") for n in range(3)]
    batch = await ada.openai.vector_stores.file_batches.create(store.id, file_ids=file_ids)
    cancelled = await ada.openai.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 3)
    again = await ada.openai.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert again == cancelled
    filtered = ada.openai.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="cancelled"
    )
    assert len([each async for each in filtered]) == 3


async def test_a_batch_is_all_or_nothing(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    with pytest.raises(openai.NotFoundError):
        await ada.openai.vector_stores.file_batches.create(
            store.id, file_ids=[await upload(ada), "file_" + "0" * 32]
        )
    assert (await ada.openai.vector_stores.retrieve(store.id)).file_counts.total == 0


async def test_a_batch_belongs_to_its_store(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    other = await ada.openai.vector_stores.create(name="t")
    batch = await ada.openai.vector_stores.file_batches.create(store.id, file_ids=[await upload(ada)])
    with pytest.raises(openai.NotFoundError):
        await ada.openai.vector_stores.file_batches.retrieve(batch.id, vector_store_id=other.id)


async def test_the_sdk_uploads_a_batch_and_waits_for_it(eve: Person):
    store = await eve.openai.vector_stores.create(name="s")
    batch = await eve.openai.vector_stores.file_batches.upload_and_poll(
        store.id,
        files=[(f"{n}.txt", f"Text number {n}.".encode()) for n in range(6)],
        poll_interval_ms=50,
    )
    assert (batch.status, batch.file_counts.completed, batch.file_counts.total) == ("completed", 6, 6)
    assert (await eve.openai.vector_stores.retrieve(store.id)).status == "completed"
