import asyncio
from collections.abc import Iterator

import httpx
import openai
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from app.access.people import add_member, create_group
from app.access.tokens import revoke_token
from app.api.callers import _authenticate
from app.api.health import PUBLIC_PATHS
from app.api.repeats import _attempt
from app.api.routes import MODULES
from app.db import Pool, transaction
from app.main import create_app
from app.settings import Settings
from tests.api.conftest import Person, upload


def api_routes() -> Iterator[APIRoute]:
    for module in MODULES:
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            yield route


PRIVATE = [
    (method, route.path) for route in api_routes() if route.path not in PUBLIC_PATHS for method in route.methods
]


def test_there_is_no_route_beside_those_of_the_modules(settings: Settings):
    def is_included(route: BaseRoute) -> bool:
        return type(route).__name__ == "_IncludedRouter"

    assert all(is_included(route) for route in create_app(settings).routes)
    assert len(PRIVATE) >= 30


def test_the_caller_is_the_first_argument_of_every_private_route():
    for route in api_routes():
        first = next(iter(route.dependant.dependencies), None)
        if first is not None and first.call is _attempt:
            first = first.dependencies[0]
        assert (route.path in PUBLIC_PATHS) or (first is not None and first.call is _authenticate), route.path


@pytest.mark.parametrize(("method", "path"), PRIVATE)
async def test_every_route_asks_for_a_key(stranger: httpx.AsyncClient, method: str, path: str):
    answer = await stranger.request(method, path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("key", [None, "sk-sluice-" + "x" * 43])
async def test_nothing_of_a_strangers_body_is_read(url: str, key: str | None):
    authorization = "" if key is None else f"Authorization: Bearer {key}\r\n"
    head = (
        f"POST /v1/vector_stores HTTP/1.1\r\nHost: a\r\n{authorization}"
        "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    try:
        writer.write(head.encode() + b"{")  # and nothing more
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("value", ["Bearer sk-sluice-wrong", "Bearer", "Basic YTpi", "Bearer \u00e9", "sk-sluice"])
async def test_a_wrong_key_is_refused_and_not_repeated(stranger: httpx.AsyncClient, value: str):
    answer = await stranger.get("/v1/files", headers={"Authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert "sluice-wrong" not in answer.text


async def test_a_revoked_key_stops_working_at_once(ada: Person, pool: Pool):
    await ada.openai.files.list()
    async with transaction(pool) as conn:
        await revoke_token(conn, ada.who.token_id)
    with pytest.raises(openai.AuthenticationError):
        await ada.openai.files.list()


async def put_together(pool: Pool, creator: Person, member: Person) -> None:
    async with transaction(pool) as conn:
        group = await create_group(conn, "readers", creator_id=creator.who.user_id)
        await add_member(conn, group_id=group.id, user_id=member.who.user_id)


async def test_nobody_sees_the_vector_stores_of_others(ada: Person, bob: Person):
    store = await ada.openai.vector_stores.create(name="ada's")
    attempts = [
        bob.openai.vector_stores.retrieve(store.id),
        bob.openai.vector_stores.update(store.id, name="bob's"),
        bob.openai.vector_stores.delete(store.id),
        bob.openai.vector_stores.search(store.id, query="secrets"),
        bob.openai.vector_stores.files.list(store.id),
        bob.openai.vector_stores.files.create(store.id, file_id=await upload(bob)),
        bob.openai.vector_stores.file_batches.create(store.id, file_ids=[await upload(bob)]),
    ]
    for attempt in attempts:
        with pytest.raises(openai.NotFoundError):
            await attempt
    assert [each async for each in bob.openai.vector_stores.list()] == []


async def test_nobody_attaches_the_files_of_others(ada: Person, bob: Person):
    file_id = await upload(ada)
    store = await bob.openai.vector_stores.create(name="bob's")
    with pytest.raises(openai.NotFoundError) as refused:
        await bob.openai.vector_stores.files.create(store.id, file_id=file_id)
    assert file_id in refused.value.message


async def test_a_store_shared_for_reading_can_be_read_and_not_written(ada: Person, bob: Person, pool: Pool):
    await put_together(pool, ada, bob)
    store = await ada.openai.vector_stores.create(name="shared")
    shared = await ada.http.put(f"/v1/vector_stores/{store.id}/shares/readers", json={"may_write": False})
    assert shared.json() == {
        "object": "vector_store.share",
        "vector_store_id": store.id,
        "group_name": "readers",
        "may_write": False,
    }
    assert (await bob.openai.vector_stores.retrieve(store.id)).name == "shared"
    assert [each.id async for each in bob.openai.vector_stores.list()] == [store.id]
    for attempt in (
        bob.openai.vector_stores.update(store.id, name="mine"),
        bob.openai.vector_stores.files.create(store.id, file_id=await upload(bob)),
        bob.openai.vector_stores.delete(store.id),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            await attempt


async def test_a_store_shared_for_writing_takes_files_and_stays_its_owners(ada: Person, bob: Person, pool: Pool):
    await put_together(pool, ada, bob)
    store = await ada.openai.vector_stores.create(name="shared")
    await ada.http.put(f"/v1/vector_stores/{store.id}/shares/readers", json={"may_write": True})
    attached = await bob.openai.vector_stores.files.create(store.id, file_id=await upload(bob))
    assert [each.id async for each in ada.openai.vector_stores.files.list(store.id)] == [attached.id]
    with pytest.raises(openai.PermissionDeniedError):
        await bob.openai.vector_stores.delete(store.id)
    with pytest.raises(openai.PermissionDeniedError):
        await bob.openai.vector_stores.update(store.id, expires_after={"anchor": "last_active_at", "days": 1})
    assert (await bob.openai.vector_stores.update(store.id, name="ours")).expires_after is None
    refused = await bob.http.put(f"/v1/vector_stores/{store.id}/shares/readers", json={"may_write": True})
    assert refused.status_code == 403


async def test_a_share_that_is_taken_back_ends_at_once(ada: Person, bob: Person, pool: Pool):
    await put_together(pool, ada, bob)
    store = await ada.openai.vector_stores.create(name="shared")
    await ada.http.put(f"/v1/vector_stores/{store.id}/shares/readers", json={})
    assert [
        each["group_name"] for each in (await ada.http.get(f"/v1/vector_stores/{store.id}/shares")).json()["data"]
    ] == ["readers"]
    assert (await ada.http.delete(f"/v1/vector_stores/{store.id}/shares/readers")).json()["deleted"]
    with pytest.raises(openai.NotFoundError):
        await bob.openai.vector_stores.retrieve(store.id)


async def test_sharing_with_a_group_that_does_not_exist_is_refused(ada: Person):
    store = await ada.openai.vector_stores.create(name="shared")
    answer = await ada.http.put(f"/v1/vector_stores/{store.id}/shares/nobody", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "No group is named 'nobody'."
