"""What may go wrong with one embeddings request, as a value: no foreign exception travels further than this.

A foreign exception holds the request, and so the key, in its frames and causes. What callers get is raised
afresh from a `Fault`, with no cause.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from typing import Literal

from app.embedding.values import EmbeddingCredential, EmbeddingModel
from app.errors import FailureCode, RateLimited, SluiceError, Transient, Unprocessable

MAX_QUOTED_CHARACTERS = 300
MAX_WAIT_SECONDS = 3600.0  # the longest that a server's word can park a key

_KEY_LIKE = re.compile(r"\b(?:sk|pk|rk|key|Bearer)[-_ ][\w*.\-]{6,}", re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_KEY_REJECTED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_MAY_PASS = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request brought no vectors, and what follows from it."""

    kind: Literal[
        "lane",  # nothing that this credential and model send will pass
        "texts",  # the texts are refused: another call's texts may pass
        "size",  # the request is too large: half of it may pass
        "throttled",  # the key must pause
        "passing",  # this request failed; the next one may not
    ]
    sentence: str  # for the person who reads it: which model, where, what to do
    failure: FailureCode | None = None  # set when no retry can help
    wait_seconds: float | None = None  # how long the other side asked us to wait

    def as_error(self, *, wait_seconds: float | None = None) -> SluiceError:
        """A new exception for one caller, without cause or context.

        `wait_seconds` is how long is worth waiting, where the fault itself does not ask for more.
        """
        if self.failure is not None:
            return Unprocessable(self.failure, self.sentence)
        wait = max((wait for wait in (self.wait_seconds, wait_seconds) if wait is not None), default=None)
        kind = RateLimited if self.kind == "throttled" else Transient
        return kind(self.sentence, retry_after_seconds=wait)


def fault_of_status(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    model: EmbeddingModel,
    credential: EmbeddingCredential,
    now: datetime,
) -> Fault:
    """The fault behind an answer other than 2xx; `now` with a time zone, for Retry-After as a date."""
    code, message = _openai_error(body)
    where = f"{model.name} at {credential.host}"
    if status == HTTPStatus.PAYMENT_REQUIRED or code in _QUOTA_CODES:
        sentence = f"The account of the embedding key for {where} has no quota left; add credit or change the key."
        return Fault("lane", sentence, failure="key_rejected")
    if status in _KEY_REJECTED:
        # OpenAI's text for a 401 repeats parts of the key, so it is not quoted.
        sentence = f"The embedding key for {where} was rejected (HTTP {status}); check or replace the key."
        return Fault("lane", sentence, failure="key_rejected")
    if status == HTTPStatus.TOO_MANY_REQUESTS or (status >= 500 and "retry-after" in headers):  # noqa: PLR2004  # 5xx
        wait = retry_after_seconds(headers, now=now)
        return Fault("throttled", f"The API for {where} limits its rate (HTTP {status}).", wait_seconds=wait)
    if status in _MAY_PASS or not 400 <= status < 500:  # noqa: PLR2004  # 4xx but for those few
        return Fault("passing", f"The API for {where} failed with HTTP {status}.")
    return _refusal(status, code, redacted(message, credential=credential), where=where)


def _refusal(status: int, code: str | None, quoted: str, *, where: str) -> Fault:
    """The fault of a request that the API understood and does not want."""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or code == "max_tokens_per_request":
        sentence = f"The request for {where} was refused as too large{quoted}; lower RAG_EMBEDDING_BATCH_SIZE."
        return Fault("size", sentence, failure="embedding_refused")
    if status == HTTPStatus.NOT_FOUND:
        sentence = f"There is no {where}{quoted}; check the model's name and the base URL."
        return Fault("lane", sentence, failure="embedding_refused")
    sentence = f"The API for {where} refused the text (HTTP {status}){quoted}; change the text or the model."
    return Fault("texts", sentence, failure="embedding_refused")


def _openai_error(body: bytes) -> tuple[str | None, str]:
    """(code, message) of an error in OpenAI's shape; (None, "") when it has another."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None, ""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    if isinstance(error, str):
        return None, error
    if not isinstance(error, dict):
        return None, ""
    code = error.get("code") or error.get("type")
    return (code if isinstance(code, str) else None), str(error.get("message") or "")


def redacted(message: str, *, credential: EmbeddingCredential) -> str:
    """`: "…"` quoting a provider in one short line without the key or anything that looks like one; or ""."""
    secret = credential.secret.get_secret_value()
    if secret:
        message = message.replace(secret, "[key]")
    line = " ".join(_KEY_LIKE.sub("[key]", message).split())
    return f': "{line[:MAX_QUOTED_CHARACTERS]}"' if line else ""


def retry_after_seconds(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """How long a server asks us to wait, from 0 to an hour; None if it does not say so intelligibly.

    Reads, in this order, OpenAI's `retry-after-ms`, `Retry-After` in seconds or as an HTTP date (RFC 9110,
    10.2.3; counted from the answer's own `Date`, so that clocks may differ), and the `x-ratelimit-reset-*` of
    whatever `x-ratelimit-remaining-*` says is used up.
    """
    waits = [
        _number(headers.get("retry-after-ms"), unit_seconds=0.001),
        _number(headers.get("retry-after"), unit_seconds=1.0),
        _until_date(headers.get("retry-after"), sent_at=headers.get("date"), now=now),
        _reset_of_used_up(headers),
    ]
    wait = next((wait for wait in waits if wait is not None), None)
    return None if wait is None else min(max(wait, 0.0), MAX_WAIT_SECONDS)


def _number(text: str | None, *, unit_seconds: float) -> float | None:
    try:
        number = float(text or "") * unit_seconds
    except ValueError:
        return None
    return number if isfinite(number) else None


def _until_date(text: str | None, *, sent_at: str | None, now: datetime) -> float | None:
    try:
        until = parsedate_to_datetime(text or "")
        since = parsedate_to_datetime(sent_at) if sent_at else now
        return (until - since) / timedelta(seconds=1)
    except (ValueError, TypeError):  # not a date; or one of the two without a time zone
        return None


def _reset_of_used_up(headers: Mapping[str, str]) -> float | None:
    waits = [
        sum(
            float(number) * _UNIT_SECONDS[unit]
            for number, unit in _DURATION.findall(headers.get(f"x-ratelimit-reset-{what}", ""))
        )
        for what in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{what}") == "0"
    ]
    return max(waits, default=0.0) or None
