import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from app.ids import new_id
from app.settings import Settings
from tests.api.conftest import MakePrincipal, Person, person, serving, upload


def is_openai_error(answer: httpx.Response) -> bool:
    error = answer.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"]) and bool(error["type"])


UNKNOWN = new_id().hex


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/v1/files/file_{UNKNOWN}"),
        ("GET", f"/v1/files/file_{UNKNOWN}/content"),
        ("DELETE", f"/v1/files/file_{UNKNOWN}"),
        ("GET", f"/v1/files/vs_{UNKNOWN}"),
        ("GET", "/v1/files/file-abc"),
        ("GET", "/v1/files/%00"),
        ("GET", f"/v1/files/file_{'g' * 32}"),
        ("GET", f"/v1/vector_stores/vs_{UNKNOWN}"),
        ("GET", f"/v1/vector_stores/file_{UNKNOWN}"),
        ("DELETE", f"/v1/vector_stores/vs_{UNKNOWN}"),
        ("GET", f"/v1/vector_stores/vs_{UNKNOWN}/files"),
        ("GET", f"/v1/vector_stores/vs_{UNKNOWN}/file_batches/vsfb_{UNKNOWN}"),
        ("GET", f"/v1/ingestions/ing_{UNKNOWN}"),
        ("POST", f"/v1/ingestions/ing_{UNKNOWN}/cancel"),
        ("GET", f"/v1/ingestions?batch_id=vsfb_{UNKNOWN}"),
        ("GET", f"/v1/jobs/file_processing_{UNKNOWN}_1"),
        ("GET", "/v1/jobs/anything"),
        ("DELETE", f"/v1/embedding_keys/ekey_{UNKNOWN}"),
        ("GET", "/v1/nothing/here"),
        ("GET", "/"),
    ],
)
async def test_what_does_not_exist_is_a_404_in_openais_shape(ada: Person, method: str, path: str):
    answer = await ada.http.request(method, path)
    assert answer.status_code == 404
    assert is_openai_error(answer)


