import asyncio
import gzip
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from pydantic import SecretStr

from app.embedding import EmbeddingCredential, EmbeddingModel
from app.embedding.answers import Answer
from app.embedding.packing import Call, Part
from app.errors import Transient, Unprocessable
from tests.embedding.conftest import MODEL, credential, expected
from tests.support import fake_openai
from tests.support.fake_openai import Cut, FakeOpenAI, Held, Reset, Status, tokens_of


async def test_vectors_come_in_the_order_of_the_texts(api, embedder):
    texts = [f"text number {n}" for n in range(50)]

    embedded = await embedder.embed(texts, model=MODEL, credential=credential(api))

    assert embedded.vectors.dtype == np.float16
    np.testing.assert_array_equal(embedded.vectors, expected(*texts))
    assert embedded.billed_tokens == sum(map(tokens_of, texts))


async def test_no_texts_cost_nothing(api, embedder):
    embedded = await embedder.embed([], model=MODEL, credential=credential(api))

    assert embedded.vectors.shape == (0, 8)
    assert embedded.billed_tokens == 0
    assert api.requests == []


async def test_calls_of_the_same_moment_share_requests_and_the_bill(api, open_embedder):
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        first, second = await asyncio.gather(
            embedder.embed(["one two three", "four"], model=MODEL, credential=credential(api)),
            embedder.embed(["five"], model=MODEL, credential=credential(api)),
        )

    assert [seen.texts for seen in api.requests] == [("one two three", "four", "five")]
    np.testing.assert_array_equal(second.vectors, expected("five"))
    assert first.billed_tokens + second.billed_tokens == 5


async def test_calls_that_come_while_requests_are_under_way_are_packed_together(api, open_embedder):
    held = Held()
    api.script(held)
    async with open_embedder(batch_size=100, concurrency=1) as embedder, asyncio.TaskGroup() as calls:
        calls.create_task(embedder.embed(["first"], model=MODEL, credential=credential(api)))
        await api.arrived(1)
        for n in range(5):
            calls.create_task(embedder.embed([f"late {n}"], model=MODEL, credential=credential(api)))
        held.release.set()

    assert [len(seen.texts) for seen in api.requests] == [1, 5]


async def test_different_models_and_keys_do_not_share_requests(api, embedder):
    await asyncio.gather(
        embedder.embed(["a"], model=MODEL, credential=credential(api)),
        embedder.embed(["b"], model=EmbeddingModel("text-embedding-3-large", 8), credential=credential(api)),
        embedder.embed(["c"], model=MODEL, credential=credential(api, secret="sk-other", key_id="other")),
    )

    seen = {(request.authorization, request.model, request.texts) for request in api.requests}
    assert seen == {
        ("Bearer sk-test", "text-embedding-3-small", ("a",)),
        ("Bearer sk-test", "text-embedding-3-large", ("b",)),
        ("Bearer sk-other", "text-embedding-3-small", ("c",)),
    }


async def test_a_key_has_no_more_requests_under_way_than_allowed(api, open_embedder):
    held = [Held() for _ in range(3)]
    api.script(*held)
    async with open_embedder(batch_size=1, concurrency=3) as embedder:
        texts = [str(n) for n in range(12)]
        call = asyncio.create_task(embedder.embed(texts, model=MODEL, credential=credential(api)))
        await api.arrived(3)
        for one in held:
            one.release.set()
        await call

    assert api.most_in_flight == 3
    assert len(api.requests) == 12


async def test_dimensions_are_asked_for_only_where_the_model_lets_us_choose(api, embedder):
    for name in ("text-embedding-3-large", "openai/text-embedding-3-small", "text-embedding-ada-002", "bge-m3"):
        await embedder.embed(["a"], model=EmbeddingModel(name, 8), credential=credential(api))

    assert [seen.dimensions for seen in api.requests] == [8, 8, None, None]


async def test_a_server_without_keys_is_sent_none(api, embedder):
    await embedder.embed(["a"], model=MODEL, credential=credential(api, secret=""))

    assert api.requests[0].authorization is None


async def test_organisation_and_project_of_the_environment_do_not_go_with_a_users_key(api, embedder, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-operator")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-the-operator")

    await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert not {"openai-organization", "openai-project"} & set(api.requests[0].headers)


async def test_cookies_of_one_tenant_do_not_go_with_the_requests_of_another(embedder):
    async with FakeOpenAI(cookie="session=1; Path=/") as api:
        await embedder.embed(["a"], model=MODEL, credential=credential(api))
        await embedder.embed(["b"], model=MODEL, credential=credential(api, secret="sk-b", key_id="b"))

    assert all("cookie" not in seen.headers for seen in api.requests)


