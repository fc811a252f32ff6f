"""Every error that Sluice raises on purpose.

SluiceError
├── Refused        the caller's fault: an HTTP status and a sentence that says how to mend it
│   ├── BadRequest 400 · Unauthorized 401 · Forbidden 403 · NotFound 404 · Conflict 409 · TooLarge 413
│   └── Unprocessable   a file or key that no retry can help; ends an ingestion as `failed`
├── Transient      may heal: try again, `retry_after_seconds` from now if the other side said when
└── Broken         ours: a set-up or invariant that is wrong
"""

import re
from typing import ClassVar, Literal

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_MOST_CHARACTERS = 2000

FailureCode = Literal[
    "no_embedding_key",
    "key_revoked",
    "key_rejected",
    "unsupported_file",
    "unreadable_file",
    "encrypted_file",
    "empty_text",
    "too_much_text",
    "too_many_pages",
    "too_many_tokens",
    "unpacks_too_large",
    "parser_memory",
    "parser_timeout",
    "parser_crashed",
    "embedding_refused",
    "dimension_mismatch",
    "blob_missing",
    "poison",
    "attempts_exhausted",
    "internal_error",
]
"""The closed list of reasons why an ingestion may end `failed`; README explains each."""


class SluiceError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        text = message or type(self).__doc__ or type(self).__name__
        # it may quote a provider or a document, and it must fit into Postgres and a log line
        super().__init__(_UNPRINTABLE.sub("\ufffd", text)[:_MOST_CHARACTERS])


class Refused(SluiceError):
    """The request was refused."""

    status: ClassVar[int] = 400
    error_type: ClassVar[str] = "invalid_request_error"

    def __init__(self, message: str | None = None, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class BadRequest(Refused):
    """The request is not valid."""


class Unauthorized(Refused):
    """No API key was given: send it as 'Authorization: Bearer sk-…'."""

    status = 401
    error_type = "authentication_error"


class Forbidden(Refused):
    """This API key may not do that."""

    status = 403
    error_type = "permission_error"


class NotFound(Refused):
    """No such object."""

    status = 404


class Conflict(Refused):
    """The object is in a state that does not allow this."""

    status = 409


class KeyReused(Refused):
    """This Idempotency-Key came with another request before; take a new key for a new request."""

    status = 422


class TooLarge(Refused):
    """The upload is larger than this server accepts."""

    status = 413


class Unprocessable(Refused):
    """This file cannot be ingested, and trying again would not help."""

    status = 422

    def __init__(self, failure: FailureCode, message: str) -> None:
        super().__init__(message, code=failure)
        self.failure: FailureCode = failure


class Transient(SluiceError):
    """A part that Sluice depends on failed for the moment."""

    costs_attempt: ClassVar[bool] = True
    """Whether it may be the file's fault."""
    gives_up_as: ClassVar[FailureCode] = "attempts_exhausted"
    """The reason, once there are no attempts left."""

    def __init__(self, message: str | None = None, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimited(Transient):
    """A provider asks us to wait: nobody's failure."""

    costs_attempt = False


class KeyBusy(RateLimited):
    """An embedding key is to pause, or has its share of the work: known before anything was done for the file."""


class Broken(SluiceError):
    """Sluice itself is set up wrongly or broke one of its own rules."""
