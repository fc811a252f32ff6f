import asyncio

from app.embedding.limiter import BACKOFF_MAX_SECONDS, THROTTLED_SECONDS, KeyLimiter, backoff_seconds


async def _full(limiter: KeyLimiter) -> int:
    """How many slots can be taken now."""
    taken = 0
    while True:
        waiting = asyncio.ensure_future(limiter.acquire(patience_seconds=60))
        await asyncio.wait({waiting}, timeout=0.01)
        if not waiting.done():
            waiting.cancel()
            return taken
        taken += 1


async def test_no_more_slots_than_allowed_are_given(stopped):
    assert await _full(KeyLimiter(concurrency=3, clock=stopped.clock)) == 3


async def test_a_complaint_halves_the_window_once_for_all_requests_under_way(stopped):
    limiter = KeyLimiter(concurrency=8, clock=stopped.clock)
    stopped.advance(1)
    started_at = stopped.time
    stopped.advance(1)

    for _ in range(5):
        limiter.park(0, started_at=started_at)

    assert limiter.window == 4


async def test_successes_open_the_window_again_but_not_further(stopped):
    limiter = KeyLimiter(concurrency=4, clock=stopped.clock)
    limiter.park(0, started_at=stopped.time)
    assert limiter.window == 2

    for _ in range(100):
        limiter.widen()

    assert limiter.window == 4


async def test_the_window_never_closes(stopped):
    limiter = KeyLimiter(concurrency=4, clock=stopped.clock)
    for _ in range(10):
        limiter.park(0, started_at=stopped.time)
        stopped.advance(1)

    assert limiter.window == 1


async def test_a_pause_beyond_patience_is_told_instead_of_waited_for(stopped):
    limiter = KeyLimiter(concurrency=4, clock=stopped.clock)
    limiter.park(90, started_at=stopped.time)

    assert await limiter.acquire(patience_seconds=60) == 90


async def test_a_limiter_that_remembers_something_is_not_idle(stopped):
    limiter = KeyLimiter(concurrency=1, clock=stopped.clock)
    assert limiter.is_idle

    limiter.park(5, started_at=stopped.time)
    assert not limiter.is_idle
    stopped.advance(5)
    assert limiter.parked_seconds() == 0
    assert limiter.is_throttled
    stopped.advance(THROTTLED_SECONDS - 5)
    assert limiter.is_idle

    await limiter.acquire(patience_seconds=1)
    assert not limiter.is_idle


def test_backoff_grows_to_a_bound():
    assert all(0 <= backoff_seconds(0) <= 0.5 for _ in range(100))
    assert all(0 <= backoff_seconds(10_000) <= BACKOFF_MAX_SECONDS for _ in range(100))
    assert max(backoff_seconds(10) for _ in range(100)) > 1
