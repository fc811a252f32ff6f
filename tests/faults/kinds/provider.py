"""Faults of the embeddings API."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from tests.faults.fault import faults
from tests.faults.harness import Harness
from tests.faults.promises import REPEATED
from tests.faults.rows import has_failed
from tests.faults.uploads import LARGE, SIZES
from tests.support import fake_openai
from tests.support.fake_openai import Behaviour, Held, Huge, Reset, Status

_PAID = slice(2, 4)
"""Of the harness's stores: those whose vectors come from the provider."""


def _script(harness: Harness, *behaviours: Behaviour, sizes: Sequence[int] = SIZES) -> None:
    """The next requests of an upload meet these."""
    harness.provider.api.script(*behaviours)
    harness.upload(sizes, stores=harness.stores[_PAID])


def limit_rate(harness: Harness) -> None:
    """429 with every form of Retry-After, and with none."""
    now = datetime.now(UTC)
    forms: list[dict[str, str]] = [
        {},
        {"retry-after": "0.3"},
        {"retry-after-ms": "400"},
        {"retry-after": format_datetime(now + timedelta(seconds=1), usegmt=True)},
        {"retry-after": "soon"},
        {"retry-after": "-5"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "600ms"},
    ]
    # the first for longer than a file waits in its slot: those behind it come back later, at no attempt's cost
    chosen = [{"retry-after": "4"}, *harness.dice.sample(forms, 2)]
    _script(harness, *(Status(429, form) for form in chosen))


def fail_requests(harness: Harness) -> None:
    """500, 502, 503 with and without Retry-After, 408, 409; a page of HTML; a broken connection."""
    kinds: list[Behaviour] = [
        Status(500),
        Status(502, body=b"<html>Bad Gateway</html>"),
        Status(503),
        Status(503, {"retry-after": "1"}),
        Status(408),
        Status(409),
        fake_openai.HTML,
        Reset(),
    ]
    _script(harness, *harness.dice.sample(kinds, 4))


def answer_nonsense(harness: Harness) -> None:
    """Too few vectors, another order, wrong indexes, holes, NaN, several lengths; one alone is a wrong width."""
    harness.promises.may_fail |= {"dimension_mismatch"}
    kinds: list[Behaviour] = [
        fake_openai.ONE_TOO_FEW,
        fake_openai.WRONG_INDEX,
        fake_openai.HOLES,
        fake_openai.UNEVEN,
        fake_openai.NOT_FINITE,
    ]
    _script(harness, fake_openai.SHUFFLED, *harness.dice.sample(kinds, 2), sizes=LARGE)


def answer_another_width(harness: Harness) -> None:
    """Vectors of three dimensions: the files fail, and say so."""
    began = time.monotonic()
    _must_fail(harness, "dimension_mismatch", answer_too_narrow(harness), began=began)


def answer_too_narrow(harness: Harness) -> Behaviour:
    """The same where the files need not fail, as their worker may be lost before they do."""
    harness.promises.may_fail |= {"dimension_mismatch"}
    narrow = fake_openai.Mangled(lambda entries: [entry | {"embedding": [1.0, 0.0, 0.0]} for entry in entries])
    _script(harness, narrow)
    return narrow


def answer_a_gibibyte(harness: Harness) -> None:
    """A body of 1 GiB, as an answer and as an error."""
    _script(harness, Huge(), Huge(code=500))


def hang(harness: Harness) -> None:
    """Requests are taken and never answered."""
    _script(harness, Held(), Held())


def refuse_the_key(harness: Harness) -> None:
    """401: the files fail, and say so."""
    harness.promises.may_fail |= {"key_rejected"}
    refusal = Status(401, error_code="invalid_api_key")
    began = time.monotonic()
    _script(harness, refusal)
    _must_fail(harness, "key_rejected", refusal, began=began)


def _must_fail(harness: Harness, code: str, refusal: Behaviour, *, began: float) -> None:
    """Of those who met this at least one file has to fail with this code: it may be of an upload before, whose
    answer was lost with an API process.
    """

    def check() -> list[str]:
        harness.took_place = harness.provider.has_met(refusal)
        seconds = time.monotonic() - began
        if not harness.took_place or asyncio.run(has_failed(harness.postgres.url, code, seconds)):
            return []
        return [f"a request was refused, and no file failed with {code}"]

    harness.checks.append(check)


FAULTS = faults(limit_rate, answer_another_width, refuse_the_key) + faults(
    fail_requests, answer_nonsense, answer_a_gibibyte, hang, may=(REPEATED,)
)
