import asyncio

import numpy as np
import pytest

from app.embedding import EmbeddingModel
from app.errors import Transient, Unprocessable
from tests.embedding.conftest import MODEL, credential
from tests.support import fake_openai
from tests.support.fake_openai import FakeOpenAI, Held, Reset, Status, tokens_of, vector_of


def _expected(*texts: str, dimensions: int = 8):
    return np.stack([vector_of(text, dimensions) for text in texts])


async def test_vectors_come_in_the_order_of_the_texts(api, embedder):
    texts = [f"text number {n}" for n in range(50)]

    embedded = await embedder.embed(texts, model=MODEL, credential=credential(api))

    assert embedded.vectors.dtype == np.float32
    np.testing.assert_array_equal(embedded.vectors, _expected(*texts))
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
    np.testing.assert_array_equal(second.vectors, _expected("five"))
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

    np.testing.assert_array_equal(embedded.vectors, _expected("a", "b"))


@pytest.mark.parametrize("behaviour", [fake_openai.SHUFFLED, fake_openai.NO_INDEX], ids=["shuffled", "no-index"])
async def test_answers_are_put_in_order_by_their_index_if_they_have_one(api, embedder, behaviour):
    api.script(behaviour)

    embedded = await embedder.embed(["a", "b", "c"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, _expected("a", "b", "c"))


async def test_a_pause_that_the_api_asks_for_is_kept(api, embedder, skipping):
    api.script(Status(429, {"retry-after": "7"}))

    embedded = await embedder.embed(["a"], model=MODEL, credential=credential(api))

    assert skipping.slept == [7]
    np.testing.assert_array_equal(embedded.vectors, _expected("a"))


PASSING = {
    "500": Status(500),
    "503": Status(503),
    "reset": Reset(),
    "html": fake_openai.HTML,
    "no-json": Status(200, body=b"oops"),
    "empty": Status(200, body=b"{}"),
    "count": fake_openai.ONE_TOO_FEW,
    "index": fake_openai.WRONG_INDEX,
    "holes": fake_openai.HOLES,
    "no-width": fake_openai.Mangled(lambda entries: [entry | {"embedding": []} for entry in entries]),
    "uneven": fake_openai.UNEVEN,
    "nan": fake_openai.NOT_FINITE,
    "no-base64": fake_openai.Mangled(lambda entries: [entry | {"embedding": "!"} for entry in entries]),
    "word": fake_openai.Mangled(lambda _: ["embedding"]),
}


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING)
async def test_what_fails_in_passing_is_tried_again(api, embedder, skipping, behaviour):
    api.script(behaviour, behaviour)

    embedded = await embedder.embed(["a", "b"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, _expected("a", "b"))
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

    np.testing.assert_array_equal(embedded.vectors, _expected("a"))
    assert len(api.requests) == 2


async def test_a_server_that_is_not_there_is_a_fault_that_may_heal(embedder):
    async with FakeOpenAI() as api:
        gone = credential(api)

    with pytest.raises(Transient, match="cannot be reached"):
        await embedder.embed(["a"], model=MODEL, credential=gone)


async def test_a_pause_longer_than_our_patience_is_handed_on_and_kept(api, embedder, skipping):
    api.script(Status(429, {"retry-after": "300"}))

    for expected in (300, 290):
        with pytest.raises(Transient) as failed:
            await embedder.embed(["a"], model=MODEL, credential=credential(api))
        assert failed.value.retry_after_seconds == expected
        skipping.time += 10

    assert len(api.requests) == 1


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


async def test_a_missing_key_is_refused(embedder):
    with pytest.raises(Unprocessable) as refused:
        await embedder.embed(["a"], model=MODEL, credential=None)

    assert refused.value.failure == "no_embedding_key"


async def test_a_bad_text_hurts_only_the_call_that_brought_it(api, open_embedder):
    api.for_word["poison"] = Status(400, message="bad text")
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        before, bad, after = await asyncio.gather(
            embedder.embed(["a", "b"], model=MODEL, credential=credential(api)),
            embedder.embed(["c", "poison", "d"], model=MODEL, credential=credential(api)),
            embedder.embed(["e"], model=MODEL, credential=credential(api)),
            return_exceptions=True,
        )

    assert isinstance(bad, Unprocessable)
    np.testing.assert_array_equal(before.vectors, _expected("a", "b"))
    np.testing.assert_array_equal(after.vectors, _expected("e"))
    assert [seen.texts for seen in api.requests][1:] == [("a", "b"), ("c", "poison", "d"), ("e",)]


async def test_a_text_that_breaks_the_server_takes_no_other_call_down(api, open_embedder):
    api.for_word["poison"] = Status(500)
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        good, bad = await asyncio.gather(
            embedder.embed(["a"], model=MODEL, credential=credential(api)),
            embedder.embed(["poison"], model=MODEL, credential=credential(api)),
            return_exceptions=True,
        )

    np.testing.assert_array_equal(good.vectors, _expected("a"))
    assert isinstance(bad, Transient)


async def test_a_request_that_is_too_large_is_made_in_smaller_ones(api, open_embedder):
    api.script(Status(413), Status(413))
    texts = list("abcdefgh")
    async with open_embedder(batch_size=8, concurrency=1) as embedder:
        embedded = await embedder.embed(texts, model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, _expected(*texts))
    assert [len(seen.texts) for seen in api.requests] == [8, 4, 4, 2, 2]
    assert embedded.billed_tokens == 8


async def test_a_single_text_that_is_too_large_is_refused(api, embedder):
    api.for_key["sk-test"] = Status(413)

    with pytest.raises(Unprocessable, match="too large"):
        await embedder.embed(["a", "b"], model=MODEL, credential=credential(api))


async def test_a_paused_key_does_not_hold_up_another(api, open_embedder, stopped):
    api.for_key["sk-slow"] = Status(429, {"retry-after": "30"})
    slow = credential(api, secret="sk-slow", key_id="slow")
    async with open_embedder(clock=stopped.clock) as embedder:
        waiting = asyncio.create_task(embedder.embed(["a"], model=MODEL, credential=slow))
        await stopped.fell_asleep.wait()

        other = await embedder.embed(["b"], model=MODEL, credential=credential(api))
        np.testing.assert_array_equal(other.vectors, _expected("b"))
        assert not waiting.done()

        del api.for_key["sk-slow"]
        stopped.advance(30)
        np.testing.assert_array_equal((await waiting).vectors, _expected("a"))


async def test_a_paused_key_sends_nothing_at_all(api, open_embedder, stopped):
    api.script(Status(429, {"retry-after": "30"}))
    async with open_embedder(clock=stopped.clock) as embedder:
        calls = [asyncio.create_task(embedder.embed(["a"], model=MODEL, credential=credential(api)))]
        await stopped.fell_asleep.wait()
        other_model = EmbeddingModel("text-embedding-3-large", 8)
        calls.append(asyncio.create_task(embedder.embed(["b"], model=other_model, credential=credential(api))))
        stopped.fell_asleep.clear()
        await stopped.fell_asleep.wait()
        assert len(api.requests) == 1

        stopped.advance(30)
        await asyncio.gather(*calls)


async def test_a_rejected_key_fails_everything_that_waits_for_it_at_once(api, open_embedder):
    held = Held()
    api.script(held, Status(401))
    async with open_embedder(batch_size=1, concurrency=1) as embedder:
        calls = [
            asyncio.create_task(embedder.embed([str(n)], model=MODEL, credential=credential(api))) for n in range(9)
        ]
        await api.arrived(1)
        held.release.set()
        first, *others = await asyncio.gather(*calls, return_exceptions=True)

    assert not isinstance(first, Exception)
    assert {type(other) for other in others} == {Unprocessable}
    assert len({id(other) for other in others}) == 8
    assert len(api.requests) == 2


async def test_texts_of_a_cancelled_call_that_have_not_left_stay_here(api, open_embedder):
    held = Held()
    api.script(held)
    async with open_embedder(batch_size=2, concurrency=1) as embedder:
        cancelled = asyncio.create_task(embedder.embed(list("abcdef"), model=MODEL, credential=credential(api)))
        await api.arrived(1)
        other = asyncio.create_task(embedder.embed(["z"], model=MODEL, credential=credential(api)))
        cancelled.cancel()
        held.release.set()
        np.testing.assert_array_equal((await other).vectors, _expected("z"))

    assert cancelled.cancelled()
    assert [seen.texts for seen in api.requests] == [("a", "b"), ("z",)]


async def test_a_cancelled_call_does_not_break_those_that_share_its_request(api, open_embedder):
    held = Held()
    api.script(held)
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        cancelled = asyncio.create_task(embedder.embed(["a"], model=MODEL, credential=credential(api)))
        other = asyncio.create_task(embedder.embed(["b"], model=MODEL, credential=credential(api)))
        await api.arrived(1)
        cancelled.cancel()
        held.release.set()

        np.testing.assert_array_equal((await other).vectors, _expected("b"))
    assert len(api.requests) == 1


async def test_closing_the_embedder_leaves_nobody_waiting(api, open_embedder):
    api.script(Held())
    async with open_embedder(batch_size=1, concurrency=1) as embedder:
        calls = [
            asyncio.create_task(embedder.embed([text], model=MODEL, credential=credential(api))) for text in "ab"
        ]
        await api.arrived(1)

    failed = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in failed] == [Transient, Transient]


async def test_another_call_after_a_failure_starts_afresh(api, embedder):
    api.script(Status(401))
    with pytest.raises(Unprocessable):
        await embedder.embed(["a"], model=MODEL, credential=credential(api))

    embedded = await embedder.embed(["a"], model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, _expected("a"))
