"""The same request sent again: by the SDKs when an answer is lost, or with an Idempotency-Key."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import urlsplit

import asyncpg
import openai
import pytest

from app.settings import Settings
from tests.api.conftest import Person, upload
from tests.support.proxy import Proxy


@pytest.fixture
def wire(url: str) -> Iterator[Proxy]:
    with Proxy(urlsplit(url).port or 0) as proxy:
        yield proxy


@pytest.fixture
async def patient(ada: Person, wire: Proxy) -> AsyncIterator[openai.AsyncOpenAI]:
    """Ada's SDK as users have it, with its retries, over a wire that loses answers."""
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{wire.port}/v1", api_key=ada.api_key) as client:
        yield client


@pytest.mark.parametrize("lost", [1, 2])
async def test_an_upload_whose_answer_is_lost_is_stored_once(
    patient: openai.AsyncOpenAI, wire: Proxy, blob_names: Callable[[], list[str]], lost: int
) -> None:
    wire.answers_to_lose = lost
    made = await patient.files.create(file=("a.txt", b"Once is enough."), purpose="assistants")
    assert wire.answers_to_lose == 0
    assert [file.id async for file in patient.files.list()] == [made.id]
    assert len(blob_names()) == 1


async def test_a_store_a_batch_and_an_attachment_are_made_once(
    ada: Person, patient: openai.AsyncOpenAI, wire: Proxy
) -> None:
    files = [await upload(ada, f"{number}.txt") for number in range(3)]
    wire.answers_to_lose = 1
    store = await patient.vector_stores.create(name="once")
    wire.answers_to_lose = 1
    batch = await patient.vector_stores.file_batches.create(store.id, file_ids=files[:2])
    wire.answers_to_lose = 1
    attached = await patient.vector_stores.files.create(store.id, file_id=files[2])
    assert wire.answers_to_lose == 0
    assert [each.id async for each in ada.openai.vector_stores.list()] == [store.id]
    assert (attached.id, batch.file_counts.total) == (files[2], 2)
    page = (await ada.http.get("/v1/ingestions")).json()
    assert len(page["data"]) == 3


async def _batch_upload(somebody: Person, store: str, **headers: str) -> dict[str, object]:
    files = [("files", (f"{number}.txt", f"Text number {number}.")) for number in range(4)]
    files.append(("files", ("none.txt", "")))
    answer = await somebody.http.post(
        "/v1/ingestions", data={"vector_store_ids": [store]}, files=files, headers=headers
    )
    assert answer.status_code == 202, answer.text
    return answer.json() | {"replayed": answer.headers.get("Idempotent-Replayed")}


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Stainless-Retry-Count"])
async def test_a_batch_upload_sent_again_shows_the_first_one(ada: Person, name: str) -> None:
    store = (await ada.openai.vector_stores.create()).id
    first = await _batch_upload(ada, store, **({name: "1"} if name == "Idempotency-Key" else {}))
    again = await _batch_upload(ada, store, **{name: "1"})
    assert again.pop("replayed") == "true"
    assert first.pop("replayed") is None
    assert again["id"] == first["id"]
    assert [each["id"] for each in again["data"]] == [each["id"] for each in first["data"]]  # type: ignore[attr-defined]
    assert again["rejected"] == first["rejected"]
    assert len([file async for file in ada.openai.files.list()]) == 4


async def test_what_is_sent_twice_on_purpose_is_made_twice(ada: Person) -> None:
    assert await upload(ada) != await upload(ada)


@pytest.mark.parametrize("count", ["2", "9" * 5000], ids=["second", "endless"])
async def test_a_retry_of_what_never_arrived_is_new(ada: Person, count: str) -> None:
    headers = {"X-Stainless-Retry-Count": count}
    made = await ada.openai.files.create(file=("a.txt", b"New."), purpose="assistants", extra_headers=headers)
    assert made.id


