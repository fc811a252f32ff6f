import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from app.db import Pool
from app.settings import Settings
from tests.api.conftest import MakePrincipal, Person, person, serving
from tests.api.test_files import BOUNDARY, MULTIPART, multipart

Parts = list[tuple[str, tuple[str | None, bytes]]]


def named(*names: str, content: bytes = b"Some text.") -> Parts:
    return [("files", (name, content)) for name in names]


async def settled(somebody: Person, batch_id: str) -> dict[str, Any]:
    """The ingestions of a batch once none is in progress."""
    while True:
        answer = await somebody.http.get("/v1/ingestions", params={"batch_id": batch_id, "limit": 1000})
        if not answer.json()["file_counts"]["in_progress"]:
            return dict(answer.json())


async def test_fifty_files_in_one_request_are_queued_in_their_order(ada: Person):
    stores = [(await ada.openai.vector_stores.create(name=str(n))).id for n in range(2)]
    names = [f"{n}.txt" for n in range(50)]
    answer = await ada.http.post("/v1/ingestions", files=named(*names), data={"vector_store_ids": stores})
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert (body["object"], body["vector_store_ids"], body["rejected"]) == ("ingestion.batch", stores, [])
    assert body["file_counts"] == {"in_progress": 50, "completed": 0, "failed": 0, "cancelled": 0, "total": 50}
    assert [each["filename"] for each in body["data"]] == names
    first = body["data"][0]
    assert first["vector_store_ids"] == stores
    assert (first["status"], first["state"], first["stage"], first["attempts"]) == (
        "in_progress",
        "queued",
        "queued",
        0,
    )
    assert (await ada.openai.files.retrieve(first["file_id"])).filename == "0.txt"
    for store_id in stores:
        assert (await ada.openai.vector_stores.retrieve(store_id)).file_counts.total == 50