async def test_servers_that_answer_numbers_instead_of_base64_are_understood(embedder):
    async with FakeOpenAI(floats_only=True) as api:
        embedded = await embedder.embed(["a", "b"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, expected("a", "b"))


@pytest.mark.parametrize("behaviour", [fake_openai.SHUFFLED, fake_openai.NO_INDEX], ids=["shuffled", "no-index"])
async def test_answers_are_put_in_order_by_their_index_if_they_have_one(api, embedder, behaviour):
    api.script(behaviour)

    embedded = await embedder.embed(["a", "b", "c"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, expected("a", "b", "c"))


async def test_a_pause_that_the_api_asks_for_is_kept(api, embedder, skipping):
    api.script(Status(429, {"retry-after": "7"}))

    embedded = await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert skipping.slept == [7]
    np.testing.assert_array_equal(embedded.vectors, expected("a"))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    "asked", ["0", "-5", "0.001", "Wed, 21 Oct 2015 07:28:00 GMT"], ids=["none", "negative", "millisecond", "past"]
)
async def test_a_pause_of_nothing_is_no_reason_to_hurry(api, embedder, skipping, *, status, asked):
    api.for_key["sk-test"] = Status(status, {"retry-after": asked})

    async with asyncio.timeout(10):
        with pytest.raises(Transient) as failed:
            await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert len(api.requests) < 100  # in 60 seconds of this clock; some 20 with the usual waits
    assert sum(skipping.slept) > 30
    assert failed.value.retry_after_seconds > 0


PASSING = {
    "500": Status(500),
    "503": Status(503),
    "reset": Reset(),
    "cut": Cut(),
    "cut-error": Cut(500),
    "cut-refusal": Cut(400),
    "html": fake_openai.HTML,
    "huge": fake_openai.Huge(),
    "huge-error": fake_openai.Huge(code=503),
    "bad-gzip": Status(200, {"content-encoding": "gzip"}, body=b"oops"),
    "bad-gzip-error": Status(500, {"content-encoding": "gzip"}, body=b"oops"),
    "cut-gzip": Status(200, {"content-encoding": "gzip"}, body=gzip.compress(b"{}" * 99)[:20]),
    "no-json": Status(200, body=b"oops"),
    "empty": Status(200, body=b"{}"),
    "count": fake_openai.ONE_TOO_FEW,
    "index": fake_openai.WRONG_INDEX,
    "index-list": fake_openai.Mangled(lambda entries: [entry | {"index": []} for entry in entries]),
    "deep": Status(200, body=b"[" * 50_000),
    "deep-error": Status(500, body=b"[" * 50_000),
    "holes": fake_openai.HOLES,
    "huge-integer": fake_openai.Mangled(lambda entries: [entry | {"embedding": [10**400]} for entry in entries]),
    "no-width": fake_openai.Mangled(lambda entries: [entry | {"embedding": []} for entry in entries]),
    "uneven": fake_openai.UNEVEN,
    "nan": fake_openai.NOT_FINITE,
    "zeros": fake_openai.ZEROS,
    "no-base64": fake_openai.Mangled(lambda entries: [entry | {"embedding": "!"} for entry in entries]),
    "word": fake_openai.Mangled(lambda _: ["embedding"]),
}


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING)
async def test_what_fails_in_passing_is_tried_again(api, embedder, skipping, behaviour):
    api.script(behaviour, behaviour)

    embedded = await embedder.embed(["a", "b"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, expected("a", "b"))
    assert len(skipping.slept) == 2


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING)
async def test_patience_has_an_end(api, embedder, skipping, behaviour):
    api.for_key["sk-test"] = behaviour

    with pytest.raises(Transient, match=r"text-embedding-3-small at 127\.0\.0\.1") as failed:
        await embedder.embed(["a", "b"], model=MODEL, credential=credential(api))

    assert failed.value.retry_after_seconds is not None
    assert sum(skipping.slept) <= 60


async def test_a_server_that_does_not_answer_in_time_is_asked_again(api, open_embedder):
    api.script(Held())
    async with open_embedder(timeout_seconds=0.2) as embedder:
        embedded = await embedder.embed(["a"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, expected("a"))
    assert len(api.requests) == 2


async def test_a_server_that_is_not_there_is_a_fault_that_may_heal(embedder):
    async with FakeOpenAI() as api:
        gone = credential(api)

    with pytest.raises(Transient, match="cannot be reached"):
        await embedder.embed(["a"], model=MODEL, credential=gone)


async def test_a_pause_longer_than_our_patience_is_handed_on_and_kept(api, embedder, skipping):
    api.script(Status(429, {"retry-after": "300"}))

    for seconds in (300, 290):
        with pytest.raises(Transient) as failed:
            await embedder.embed(["a"], model=MODEL, credential=credential(api))
        assert failed.value.retry_after_seconds == seconds
        skipping.time += 10

    assert len(api.requests) == 1


@pytest.mark.parametrize("code", [200, 500])
async def test_a_bomb_is_not_unpacked_whole(api, open_embedder, code):
    deflate = zlib.compressobj(9, wbits=31)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(200)) + deflate.flush()
    api.for_key["sk-test"] = Status(code, {"content-encoding": "gzip"}, body=bomb)
    tracemalloc.start()
    async with open_embedder(patience_seconds=0) as embedder:
        with pytest.raises(Transient):
            await embedder.embed(["a"], model=MODEL, credential=credential(api))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 << 20


