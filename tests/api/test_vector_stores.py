import asyncio

import openai
import pytest

from app.api.vector_stores import choose_model
from app.api.wire.vector_stores import EmbeddingChoice
from app.db import Pool
from app.embedding import EmbeddingModel
from app.errors import BadRequest
from app.ids import from_wire
from app.settings import Settings, load_settings
from tests.api.conftest import Person, upload


async def test_a_store_is_made_and_read_back(ada: Person):
    made = await ada.openai.vector_stores.create(
        name="manuals", metadata={"team": "sluices"}, expires_after={"anchor": "last_active_at", "days": 7}
    )
    assert (made.name, made.metadata, made.status, made.usage_bytes) == (
        "manuals",
        {"team": "sluices"},
        "completed",
        0,
    )
    assert made.expires_after is not None
    assert made.expires_after.days == 7
    assert made.last_active_at is not None
    assert made.expires_at == made.last_active_at + 7 * 86400
    assert await ada.openai.vector_stores.retrieve(made.id) == made


async def test_a_store_needs_no_name(ada: Person):
    assert (await ada.openai.vector_stores.create()).name == ""


async def test_a_store_says_what_it_embeds_with(ada: Person):
    answer = await ada.http.post("/v1/vector_stores", json={"embedding": {"model": "wordllama-256"}})
    assert answer.json()["embedding"] == {"model": "wordllama-256", "dimensions": 256}


async def test_an_update_changes_what_is_given_and_nothing_else(ada: Person):
    made = await ada.openai.vector_stores.create(
        name="old", metadata={"k": "v"}, expires_after={"anchor": "last_active_at", "days": 7}
    )
    renamed = await ada.openai.vector_stores.update(made.id, name="new")
    assert (renamed.name, renamed.metadata, renamed.expires_after) == ("new", {"k": "v"}, made.expires_after)
    cleared = await ada.openai.vector_stores.update(made.id, metadata=None, expires_after=None)
    assert (cleared.name, cleared.metadata, cleared.expires_after) == ("new", {}, None)


async def test_stores_are_listed_both_ways_and_back(ada: Person):
    made = sorted([(await ada.openai.vector_stores.create(name=str(n))).id for n in range(5)])
    assert [store.id async for store in ada.openai.vector_stores.list(limit=2)] == made[::-1]
    assert [store.id async for store in ada.openai.vector_stores.list(limit=2, order="asc")] == made
    page = await ada.openai.vector_stores.list(limit=2, order="desc", before=made[0])
    assert [store.id for store in page.data] == [made[2], made[1]]


async def test_a_store_is_made_with_files_in_it(ada: Person):
    file_ids = [await upload(ada, f"{n}.txt") for n in range(3)]
    store = await ada.openai.vector_stores.create(name="s", file_ids=[*file_ids, file_ids[0]])
    assert (store.status, store.file_counts.total, store.file_counts.in_progress) == ("in_progress", 3, 3)
    assert sorted([each.id async for each in ada.openai.vector_stores.files.list(store.id)]) == sorted(file_ids)


async def test_a_store_with_an_unknown_file_is_not_made_at_all(ada: Person):
    with pytest.raises(openai.NotFoundError):
        await ada.openai.vector_stores.create(name="s", file_ids=["file_" + "0" * 32])
    assert [each async for each in ada.openai.vector_stores.list()] == []


async def test_deleting_a_large_store_holds_no_row_that_a_worker_has_to_write_to(ada: Person, pool: Pool):
    large, other = [await ada.openai.vector_stores.create(name=str(n)) for n in range(2)]
    old = await ada.openai.vector_stores.files.create(vector_store_id=large.id, file_id=await upload(ada))
    await pool.execute("UPDATE ingestions SET state = 'completed', finished_at = now()")
    answer = await ada.http.post(
        "/v1/ingestions",
        files=[("files", ("b.txt", b"text"))],
        data={"vector_store_ids": [large.id, other.id]},
    )
    shared = from_wire("ing", answer.json()["data"][0]["id"])
    alone = await upload(ada)
    await ada.openai.vector_stores.files.create(vector_store_id=large.id, file_id=alone)

    async with pool.acquire() as conn, conn.transaction():  # what the deletion takes so long with
        await conn.execute(
            "SELECT FROM vector_store_files WHERE file_id = $1 FOR UPDATE", from_wire("file", old.id)
        )
        deleting = asyncio.create_task(ada.openai.vector_stores.delete(large.id))
        async with asyncio.timeout(10):
            while not await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
                await asyncio.sleep(0.01)
        states = await pool.fetch("SELECT state FROM ingestions WHERE state <> 'completed' FOR UPDATE NOWAIT")
        assert sorted(row["state"] for row in states) == ["cancelled", "queued"]
    assert (await deleting).deleted
    assert await pool.fetch("SELECT ingestion_id FROM vector_store_files") == [(shared,)]


async def test_a_deleted_store_is_gone_and_its_files_stay(eve: Person, pool: Pool):
    file_id = await upload(eve)
    store = await eve.openai.vector_stores.create(name="s")
    await eve.openai.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=50)
    assert await pool.fetchval("SELECT count(*) FROM chunks") == 1
    deleted = await eve.openai.vector_stores.delete(store.id)
    assert (deleted.deleted, deleted.object) == (True, "vector_store.deleted")
    with pytest.raises(openai.NotFoundError):
        await eve.openai.vector_stores.retrieve(store.id)
    assert await pool.fetchval("SELECT count(*) FROM chunks") == 0
    assert (await eve.openai.files.retrieve(file_id)).id == file_id


OPENAI_ENGINE = {"rag_embedding_engine": "openai", "rag_openai_api_key": "sk-x", "storage_url": "file:///tmp/x"}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("text-embedding-3-small", 1536)),
        (("text-embedding-3-large", None), ("text-embedding-3-large", 3072)),
        (("text-embedding-3-large", 1024), ("text-embedding-3-large", 1024)),
        (("wordllama-256", None), ("wordllama-256", 256)),
        (("bge-m3", 1024), ("bge-m3", 1024)),
        (("bge-m3", None), None),
        (("wordllama-256", 64), None),
    ],
)
def test_with_the_openai_engine_a_store_may_choose_its_model(
    settings: Settings, choice: tuple[str, int | None] | None, expected: tuple[str, int] | None
):
    remote = load_settings(**OPENAI_ENGINE, database_url=settings.database_url, redis_url=settings.redis_url)
    wanted = choice and EmbeddingChoice(model=choice[0], dimensions=choice[1])
    if expected is None:
        with pytest.raises(BadRequest):
            choose_model(remote, wanted)
    else:
        assert choose_model(remote, wanted) == EmbeddingModel(*expected)
