import json
from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from app.embedding import EmbeddingCredential, EmbeddingModel
from app.embedding.faults import Fault, fault_of_status, redacted, retry_after_seconds
from app.errors import Transient, Unprocessable

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
CREDENTIAL = EmbeddingCredential("server", "https://user:hunter2@api.example/v1", SecretStr("s3cret-value"))
MODEL = EmbeddingModel("some-model", 8)


def _fault(status: int, *, headers=None, **error: str) -> Fault:
    body = json.dumps({"error": error}).encode()
    return fault_of_status(status, headers or {}, body, model=MODEL, credential=CREDENTIAL, now=NOW)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "1e12"}, 3600),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:09 GMT"}, 9),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:09 GMT", "date": "Thu, 01 Jan 2026 12:00:04 GMT"}, 5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "20s"}, None),
    ],
)
def test_every_way_of_asking_for_a_pause_is_understood(headers, seconds):
    assert retry_after_seconds(headers, now=NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("status", "kind", "failure"),
    [
        (400, "texts", "embedding_refused"),
        (401, "lane", "key_rejected"),
        (402, "lane", "key_rejected"),
        (403, "lane", "key_rejected"),
        (404, "lane", "embedding_refused"),
        (408, "passing", None),
        (413, "size", "embedding_refused"),
        (422, "texts", "embedding_refused"),
        (429, "throttled", None),
        (500, "passing", None),
        (503, "passing", None),
        (302, "passing", None),
    ],
)
def test_each_status_has_its_meaning(status, kind, failure):
    fault = _fault(status)

    assert (fault.kind, fault.failure) == (kind, failure)
    assert "some-model at api.example" in fault.sentence


def test_an_overloaded_server_that_names_a_time_parks_the_key():
    fault = _fault(503, headers={"retry-after": "3"})

    assert (fault.kind, fault.wait_seconds) == ("throttled", 3)


def test_an_account_without_quota_is_refused_although_it_comes_as_429():
    fault = _fault(429, code="insufficient_quota")

    assert (fault.kind, fault.failure) == ("lane", "key_rejected")
    assert "add credit" in fault.sentence


def test_too_many_tokens_in_a_request_ask_for_smaller_requests():
    assert _fault(400, code="max_tokens_per_request").kind == "size"


def test_the_words_of_a_refusal_are_quoted():
    assert "maximum context length" in _fault(400, message="maximum context length is 8192").sentence


@pytest.mark.parametrize("status", [401, 403])
def test_the_words_about_a_rejected_key_are_never_quoted(status):
    assert "proj" not in _fault(status, message="Incorrect API key provided: proj-ab***xy").sentence


@pytest.mark.parametrize(
    "message",
    [
        "you sent s3cret-value",
        "you sent sk-proj-abcdefghij",
        "you sent sk-ab***xyzw",
        "you sent Bearer abcdefghijkl",
    ],
)
def test_nothing_that_looks_like_a_key_is_quoted(message):
    assert redacted(message, credential=CREDENTIAL) == ': "you sent [key]"'


def test_a_long_quote_is_cut_to_one_short_line():
    quote = redacted("a\nb " + "x" * 10_000, credential=CREDENTIAL)

    assert quote.startswith(': "a b xxx')
    assert len(quote) < 320


def test_neither_password_nor_secret_stands_in_the_repr_of_a_credential():
    assert "hunter2" not in repr(CREDENTIAL)
    assert "s3cret" not in repr(CREDENTIAL)
    assert CREDENTIAL.host == "api.example"


def test_a_fault_becomes_the_error_that_says_whether_a_retry_helps():
    refusal = _fault(400).as_error()
    pause = _fault(429, headers={"retry-after": "7"}).as_error(wait_seconds=1)
    failure = _fault(500).as_error(wait_seconds=1)

    assert isinstance(refusal, Unprocessable)
    assert isinstance(pause, Transient)
    assert isinstance(failure, Transient)
    assert (pause.retry_after_seconds, failure.retry_after_seconds) == (7, 1)
