import logging

import openai
import pytest

from app.db import Pool
from app.settings import Settings, load_settings
from tests.api.conftest import MakePrincipal, Person, person, serving, upload

SECRET = "sk-canary-4f9a1c"


async def add(somebody: Person, **more: str) -> dict[str, object]:
    answer = await somebody.http.post("/v1/embedding_keys", json={"name": "mine", "key": SECRET, **more})
    assert answer.status_code == 201, answer.text
    assert SECRET not in answer.text
    return dict(answer.json())


async def test_a_key_is_kept_and_never_shown(ada: Person, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    made = await add(ada)
    assert set(made) == {"id", "object", "created_at", "name", "base_url", "revoked_at"}
    listed = await ada.http.get("/v1/embedding_keys")
    assert listed.json()["data"] == [made]
    assert SECRET not in listed.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        {"key": SECRET},
        {"name": 5, "key": SECRET},
        {"name": "mine", "key": [SECRET]},
        {"name": "mine", "key": SECRET + "\u00e9"},
        {"name": "mine", "key": SECRET * 1000},
        {"name": "mine", "key": SECRET, "colour": SECRET},
        {"name": "mine", "key": SECRET, "base_url": "http://169.254.169.254/"},
        [SECRET],
    ],
)
async def test_a_refusal_does_not_repeat_the_key(ada: Person, caplog: pytest.LogCaptureFixture, body: object):
    caplog.set_level(logging.DEBUG)
    answer = await ada.http.post("/v1/embedding_keys", json=body)
    assert answer.status_code == 400
    assert SECRET not in answer.text
    assert SECRET not in caplog.text


async def test_a_key_is_revoked_by_its_owner_only(ada: Person, bob: Person):
    made = await add(ada)
    assert (await bob.http.delete(f"/v1/embedding_keys/{made['id']}")).status_code == 404
    assert (await bob.http.get("/v1/embedding_keys")).json()["data"] == []
    deleted = await ada.http.delete(f"/v1/embedding_keys/{made['id']}")
    assert deleted.json() == {"id": made["id"], "object": "embedding_key.deleted", "deleted": True}
    (listed,) = (await ada.http.get("/v1/embedding_keys")).json()["data"]
    assert listed["revoked_at"] is not None


def remote(settings: Settings, **more: object) -> Settings:
    return load_settings(
        database_url=settings.database_url,
        redis_url=settings.redis_url,
        storage_url=settings.storage_url,
        sluice_key_encryption_key=settings.sluice_key_encryption_key,
        rag_embedding_engine="openai",
        rag_openai_api_base_url="http://127.0.0.1:9/v1",
        **more,
    )


async def test_only_listed_base_urls_are_called(settings: Settings, make_principal: MakePrincipal):
    own = remote(settings, rag_openai_allowed_base_urls="https://one.example/v1, https://two.example/v1/")
    async with serving(own) as url, person(url, *await make_principal("ada")) as ada:
        assert (await add(ada))["base_url"] == "http://127.0.0.1:9/v1"
        assert (await add(ada, base_url="https://two.example/v1"))["base_url"] == "https://two.example/v1"
        refused = await ada.http.post(
            "/v1/embedding_keys", json={"name": "x", "key": SECRET, "base_url": "https://three.example/v1"}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "base_url")


async def test_without_any_key_a_paid_store_takes_no_files(settings: Settings, make_principal: MakePrincipal):
    async with serving(remote(settings)) as url, person(url, *await make_principal("ada")) as ada:
        store = await ada.openai.vector_stores.create(name="s")
        file_id = await upload(ada)
        with pytest.raises(openai.BadRequestError) as refused:
            await ada.openai.vector_stores.files.create(store.id, file_id=file_id)
        assert refused.value.code == "no_embedding_key"
        with pytest.raises(openai.BadRequestError):
            await ada.openai.vector_stores.search(store.id, query="anything")
        await add(ada)
        attached = await ada.openai.vector_stores.files.create(store.id, file_id=file_id)
        assert attached.status == "in_progress"


async def test_the_key_is_resolved_where_the_user_is_known(
    settings: Settings, make_principal: MakePrincipal, pool: Pool
):
    async with serving(remote(settings)) as url, person(url, *await make_principal("ada")) as ada:
        made = await add(ada)
        store = await ada.openai.vector_stores.create(name="s")
        await ada.openai.vector_stores.files.create(store.id, file_id=await upload(ada))
        key_id = await pool.fetchval("SELECT embedding_key_id FROM ingestions")
        assert f"ekey_{key_id.hex}" == made["id"]


async def test_a_local_store_needs_no_key(ada: Person, pool: Pool):
    store = await ada.openai.vector_stores.create(name="s")
    await ada.openai.vector_stores.files.create(store.id, file_id=await upload(ada))
    assert await pool.fetchval("SELECT embedding_key_id FROM ingestions") is None


async def test_a_server_that_cannot_seal_keeps_no_keys(settings: Settings, make_principal: MakePrincipal):
    bare = settings.model_copy(update={"sluice_key_encryption_key": None})
    async with serving(bare) as url, person(url, *await make_principal("ada")) as ada:
        answer = await ada.http.post("/v1/embedding_keys", json={"name": "mine", "key": SECRET})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_sealing")
        assert SECRET not in answer.text
