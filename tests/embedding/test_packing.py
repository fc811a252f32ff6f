import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.embedding.packing import MAX_TOKENS, TURN_TEXTS, Call, PackQueue, shared
from app.errors import Unprocessable


def _queue(*calls: Call, batch_size: int = 100) -> PackQueue:
    queue = PackQueue(batch_size=batch_size)
    for call in calls:
        queue.add(call)
    return queue


def _call(*texts: str) -> Call:
    return Call(texts)


async def test_texts_of_several_calls_share_a_request():
    pack = _queue(_call("a", "b"), _call("c")).take()

    assert pack.texts == ["a", "b", "c"]


async def test_a_request_holds_at_most_batch_size_texts():
    queue = _queue(_call(*"abcdefg"), batch_size=3)

    assert [queue.take().texts for _ in range(3)] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]
    assert not queue


async def test_a_request_holds_at_most_the_tokens_that_the_api_takes():
    text = "x" * MAX_TOKENS  # about half of MAX_TOKENS by the estimate of two bytes a token
    queue = _queue(_call(text, text, text))

    assert [len(queue.take().texts) for _ in range(3)] == [1, 1, 1]
    assert not queue


async def test_a_text_that_fits_no_request_leaves_alone():
    queue = _queue(_call("a"), _call("x" * MAX_TOKENS * 3), _call("b"))

    assert [len(queue.take().texts) for _ in range(3)] == [1, 1, 1]


async def test_a_short_call_does_not_stand_behind_a_whole_book():
    queue = _queue(_call(*["book"] * 1000), _call("search"), batch_size=TURN_TEXTS + 1)

    assert "search" in queue.take().texts


async def test_texts_of_a_call_that_nobody_waits_for_do_not_leave():
    gone, here = _call("gone"), _call("here")
    queue = _queue(gone, here)
    gone.close()

    assert queue.take().texts == ["here"]


async def test_a_request_that_is_made_again_goes_before_new_ones():
    queue = _queue(_call("first"))
    pack = queue.take()
    queue.add(_call("new"))
    queue.put_back(pack)

    assert queue.take().texts == ["first"]


async def test_halves_hold_every_text_once_and_in_order():
    pack = _queue(_call("a", "b"), _call("c", "d", "e")).take()

    first, second = pack.halves()
    assert (first.texts, second.texts) == (["a", "b"], ["c", "d", "e"])


@pytest.mark.parametrize("text", ["", "half a pair \ud800"])
async def test_what_no_embedder_takes_is_refused_before_it_can_hurt_others(text):
    with pytest.raises(Unprocessable) as refused:
        _call("fine", text)

    assert refused.value.failure == "embedding_refused"


@given(st.integers(0, 10**9), st.lists(st.integers(1, 10**6), min_size=1))
def test_shares_of_a_bill_add_up_to_it_and_are_fair_to_one_token(total, weights):
    shares = shared(total, weights)

    assert sum(shares) == total
    assert all(
        abs(share - total * weight / sum(weights)) < 1.001 for share, weight in zip(shares, weights, strict=True)
    )
