import asyncio

import numpy as np
import pytest

from app.embedding import EmbeddingModel
from app.errors import Transient, Unprocessable
from tests.embedding.conftest import MODEL, credential, expected
from tests.support.fake_openai import Held, Status


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
    np.testing.assert_array_equal(before.vectors, expected("a", "b"))
    np.testing.assert_array_equal(after.vectors, expected("e"))
    assert [seen.texts for seen in api.requests][1:] == [("a", "b"), ("c", "poison", "d"), ("e",)]


async def test_a_text_that_breaks_the_server_takes_no_other_call_down(api, open_embedder):
    api.for_word["poison"] = Status(500)
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        good, bad = await asyncio.gather(
            embedder.embed(["a"], model=MODEL, credential=credential(api)),
            embedder.embed(["poison"], model=MODEL, credential=credential(api)),
            return_exceptions=True,
        )

    np.testing.assert_array_equal(good.vectors, expected("a"))
    assert isinstance(bad, Transient)


async def test_a_request_that_is_too_large_is_made_in_smaller_ones(api, open_embedder):
    api.script(Status(413), Status(413))
    texts = list("abcdefgh")
    async with open_embedder(batch_size=8, concurrency=1) as embedder:
        embedded = await embedder.embed(texts, model=MODEL, credential=credential(api))

    np.testing.assert_array_equal(embedded.vectors, expected(*texts))
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
        np.testing.assert_array_equal(other.vectors, expected("b"))
        assert not waiting.done()

        del api.for_key["sk-slow"]
        stopped.advance(30)
        np.testing.assert_array_equal((await waiting).vectors, expected("a"))


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
        np.testing.assert_array_equal((await other).vectors, expected("z"))

    assert cancelled.cancelled()
    assert [seen.texts for seen in api.requests] == [("a", "b"), ("z",)]


async def test_an_error_comes_after_the_answers_that_were_under_way(api, open_embedder):
    held = Held()
    api.script(held, Status(401))
    async with open_embedder(batch_size=1, concurrency=2) as embedder:
        answers = embedder.embed_as_answered(list("abc"), model=MODEL, credential=credential(api))
        first = asyncio.ensure_future(anext(answers))
        await api.arrived(2)
        while api.in_flight == 2:
            await asyncio.sleep(0)
        held.release.set()

        assert list((await first).rows) == [0]
        with pytest.raises(Unprocessable):
            await anext(answers)
    assert len(api.requests) == 2


async def test_a_request_that_nobody_waits_for_is_not_made_again(api, open_embedder, stopped):
    api.script(Status(429, {"retry-after": "30"}))
    async with open_embedder(clock=stopped.clock) as embedder:
        cancelled = asyncio.create_task(embedder.embed(["a"], model=MODEL, credential=credential(api)))
        await stopped.fell_asleep.wait()
        cancelled.cancel()
        other = asyncio.create_task(embedder.embed(["z"], model=MODEL, credential=credential(api)))
        stopped.advance(30)
        await other

    assert [seen.texts for seen in api.requests] == [("a",), ("z",)]


async def test_a_cancelled_call_does_not_break_those_that_share_its_request(api, open_embedder):
    held = Held()
    api.script(held)
    async with open_embedder(batch_size=100, concurrency=1) as embedder:
        cancelled = asyncio.create_task(embedder.embed(["a"], model=MODEL, credential=credential(api)))
        other = asyncio.create_task(embedder.embed(["b"], model=MODEL, credential=credential(api)))
        await api.arrived(1)
        cancelled.cancel()
        held.release.set()

        np.testing.assert_array_equal((await other).vectors, expected("b"))
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

    np.testing.assert_array_equal(embedded.vectors, expected("a"))
