from contextlib import ExitStack

import pytest
from pydantic import SecretStr

from app.embedding import EmbeddingCredential
from app.embedding.limiter import THROTTLED_SECONDS, KeyLimiter
from app.embedding.room import Room
from app.errors import KeyBusy

KEYS = [EmbeddingCredential(f"key {n}", "http://api.test/v1", SecretStr("sk")) for n in range(4)]


@pytest.fixture
def limiters(stopped):
    return {key: KeyLimiter(concurrency=8, clock=stopped.clock) for key in KEYS}


@pytest.fixture
def room(limiters):
    return Room(slots=16, limiter_of=limiters.get)


def _fill(room, stack, key):
    """How many files more the key has room for; they stay."""
    files = 0
    try:
        while files < 100:
            stack.enter_context(room.take(key))
            files += 1
    except KeyBusy:
        pass
    return files


def test_a_key_that_nobody_complained_of_has_all_the_room_it_wants(room):
    with ExitStack() as stack:
        assert _fill(room, stack, KEYS[0]) == 100


def test_throttled_keys_leave_half_of_the_slots_to_others(room, limiters, stopped):
    for key in KEYS[:3]:
        limiters[key].park(1, started_at=stopped.time)
    with ExitStack() as stack:
        assert [_fill(room, stack, key) for key in KEYS] == [4, 4, 0, 100]


def test_room_that_was_taken_is_free_again(room, limiters, stopped):
    limiters[KEYS[0]].park(1, started_at=stopped.time)
    for _ in range(2):
        with ExitStack() as stack:
            assert _fill(room, stack, KEYS[0]) == 4


def test_a_single_slot_is_for_a_throttled_key_too(limiters, stopped):
    limiters[KEYS[0]].park(1, started_at=stopped.time)
    with ExitStack() as stack:
        assert _fill(Room(slots=1, limiter_of=limiters.get), stack, KEYS[0]) == 1


def test_a_long_pause_is_known_beforehand(room, limiters, stopped):
    limiters[KEYS[0]].park(300, started_at=stopped.time)
    stopped.advance(100)
    with pytest.raises(KeyBusy, match="pause for 200 seconds") as refused, room.take(KEYS[0]):
        pass
    assert refused.value.retry_after_seconds == 200


def test_a_complaint_is_forgotten_after_a_while(room, limiters, stopped):
    limiters[KEYS[0]].park(1, started_at=stopped.time)
    stopped.advance(THROTTLED_SECONDS)
    with ExitStack() as stack:
        assert _fill(room, stack, KEYS[0]) == 100