async def test_a_wrong_method_is_a_405_in_openais_shape(ada: Person):
    answer = await ada.http.put("/v1/files")
    assert answer.status_code == 405
    assert is_openai_error(answer)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/vector_stores", {"name": 5}, "name"),
        ("/v1/vector_stores", {"nome": "typo"}, "nome"),
        ("/v1/vector_stores", {"name": "a\x00b"}, "name"),
        ("/v1/vector_stores", {"name": "\ud800"}, "name"),
        ("/v1/vector_stores", {"metadata": {"k": 1}}, "metadata.k"),
        ("/v1/vector_stores", {"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
        ("/v1/vector_stores", {"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
        ("/v1/vector_stores", {"embedding": {"model": "text-embedding-3-small"}}, "embedding.model"),
        ("/v1/vector_stores", {"embedding": {"model": "wordllama-256", "dimensions": 64}}, "embedding.dimensions"),
        ("/v1/vector_stores", {"file_ids": ["x"] * 501}, "file_ids"),
        ("/v1/vector_stores", [], None),
        ("{store}/files", {}, "file_id"),
        ("{store}/files", {"file_id": "{file}", "chunking_strategy": {"type": "magic"}}, "chunking_strategy"),
        ("{store}/files", {"file_id": "{file}", "attributes": {"k": None}}, "attributes.k"),
        ("{store}/files", {"file_id": "{file}", "attributes": {"k" * 65: "v"}}, None),
        ("{store}/files", {"file_id": "\ud800"}, "file_id"),
        ("{store}/files", {"file_id": "{file}", "\ud800": 1}, None),
        (
            "{store}/files",
            {
                "file_id": "{file}",
                "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 200}},
            },
            "chunking_strategy.static.chunk_overlap_tokens",
        ),
        ("{store}/file_batches", {}, None),
        ("{store}/file_batches", {"file_ids": []}, "file_ids"),
        ("{store}/file_batches", {"file_ids": ["{file}"], "files": [{"file_id": "{file}"}]}, None),
        ("{store}/file_batches", {"file_ids": ["{file}"] * 2001}, "file_ids"),
        ("{store}/search", {}, "query"),
        ("{store}/search", {"query": ""}, None),
        ("{store}/search", {"query": "a", "max_num_results": 51}, "max_num_results"),
        ("{store}/search", {"query": "a", "filters": {"type": "like", "key": "k", "value": "v"}}, None),
        ("{store}/search", {"query": "a", "filters": {"type": "and", "filters": []}}, None),
        ("{store}/search", {"query": "a", "filters": {"type": []}}, "filters.type"),
        ("{store}/search", {"query": "a", "filters": {"type": {}}}, "filters.type"),
        ("{store}/search", {"query": "a", "filters": {"type": "in", "key": "k", "value": "v"}}, "filters"),
        (
            "{store}/search",
            {"query": "a", "ranking_options": {"score_threshold": 2}},
            "ranking_options.score_threshold",
        ),
    ],
)
async def test_a_wrong_body_is_a_400_that_names_the_parameter(
    ada: Person, path: str, body: object, param: str | None
):
    store = await ada.openai.vector_stores.create(name="s")
    file_id = await upload(ada)
    text = json.dumps(body).replace("{file}", file_id)
    answer = await ada.http.post(
        path.replace("{store}", f"/v1/vector_stores/{store.id}"),
        content=text,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    assert is_openai_error(answer)
    if param is not None:
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("sizes", [(99, 0), (4097, 0), (800, 401), (800, -1)])
async def test_chunk_sizes_have_limits(ada: Person, sizes: tuple[int, int]):
    store = await ada.openai.vector_stores.create(name="s")
    strategy = {
        "type": "static",
        "static": {"max_chunk_size_tokens": sizes[0], "chunk_overlap_tokens": sizes[1]},
    }
    answer = await ada.http.post(
        f"/v1/vector_stores/{store.id}/files",
        json={"file_id": await upload(ada), "chunking_strategy": strategy},
    )
    assert answer.status_code == 400
    assert is_openai_error(answer)
    assert (await ada.http.post("/v1/vector_stores", json={"chunking_strategy": strategy})).status_code == 400


@pytest.mark.parametrize(
    "body", ["{", "", "nonsense", "[" * 5000, '{"query": NaN}', '{"query": 1' + "0" * 5000 + "}"]
)
async def test_what_is_not_json_is_a_400(ada: Person, body: str):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.post(
        f"/v1/vector_stores/{store.id}/search", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert is_openai_error(answer)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "order=up", "after=vs_1", "before=file_1", "filter=done"]
)
async def test_a_wrong_query_is_a_400_that_names_the_parameter(ada: Person, query: str):
    store = await ada.openai.vector_stores.create(name="s")
    answer = await ada.http.get(f"/v1/vector_stores/{store.id}/files?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


async def pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536):
        yield b" " * 65536


async def test_a_json_body_that_declares_too_much_is_a_413(ada: Person):
    answer = await ada.http.post(
        "/v1/vector_stores", content=b" " * (9 * 1024**2), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert is_openai_error(answer)


async def test_a_json_body_that_turns_out_too_long_is_a_413(ada: Person):
    answer = await ada.http.post(
        "/v1/vector_stores", content=pieces(9 * 1024**2), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413
    assert is_openai_error(answer)


async def test_an_upload_over_the_limit_is_a_413_and_leaves_nothing(
    settings: Settings, make_principal: MakePrincipal, blob_names: Callable[[], list[str]]
):
    small = settings.model_copy(update={"max_upload_bytes": 1_000_000})
    async with serving(small) as url, person(url, *await make_principal("ada")) as ada:
        fits = await ada.http.post(
            "/v1/files", files={"file": ("a", b"x" * 1_000_000)}, data={"purpose": "assistants"}
        )
        assert fits.status_code == 200
        for size in (1_000_001, 5_000_000, 50_000_000):
            answer = await ada.http.post(
                "/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "assistants"}
            )
            assert answer.status_code == 413
            assert is_openai_error(answer)
            assert answer.json()["error"]["code"] == "file_too_large"

        async def endless() -> AsyncIterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            async for piece in pieces(5_000_000):
                yield piece

        answer = await ada.http.post(
            "/v1/files", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert answer.status_code == 413
    assert len(blob_names()) == 1


async def test_every_answer_has_a_request_id(ada: Person):
    first, second = await asyncio.gather(ada.http.get("/healthz"), ada.http.get("/healthz"))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    given = await ada.http.get("/nothing", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    forged = await ada.http.get("/healthz", headers={"X-Request-Id": "a b"})
    assert forged.headers["x-request-id"] != "a b"
