"""How an attempt ends, as a value; and the one decision about retries."""

from dataclasses import dataclass

from app.errors import Broken, FailureCode, KeyBusy, RateLimited, SluiceError, Transient, Unprocessable

_MOST_BACKOFF_SECONDS = 3600.0
_LEAST_PAUSE_SECONDS = 10.0
"""As long as a throttled key was waited for in vain: shorter would hold its slots most of the time."""


class TookTooLong(Transient):
    """The attempt took longer than JOB_TIMEOUT allows."""


@dataclass(frozen=True, slots=True)
class Completed:
    """Every chunk is in every store, committed."""

    chunks: int
    stores: int


@dataclass(frozen=True, slots=True)
class Failed:
    """It ends here, with a reason for a person."""

    code: FailureCode
    message: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Something that may heal went wrong."""

    delay_seconds: float
    message: str
    costs_attempt: bool = True
    pauses_key: bool = False  # the provider has just said so: the user's other files of this key wait, too
    waits_in_line: bool = False  # it comes again in its user's turn, not by a hint of its own


@dataclass(frozen=True, slots=True)
class Superseded:
    """The claim was lost, or there was nothing to claim: cancelled, detached, settled, or another's now."""


Outcome = Completed | Failed | RetryLater | Superseded


def outcome_of(
    error: Exception, *, attempts: int, most_retries: int, retry_delay_seconds: float
) -> Failed | RetryLater:
    """What a failed attempt leads to; `attempts` counts this one.

    Refusals fail at once. What may heal, and bugs of ours, are tried `most_retries` more times, the delay
    doubling from `retry_delay_seconds` up to an hour, never shorter than the other side asked for. What costs no
    attempt is waited for as long as it takes; a provider that limits its rate is asked again when it says, but for
    a least pause.
    """
    if isinstance(error, Unprocessable):
        return Failed(error.failure, str(error))
    message = _for_a_person(error)
    asked = error.retry_after_seconds if isinstance(error, Transient) else None
    if isinstance(error, RateLimited):
        pause = retry_delay_seconds if asked is None else max(asked, min(retry_delay_seconds, _LEAST_PAUSE_SECONDS))
        is_known = isinstance(error, KeyBusy)
        return RetryLater(pause, message, costs_attempt=False, pauses_key=not is_known, waits_in_line=is_known)
    if isinstance(error, Transient) and not error.costs_attempt:
        return RetryLater(max(retry_delay_seconds, asked or 0.0), message, costs_attempt=False)
    if attempts > most_retries:
        code: FailureCode = error.gives_up_as if isinstance(error, Transient) else "internal_error"
        return Failed(code, f"Gave up after {attempts} attempts; the last error: {message}")
    delay = min(retry_delay_seconds * 2 ** (attempts - 1), _MOST_BACKOFF_SECONDS)
    return RetryLater(max(delay, asked or 0.0), message)


def _for_a_person(error: Exception) -> str:
    """Our own errors' texts are written for clients; a foreign one's may hold anything, so only its name."""
    if isinstance(error, SluiceError) and not isinstance(error, Broken):
        return str(error)
    return f"An internal error ({type(error).__name__}); the server's log has the details."
