"""Every error as OpenAI's `{"error": {"message", "type", "param", "code"}}`."""

import math

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from app.db import Locked
from app.errors import Refused, Transient, Unauthorized

logger = structlog.stdlib.get_logger(__name__)


ErrorBody = dict[str, dict[str, str | None]]


def error_body(message: str, error_type: str, *, param: str | None = None, code: str | None = None) -> ErrorBody:
    """The body of an error answer."""
    texts = {"message": message, "type": error_type, "param": param, "code": code}
    # what a client sent may be quoted here, and JSON's escapes can make texts that are not valid Unicode
    return {"error": {name: text and text.encode(errors="replace").decode() for name, text in texts.items()}}


def refused_body(error: Refused) -> ErrorBody:
    """The body for a refusal of ours."""
    return error_body(str(error), error.error_type, param=error.param, code=error.code)


def internal_error(request_id: str) -> JSONResponse:
    """The answer to a bug of ours: it gives nothing away but the id under which the log has the details."""
    message = f"The server had an error while processing your request; its id is {request_id}."
    return JSONResponse(error_body(message, "server_error", code="internal_error"), 500)


def answer_errors(app: FastAPI) -> None:
    """Install the handlers."""
    app.add_exception_handler(Refused, _answer_refused)
    app.add_exception_handler(Transient, _answer_transient)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)


async def _answer_refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)  # noqa: S101 - registered for this type only
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    return JSONResponse(refused_body(error), error.status, headers)


async def _answer_transient(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Transient)  # noqa: S101 - registered for this type only
    logger.warning("answered 503", error=str(error))
    wait = 1 if error.retry_after_seconds is None else math.ceil(error.retry_after_seconds)
    if isinstance(error, Locked):
        body = error_body(str(error), "server_error", code="locked")
    else:
        message = "A part that this server depends on is not available at the moment; try again."
        body = error_body(message, "server_error", code="unavailable")
    return JSONResponse(body, 503, {"Retry-After": str(wait)})


async def _answer_invalid(_request: Request, error: Exception) -> JSONResponse:
    """Names what is wrong and where; never repeats what was sent, it may be a secret."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type only
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return JSONResponse(
            error_body("The body is not valid JSON.", "invalid_request_error", code="invalid_json"), 400
        )
    where = ".".join(_path(problem["loc"], error.body)) or None
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}.get(problem["type"])
    message = f"Invalid '{where}': {_sentence(problem)}" if where else f"Invalid request: {_sentence(problem)}"
    body = error_body(message, "invalid_request_error", param=where, code=code or "invalid_value")
    return JSONResponse(body, 400)


def _path(loc: tuple[str | int, ...], body: object) -> list[str]:
    """Where in the body (or query) a problem is: pydantic's location without its names for a union's branches."""
    if loc[0] != "body":
        return [str(part) for part in loc[1:]]
    path = []
    current = body
    for position, part in enumerate(loc[1:], start=2):
        if isinstance(current, dict) and part in current:
            current = current[part]
        elif isinstance(current, list) and isinstance(part, int):
            current = current[part] if part < len(current) else None
        elif not (position == len(loc) and isinstance(current, dict)):
            continue
        path.append(str(part))
    return path


def _sentence(problem: dict[str, object]) -> str:
    # the other messages of pydantic name what is expected; this one repeats what was sent
    if problem["type"] == "union_tag_invalid":
        return "unknown 'type'."
    return str(problem["msg"]).removeprefix("Value error, ").rstrip(".") + "."


async def _answer_http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type only
    messages = {404: "No such path.", 405: "This path does not take this method."}
    message = messages.get(error.status_code, error.detail)
    body = error_body(message, "invalid_request_error", code="not_found" if error.status_code == 404 else None)  # noqa: PLR2004
    return JSONResponse(body, error.status_code, error.headers)
