"""The same request sent again: by its Idempotency-Key, or an SDK's retry by its content.

`Idempotency-Key` as in draft-ietf-httpapi-idempotency-key-header-07; `X-Stainless-Retry-Count` is what the OpenAI
SDKs count their attempts with, which have no key.
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
"""Longer than the SDKs wait for an answer (600 s) with their two retries."""
_MOST_KEY_CHARACTERS = 255
_REPLAYED = "Idempotent-Replayed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A creating request, as far as its headers tell whether it may have come before."""

    caller: Principal
    request: Request
    response: Response
    key: str | None
    is_retry: bool

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
            may_repeat=self.is_retry or self.key is not None,
            keep_seconds=_RETRY_SECONDS if self.key is None else _KEPT_SECONDS,
        )
        standing = await accept(conn, identity, user_id=self.caller.user_id, created_id=created_id)
        if standing != created_id:
            self.response.headers[_REPLAYED] = "true"
        return standing


def _attempt(caller: Caller, request: Request, response: Response) -> Attempt:
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MOST_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise BadRequest(
            f"An Idempotency-Key has 1 to {_MOST_KEY_CHARACTERS} printable ASCII characters.",
            param="Idempotency-Key",
        )
    count = request.headers.get("x-stainless-retry-count", "")
    is_retry = count.isdecimal() and count.strip("0") != ""  # not int(): it refuses more than 4,300 digits
    return Attempt(caller, request, response, key, is_retry)


def _as_text(digest: bytes) -> str:
    return digest.hex()


ThisAttempt = Annotated[Attempt, Depends(_attempt)]