async def test_equal_requests_at_once_with_one_key_make_one(ada: Person) -> None:
    headers = {"Idempotency-Key": "x" * 255}
    answers = await asyncio.gather(
        *(ada.http.post("/v1/vector_stores", json={"name": "one"}, headers=headers) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == [""] + ["true"] * 7


async def test_a_key_is_for_one_content_one_path_and_one_user(ada: Person, bob: Person) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await ada.http.post("/v1/vector_stores", json={"name": "one"}, headers=headers)
    other = await ada.http.post("/v1/vector_stores", json={"name": "two"}, headers=headers)
    assert (other.status_code, other.json()["error"]["type"]) == (422, "invalid_request_error")
    assert "Idempotency-Key" in other.json()["error"]["message"]
    bobs = await bob.http.post("/v1/vector_stores", json={"name": "one"}, headers=headers)
    assert bobs.json()["id"] != first.json()["id"]
    file = {"file": ("a.txt", b"Another path.")}
    answer = await ada.http.post("/v1/files", data={"purpose": "assistants"}, files=file, headers=headers)
    assert answer.status_code == 200


async def test_a_refusal_is_not_remembered(ada: Person) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"file_ids": ["file-0000000000000000000000000000000a"]}
    assert (await ada.http.post("/v1/vector_stores", json=body, headers=headers)).status_code in {400, 404}
    assert (await ada.http.post("/v1/vector_stores", json={}, headers=headers)).status_code == 200


async def test_a_key_expires(ada: Person, settings: Settings) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await ada.http.post("/v1/vector_stores", json={"name": "one"}, headers=headers)
    conn = await asyncpg.connect(settings.database_url)
    await conn.execute("UPDATE accepted_requests SET expires_at = now() - interval '1 second'")
    await conn.close()
    second = await ada.http.post("/v1/vector_stores", json={"name": "two"}, headers=headers)
    assert second.status_code == 200
    assert second.json()["id"] != first.json()["id"]


async def test_what_was_deleted_meanwhile_is_not_made_again(ada: Person) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await ada.http.post("/v1/vector_stores", json={}, headers=headers)
    await ada.openai.vector_stores.delete(first.json()["id"])
    assert (await ada.http.post("/v1/vector_stores", json={}, headers=headers)).status_code == 404


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f"])
async def test_a_key_has_a_form(ada: Person, key: str) -> None:
    answer = await ada.http.post("/v1/vector_stores", json={}, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


RETRY = {"X-Stainless-Retry-Count": "1"}


async def test_an_upload_after_a_deletion_is_stored_although_its_first_try_was_lost(ada: Person) -> None:
    await ada.openai.files.delete(await upload(ada))
    again = await ada.openai.files.create(
        file=("a.txt", b"A short text about sluices."), purpose="assistants", extra_headers=RETRY
    )
    assert [file.id async for file in ada.openai.files.list()] == [again.id]


async def test_a_store_made_after_a_deletion_is_new(ada: Person) -> None:
    first = await ada.openai.vector_stores.create(name="s")
    await ada.openai.vector_stores.delete(first.id)
    assert (await ada.openai.vector_stores.create(name="s", extra_headers=RETRY)).id != first.id


async def test_what_was_detached_is_attached_again(ada: Person) -> None:
    store = (await ada.openai.vector_stores.create()).id
    file_id = await upload(ada)
    await ada.openai.vector_stores.files.create(store, file_id=file_id)
    await ada.openai.vector_stores.files.delete(file_id, vector_store_id=store)
    await ada.openai.vector_stores.files.create(store, file_id=file_id, extra_headers=RETRY)
    assert [file.id async for file in ada.openai.vector_stores.files.list(store)] == [file_id]


async def test_a_batch_that_was_cancelled_is_asked_for_again(ada: Person) -> None:
    store = (await ada.openai.vector_stores.create()).id
    files = [await upload(ada)]
    batches = ada.openai.vector_stores.file_batches
    first = await batches.create(store, file_ids=files)
    await batches.cancel(first.id, vector_store_id=store)
    again = await batches.create(store, file_ids=files, extra_headers=RETRY)
    assert again.id != first.id
    assert (await batches.create(store, file_ids=files, extra_headers=RETRY)).id == again.id


async def test_a_file_that_failed_is_tried_again(eve: Person) -> None:
    store = (await eve.openai.vector_stores.create()).id
    file_id = await upload(eve, "a.bin", bytes(range(256)))
    failed = await eve.openai.vector_stores.files.create_and_poll(
        file_id, vector_store_id=store, poll_interval_ms=20
    )
    assert failed.status == "failed"
    path = f"/v1/vector_stores/{store}/files"
    again = await eve.http.post(path, json={"file_id": file_id}, headers=RETRY)
    first, second = [each["id"] for each in (await eve.http.get("/v1/ingestions?order=asc")).json()["data"]]
    assert again.json()["ingestion_id"] == second != first


@pytest.mark.parametrize(
    ("headers", "is_repeated"),
    [
        ({}, True),
        ({"X-Stainless-Read-Timeout": "600"}, True),
        ({"X-Stainless-Read-Timeout": "nonsense"}, True),
        ({"X-Stainless-Read-Timeout": "inf"}, True),
        ({"X-Stainless-Read-Timeout": "30.5"}, False),
        ({"X-Stainless-Timeout": "30"}, False),
    ],
)
async def test_a_retry_comes_no_later_than_its_sdk_has_patience(
    ada: Person, settings: Settings, headers: dict[str, str], *, is_repeated: bool
) -> None:
    first = await ada.http.post("/v1/vector_stores", json={"name": "s"})
    conn = await asyncpg.connect(settings.database_url)
    await conn.execute("UPDATE accepted_requests SET expires_at = expires_at - interval '5 minutes'")
    await conn.close()
    second = await ada.http.post("/v1/vector_stores", json={"name": "s"}, headers=RETRY | headers)
    assert (second.json()["id"] == first.json()["id"]) == is_repeated


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Stainless-Retry-Count"])
async def test_an_embedding_key_is_added_once(ada: Person, settings: Settings, name: str) -> None:
    body, path = {"name": "mine", "key": "sk-mine"}, "/v1/embedding_keys"
    first = await ada.http.post(path, json=body, headers={name: "1"} if name == "Idempotency-Key" else {})
    again = await ada.http.post(path, json=body, headers={name: "1"})
    assert (again.status_code, again.json()) == (201, first.json())
    other = await ada.http.post(path, json=body | {"key": "sk-other"}, headers={name: "1"})
    assert other.status_code == (422 if name == "Idempotency-Key" else 201)
    await ada.http.delete(f"{path}/{first.json()['id']}")
    assert (await ada.http.post(path, json=body, headers=RETRY)).json()["id"] != first.json()["id"]
    conn = await asyncpg.connect(settings.database_url)
    digests = await conn.fetch("SELECT content_sha256, fingerprint FROM accepted_requests")
    await conn.close()
    assert hashlib.sha256(again.request.content).digest() not in {digest for row in digests for digest in row}
