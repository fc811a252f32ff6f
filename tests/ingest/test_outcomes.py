import asyncpg
import pytest

from app.db import NoConnection
from app.errors import Broken, KeyBusy, RateLimited, Transient, Unprocessable
from app.extraction.guard import ParserKilled
from app.ingest.outcomes import Failed, RetryLater, TookTooLong, outcome_of


@pytest.mark.parametrize(
    ("error", "attempts", "expected"),
    [
        (Unprocessable("unsupported_file", "no"), 1, Failed("unsupported_file", "no")),
        (Unprocessable("key_revoked", "gone"), 9, Failed("key_revoked", "gone")),
        (Transient("busy"), 1, RetryLater(60, "busy")),
        (Transient("busy"), 2, RetryLater(120, "busy")),
        (Transient("busy"), 3, RetryLater(240, "busy")),
        (Transient("busy", retry_after_seconds=900), 1, RetryLater(900, "busy")),
        (Transient("busy", retry_after_seconds=1), 1, RetryLater(60, "busy")),
        (Transient("busy"), 4, Failed("attempts_exhausted", "Gave up after 4 attempts; the last error: busy")),
        (ParserKilled("dead"), 3, RetryLater(240, "dead")),
        (ParserKilled("dead"), 4, Failed("parser_memory", "Gave up after 4 attempts; the last error: dead")),
        (NoConnection("none"), 9, RetryLater(60, "none", costs_attempt=False)),
        (
            RateLimited("slow", retry_after_seconds=900),
            9,
            RetryLater(900, "slow", costs_attempt=False, pauses_key=True),
        ),
        (
            RateLimited("slow", retry_after_seconds=1),
            9,
            RetryLater(10, "slow", costs_attempt=False, pauses_key=True),
        ),
        (RateLimited("slow"), 9, RetryLater(60, "slow", costs_attempt=False, pauses_key=True)),
        (
            KeyBusy("full", retry_after_seconds=0),
            9,
            RetryLater(10, "full", costs_attempt=False, waits_in_line=True),
        ),
        (TookTooLong(), 1, RetryLater(60, "The attempt took longer than JOB_TIMEOUT allows.")),
    ],
)
def test_what_an_error_leads_to(error: Exception, attempts: int, expected: object) -> None:
    assert outcome_of(error, attempts=attempts, most_retries=3, retry_delay_seconds=60) == expected


@pytest.mark.parametrize(
    "error", [Broken("secret sk-123"), ValueError("secret sk-123"), asyncpg.DataError("sk-123")]
)
def test_the_text_of_an_error_that_is_not_meant_for_clients_stays_inside(error: Exception) -> None:
    for attempts, code in ((1, None), (4, "internal_error")):
        outcome = outcome_of(error, attempts=attempts, most_retries=3, retry_delay_seconds=60)
        assert "sk-123" not in outcome.message
        assert type(error).__name__ in outcome.message
        assert getattr(outcome, "code", None) == code


def test_the_delay_stops_growing_at_an_hour() -> None:
    outcome = outcome_of(Transient(), attempts=30, most_retries=99, retry_delay_seconds=60)
    assert isinstance(outcome, RetryLater)
    assert outcome.delay_seconds == 3600
