"""The same request sent again: by its Idempotency-Key, or an SDK's retry by its content.

`Idempotency-Key` as in draft-ietf-httpapi-idempotency-key-header-07; `X-Stainless-Retry-Count` is what the OpenAI
SDKs count their attempts with, which have no key, and `X-Stainless-Read-Timeout` (Python) or `X-Stainless-Timeout`
(Node) how long each waits for its answer.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Response

from app.access.tokens import Principal
from app.api.callers import Caller
from app.db import Connection
from app.errors import BadRequest
from app.records.accepted_requests import RequestIdentity, accept

_KEPT_SECONDS = 24 * 3600.0
_RETRY_SECONDS = 1800.0
"""Longer than the SDKs wait for an answer with their two retries."""
_USUAL_TIMEOUT_SECONDS = 600.0
_PAUSE_SECONDS = 60.0
"""What the SDKs wait before a retry at most, if they are told to."""
_MOST_KEY_CHARACTERS = 255
_REPLAYED = "Idempotent-Replayed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A creating request, as far as its headers tell whether it may have come before."""

    caller: Principal
    request: Request
    response: Response
    key: str | None
    retry_seconds: float | None  # how long ago an SDK may have tried first; None for what is no retry

    async def accept(self, conn: Connection, created_id: UUID, content: Sequence[object] | None = None) -> UUID:
        """Begin the transaction that creates `created_id` with this; another id than that is what the same request
        made before, which is then the answer.

        `content` is given for an upload: what is left of the body without the boundaries, which differ each time.

        Raises:
            KeyReused: the key came with another content before.
        """
        raw = await self.request.body() if content is None else json.dumps(content, default=_as_text).encode()
        digest = hashlib.sha256(raw).digest()
        what = f"content {digest.hex()} of {self.caller.token_id}" if self.key is None else f"key {self.key}"
        scope = f"{self.request.method} {self.request.url.path}"
        identity = RequestIdentity(
            hashlib.sha256(f"{scope} {what}".encode()).digest(),
            digest,
            keep_seconds=_RETRY_SECONDS if self.key is None else _KEPT_SECONDS,
            first_sent_seconds=self._first_sent_seconds(is_upload=content is not None),
            is_named=self.key is not None,
        )
        standing = await accept(conn, identity, user_id=self.caller.user_id, created_id=created_id)
        if standing != created_id:
            self.response.headers[_REPLAYED] = "true"
        return standing

    def _first_sent_seconds(self, *, is_upload: bool) -> float | None:
        if self.key is not None:
            return _KEPT_SECONDS
        if is_upload and self.retry_seconds is not None:  # who knows how long its retries were under way
            return _RETRY_SECONDS
        return self.retry_seconds


def _attempt(caller: Caller, request: Request, response: Response) -> Attempt:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MOST_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise BadRequest(
            f"An Idempotency-Key has 1 to {_MOST_KEY_CHARACTERS} printable ASCII characters.",
            param="Idempotency-Key",
        )
    return Attempt(caller, request, response, key, _retry_seconds(request))


def _retry_seconds(request: Request) -> float | None:
    """How long ago the first attempt of an SDK's retry can have been made; None for what is no retry."""
    count = request.headers.get("x-stainless-retry-count", "")
    retries = int(count[:3]) if count.isdecimal() else 0  # int() takes no more than 4,300 digits
    if not retries:
        return None
    headers = request.headers
    try:
        timeout = float(headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout") or "")
    except ValueError:
        timeout = _USUAL_TIMEOUT_SECONDS
    timeout = timeout if timeout > 0 else _USUAL_TIMEOUT_SECONDS
    return min(retries * (timeout + _PAUSE_SECONDS), _RETRY_SECONDS)


def _as_text(digest: bytes) -> str:
    return digest.hex()


ThisAttempt = Annotated[Attempt, Depends(_attempt)]