async def test_a_job_is_queued_for_every_file_after_the_commit(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": store.id})
    ingestion = answer.json()["data"][0]
    job = (await ada.http.get(f"/v1/jobs/{ingestion['job_id']}")).json()
    assert (job["id"], job["note"], job["rq"]["status"]) == (ingestion["job_id"], None, "queued")
    assert job["ingestion"]["id"] == ingestion["id"]


async def test_a_job_is_shown_to_its_owner_only(ada: Person, bob: Person):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": store.id})
    ingestion = answer.json()["data"][0]
    assert (await bob.http.get(f"/v1/jobs/{ingestion['job_id']}")).status_code == 404
    assert (await bob.http.get(f"/v1/ingestions/{ingestion['id']}")).status_code == 404
    assert (await bob.http.post(f"/v1/ingestions/{ingestion['id']}/cancel")).status_code == 404
    assert (await bob.http.get("/v1/ingestions")).json()["data"] == []


@pytest.mark.parametrize("fields_first", [True, False])
@pytest.mark.parametrize("style", ["repeated", "commas", "brackets"])
async def test_the_stores_may_be_named_before_or_after_the_files(ada: Person, style: str, *, fields_first: bool):
    stores = [(await ada.openai.vector_stores.create(name=str(n))).id for n in range(2)]
    fields: list[tuple[str, str | None, bytes]] = {
        "repeated": [("vector_store_ids", None, store.encode()) for store in stores],
        "commas": [("vector_store_ids", None, ", ".join(stores).encode())],
        "brackets": [("vector_store_ids[]", None, store.encode()) for store in stores],
    }[style]
    files: list[tuple[str, str | None, bytes]] = [("files", "a.txt", b"text"), ("files", "b.txt", b"text")]
    body = multipart(*(fields + files if fields_first else files + fields))
    answer = await ada.http.post("/v1/ingestions", content=body, headers=MULTIPART)
    assert answer.status_code == 202
    assert answer.json()["vector_store_ids"] == stores


async def test_attributes_and_chunking_hold_for_all_files(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    sizes = {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 0}
    answer = await ada.http.post(
        "/v1/ingestions",
        files=named("a.txt", "b.txt"),
        data={
            "vector_store_ids": store.id,
            "attributes": json.dumps({"year": 2026}),
            "chunking_strategy": json.dumps({"type": "static", "static": sizes}),
        },
    )
    for ingestion in answer.json()["data"]:
        file = await ada.openai.vector_stores.files.retrieve(ingestion["file_id"], vector_store_id=store.id)
        assert file.attributes == {"year": 2026}
        assert file.chunking_strategy is not None
        assert file.chunking_strategy.to_dict()["static"] == sizes


async def test_a_bad_file_does_not_sink_the_others(
    settings: Settings, make_principal: MakePrincipal, blob_names: Callable[[], list[str]]
):
    small = settings.model_copy(update={"max_upload_bytes": 1_000_000})
    async with serving(small) as url, person(url, *await make_principal("ada")) as ada:
        store = await ada.openai.vector_stores.create(name="s")
        files: Parts = [
            ("files", ("big.txt", b"x" * 3_000_000)),
            ("files", ("good.txt", b"Some text.")),
            ("files", ("empty.txt", b"")),
            ("files", ("fine.txt", b"x" * 1_000_000)),
        ]
        answer = await ada.http.post("/v1/ingestions", files=files, data={"vector_store_ids": store.id})
        assert answer.status_code == 202
        body = answer.json()
        assert [each["filename"] for each in body["data"]] == ["good.txt", "fine.txt"]
        assert [(each["filename"], each["error"]["code"]) for each in body["rejected"]] == [
            ("big.txt", "file_too_large"),
            ("empty.txt", "empty_file"),
        ]
        assert body["file_counts"]["total"] == 2
        refused = await ada.http.post("/v1/ingestions", files=files[:1], data={"vector_store_ids": store.id})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "file_too_large")
        refused = await ada.http.post("/v1/ingestions", files=files[2:3], data={"vector_store_ids": store.id})
        assert (refused.status_code, refused.json()["rejected"][0]["filename"]) == (400, "empty.txt")
    assert len(blob_names()) == 2


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({}, 400, "vector_store_ids"),
        ({"vector_store_ids": " , "}, 400, "vector_store_ids"),
        ({"vector_store_ids": "vs_" + "0" * 32}, 404, None),
        ({"vector_store_ids": "nonsense"}, 404, None),
        ({"vector_store_ids": "{store}", "attributes": "{"}, 400, "attributes"),
        ({"vector_store_ids": "{store}", "attributes": '{"k": []}'}, 400, "attributes.k"),
        ({"vector_store_ids": "{store}", "attributes": '{"k": "\\ud800"}'}, 400, "attributes.k"),
        ({"vector_store_ids": "{store}", "attributes": '{"k": Infinity}'}, 400, "attributes.k"),
        ({"vector_store_ids": "{store}", "chunking_strategy": '{"type": "magic"}'}, 400, "chunking_strategy"),
        ({"vector_store_ids": "{store}", "colour": "red"}, 400, "colour"),
    ],
)
async def test_a_wrong_batch_upload_leaves_no_blob_and_no_row(
    ada: Person,
    pool: Pool,
    blob_names: Callable[[], list[str]],
    *,
    fields: dict[str, str],
    status: int,
    param: str | None,
):
    store = await ada.openai.vector_stores.create(name="s")
    given = {name: value.replace("{store}", store.id) for name, value in fields.items()}
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt", "b.txt"), data=given)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert blob_names() == []
    assert await pool.fetchval("SELECT (SELECT count(*) FROM files) + (SELECT count(*) FROM batches)") == 0


async def test_too_many_files_leave_nothing(
    settings: Settings, make_principal: MakePrincipal, blob_names: Callable[[], list[str]]
):
    async with (
        serving(settings.model_copy(update={"max_files_per_batch": 3})) as url,
        person(url, *await make_principal("ada")) as ada,
    ):
        store = await ada.openai.vector_stores.create(name="s")
        answer = await ada.http.post(
            "/v1/ingestions", files=named("1", "2", "3", "4"), data={"vector_store_ids": store.id}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "too_many_files")
    assert blob_names() == []


async def test_a_batch_upload_without_files_is_refused(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    body = multipart(("vector_store_ids", None, store.id.encode()))
    answer = await ada.http.post("/v1/ingestions", content=body, headers=MULTIPART)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "files")


async def test_a_batch_upload_that_breaks_off_leaves_no_blob_and_no_row(
    url: str, ada: Person, blob_names: Callable[[], list[str]], pool: Pool
):
    store = await ada.openai.vector_stores.create(name="s")
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/ingestions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ada.api_key}\r\n"
    lengths = f"Content-Length: 9999999\r\nContent-Type: {MULTIPART['Content-Type']}\r\n\r\n"
    whole = multipart(
        ("vector_store_ids", None, store.id.encode()),
        ("files", "1.txt", b"x" * 1000),
        ("files", "2.txt", b"x" * 1000),
    ).removesuffix(f"--{BOUNDARY}--\r\n".encode())
    begun = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="3.txt"\r\n\r\n'.encode()
    writer.write((head + lengths).encode() + whole + begun + b"x" * 300_000)
    await writer.drain()
    while len(blob_names()) < 2:  # two files are stored before the client goes
        await ada.http.get("/healthz")
    writer.close()
    await writer.wait_closed()
    metrics = ""
    while 'route="/v1/ingestions",status="499"' not in metrics:
        metrics = (await ada.http.get("/metrics")).text
    assert blob_names() == []
    assert await pool.fetchval("SELECT (SELECT count(*) FROM files) + (SELECT count(*) FROM ingestions)") == 0


