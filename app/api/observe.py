"""Around every request: an id, a limit on the body, one log line, one observation; and the last resort for bugs."""

import re
import time
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.callers import identify
from app.api.metrics import Metrics
from app.api.refusals import internal_error
from app.errors import Transient, Unauthorized
from app.ids import new_id

MOST_JSON_BYTES = 8 * 1024 * 1024
_STREAMED = frozenset({"/v1/files", "/v1/ingestions"})
"""Uploads: read piece by piece, and limited file by file where they are stored."""
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Observed:
    request_id: str
    status: int | None = None


class Observer:
    """The outermost ASGI layer of our own."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (lifespan events pass through)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        observed = _Observed(_request_id(scope))
        started = time.perf_counter()

        async def observing_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                observed.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = observed.request_id
            await send(message)

        limited = receive if scope["path"] in _STREAMED else _limit(scope, receive)
        with structlog.contextvars.bound_contextvars(request_id=observed.request_id):
            try:
                await self._app(scope, limited, observing_send)
            except Exception:  # the request's boundary: one bug must not go further than its request
                logger.exception("unexpected error", method=scope["method"], route=_route(scope))
                if observed.status is None:
                    await internal_error(observed.request_id)(scope, receive, observing_send)
            finally:
                self._note(scope, observed, time.perf_counter() - started)

    def _note(self, scope: Scope, observed: _Observed, seconds: float) -> None:
        method, route, status = scope["method"], _route(scope), observed.status or 499
        method = method if method in {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"} else "other"
        self._metrics.requests.labels(method, route, str(status)).observe(seconds)
        logger.info("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _GIVEN_ID.fullmatch(given) else new_id().hex


def _route(scope: Scope) -> str:
    """The route's template: a path has ids in it, which make bad labels and need not be in logs."""
    path: str = getattr(scope.get("route"), "path", "unmatched")
    return path


def _limit(scope: Scope, receive: Receive) -> Receive:
    """A `receive` that reads nothing of a stranger's body, and refuses one that is, or is declared, too long."""
    declared = Headers(scope=scope).get("content-length", "")
    is_declared_too_long = declared.isdecimal() and int(declared) > MOST_JSON_BYTES
    received = 0
    is_first = True

    async def limited_receive() -> Message:
        nonlocal received, is_first
        if is_first:
            is_first = False
            if not await _is_known(scope):
                return {"type": "http.request", "body": b"", "more_body": False}
        message: Message = {} if is_declared_too_long else await receive()
        received += len(message.get("body", b""))
        if is_declared_too_long or received > MOST_JSON_BYTES:
            # FastAPI lets an HTTPException through where it reads the body, and nothing else
            raise HTTPException(413, f"The body is longer than {MOST_JSON_BYTES} bytes.")
        return message

    return limited_receive


async def _is_known(scope: Scope) -> bool:
    """Whether the caller has a key; FastAPI reads and parses a body before it asks for that.

    If not, or if that cannot be asked now, it is the handler's dependency that says so.
    """
    try:
        await identify(HTTPConnection(scope))
    except (Unauthorized, Transient):
        return False
    return True