async def test_a_packed_answer_is_unpacked(api, open_embedder):
    numbers = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    entries = [{"index": index, "embedding": row.tolist(), "pad": "x" * 5000} for index, row in enumerate(numbers)]
    body = gzip.compress(json.dumps({"data": entries}).encode())
    api.script(Status(200, {"content-encoding": "gzip"}, body=body))
    async with open_embedder(batch_size=100) as embedder:
        embedded = await embedder.embed(["a"] * 100, model=MODEL, credential=credential(api))
    np.testing.assert_array_equal(embedded.vectors, numbers.astype(np.float16))
    assert api.requests[0].headers["accept-encoding"] == "gzip"


async def test_the_code_of_a_packed_refusal_is_read(api, embedder):
    error = json.dumps({"error": {"code": "insufficient_quota"}}).encode()
    api.script(Status(429, {"content-encoding": "gzip"}, body=gzip.compress(error)))
    with pytest.raises(Unprocessable) as refused:
        await embedder.embed(["a"], model=MODEL, credential=credential(api))
    assert refused.value.failure == "key_rejected"


async def test_no_bill_is_too_long_for_our_books(api, embedder):
    entry = {"index": 0, "embedding": [1.0] * 8}
    body = json.dumps({"data": [entry], "usage": {"prompt_tokens": 10**30}}).encode()
    api.script(Status(200, body=body))

    embedded = await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert embedded.billed_tokens < 1 << 32


REFUSALS = {
    "400": (Status(400, message="this model's maximum context length is 8192"), "embedding_refused"),
    "401": (Status(401), "key_rejected"),
    "403": (Status(403), "key_rejected"),
    "404": (Status(404, message="The model does not exist"), "embedding_refused"),
    "quota": (Status(429, error_code="insufficient_quota"), "key_rejected"),
    "width": (
        fake_openai.Mangled(lambda entries: [entry | {"embedding": [1.0] * 3} for entry in entries]),
        "dimension_mismatch",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_ends_the_call_at_once_and_says_what_to_do(api, embedder, skipping, name):
    behaviour, failure = REFUSALS[name]
    api.script(behaviour)

    with pytest.raises(Unprocessable, match="text-embedding-3-small") as refused:
        await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert refused.value.failure == failure
    assert len(api.requests) == 1
    assert skipping.slept == []


@pytest.mark.parametrize("secret", ["sk-line\nbreak", "sk-with blank", "sk-ünicode"])
async def test_a_key_that_cannot_be_sent_is_refused_without_a_request(api, embedder, secret):
    with pytest.raises(Unprocessable) as refused:
        await embedder.embed(["a"], model=MODEL, credential=credential(api, secret=secret))

    assert refused.value.failure == "key_rejected"
    assert secret not in str(refused.value)
    assert api.requests == []


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "nonsense",
        "ftp://host/v1",
        "http://",
        "http://[half",
        "http://host:99999/v1",
        "http://ü..ü/v1",
        "http://a b/v1",
        "http://a\x00b",
    ],
)
async def test_a_base_url_that_is_no_address_is_refused(embedder, base_url):
    nowhere = EmbeddingCredential("server", base_url, SecretStr("sk-test"))

    with pytest.raises(Unprocessable, match="base URL"):
        await embedder.embed(["a"], model=MODEL, credential=nowhere)


async def test_a_missing_key_is_refused(embedder):
    with pytest.raises(Unprocessable) as refused:
        await embedder.embed(["a"], model=MODEL, credential=None)

    assert refused.value.failure == "no_embedding_key"


async def test_what_has_come_meanwhile_goes_on_in_pieces_each_text_once():
    call = Call([str(number) for number in range(5000)])
    answer = Answer(np.arange(5000, dtype=np.float16).reshape(-1, 1), billed_tokens=5000)
    for start in range(0, 5000, 1000):
        call.fill(Part(call, start, start + 1000), answer, at=start, billed_tokens=1000)
    pieces = [piece async for piece in call.answers()]
    assert [len(piece.rows) for piece in pieces] == [2000, 2000, 1000]
    assert [row for piece in pieces for row in piece.rows] == list(range(5000))
    np.testing.assert_array_equal(np.concatenate([piece.vectors for piece in pieces]), answer.vectors)
    assert sum(piece.billed_tokens for piece in pieces) == 5000