async def test_ingestions_are_followed_to_their_end(eve: Person):
    stores = [(await eve.openai.vector_stores.create(name=str(n))).id for n in range(3)]
    answer = await eve.http.post(
        "/v1/ingestions", files=named("a.txt", "b.txt"), data={"vector_store_ids": ",".join(stores)}
    )
    assert "has_more" not in answer.json()
    batch = await settled(eve, answer.json()["id"])
    assert batch["file_counts"]["completed"] == 2
    one = (await eve.http.get(f"/v1/ingestions/{batch['data'][0]['id']}")).json()
    assert (one["status"], one["state"], one["stage"], one["error"]) == ("completed", "completed", "done", None)
    assert one["progress"] == {"chunks_total": 1, "chunks_embedded": 1}
    assert (one["attempts"], one["job_id"].rpartition("_")[2]) == (1, "1")
    assert one["created_at"] <= one["started_at"] <= one["finished_at"]


async def test_without_a_queue_a_job_is_only_its_row(eve: Person):
    store = await eve.openai.vector_stores.create(name="s")
    answer = await eve.http.post("/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": store.id})
    job = (await eve.http.get(f"/v1/jobs/{answer.json()['data'][0]['job_id']}")).json()
    assert job["rq"] is None
    assert "ENABLE_JOB_QUEUE" in job["note"]


async def test_a_batch_upload_into_one_store_is_also_a_file_batch(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": store.id})
    batch = await ada.openai.vector_stores.file_batches.retrieve(answer.json()["id"], vector_store_id=store.id)
    assert batch.file_counts.total == 1


async def test_ingestions_are_listed_by_batch_and_status_in_pages(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    batches = []
    for names in (["1", "2", "3"], ["4"]):
        answer = await ada.http.post("/v1/ingestions", files=named(*names), data={"vector_store_ids": store.id})
        batches.append(answer.json())
    everything = (await ada.http.get("/v1/ingestions", params={"limit": 1000})).json()
    assert (len(everything["data"]), everything["file_counts"]) == (4, None)
    first = {"batch_id": batches[0]["id"], "limit": 2, "order": "asc"}
    page = (await ada.http.get("/v1/ingestions", params=first)).json()
    assert (len(page["data"]), page["has_more"], page["file_counts"]["total"]) == (2, True, 3)
    rest = (await ada.http.get("/v1/ingestions", params=first | {"after": page["last_id"]})).json()
    seen = {each["id"] for each in page["data"] + rest["data"]}
    assert seen == {each["id"] for each in batches[0]["data"]}
    failed = (await ada.http.get("/v1/ingestions", params={"status": "failed"})).json()
    assert failed["data"] == []


async def test_a_batch_that_goes_to_several_stores_is_cancelled_as_one(ada: Person, bob: Person):
    stores = [(await ada.openai.vector_stores.create(name=str(n))).id for n in range(2)]
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt", "b.txt"), data={"vector_store_ids": stores})
    batch = {"batch_id": answer.json()["id"]}
    assert (await bob.http.post("/v1/ingestions/cancel", params=batch)).status_code == 404
    cancelled = (await ada.http.post("/v1/ingestions/cancel", params=batch)).json()
    assert (cancelled["id"], cancelled["file_counts"]["cancelled"]) == (batch["batch_id"], 2)
    for store in stores:
        assert (await ada.openai.vector_stores.retrieve(store)).file_counts.cancelled == 2


async def test_a_cancelled_ingestion_stays_cancelled(ada: Person):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.post("/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": store.id})
    path = f"/v1/ingestions/{answer.json()['data'][0]['id']}"
    cancelled = (await ada.http.post(f"{path}/cancel")).json()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert (await ada.http.post(f"{path}/cancel")).json() == cancelled
    assert (await ada.openai.vector_stores.retrieve(store.id)).file_counts.cancelled == 1


@pytest.mark.parametrize(
    "spell", [str.upper, lambda digits: "{" + digits[:30] + "}", lambda digits: "0_" + digits[2:]]
)
async def test_an_id_has_one_spelling(ada: Person, spell: Callable[[str], str]):
    store = await ada.openai.vector_stores.create(name="s")
    other = "vs_" + spell(store.id.removeprefix("vs_"))
    answer = await ada.http.post(
        "/v1/ingestions", files=named("a.txt"), data={"vector_store_ids": [store.id, other]}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
