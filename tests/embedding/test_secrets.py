import io
import logging
import traceback
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from rich.console import Console
from rich.traceback import Traceback

from app.errors import SluiceError
from tests.embedding.conftest import MODEL, credential
from tests.support import fake_openai
from tests.support.fake_openai import Reset, Status

CANARY = "sk-canary-0123456789abcdef"
ECHO = f"Incorrect API key provided: {CANARY[:12]}***{CANARY[-4:]}; Authorization: Bearer {CANARY}"

FAULTS = {
    "400": Status(400, message=ECHO),
    "400-text": Status(400, body=ECHO.encode()),
    "401": Status(401, message=ECHO),
    "403": Status(403, message=ECHO),
    "404": Status(404, message=ECHO),
    "413": Status(413, message=ECHO),
    "429": Status(429, {"retry-after": "300"}, message=ECHO),
    "500": Status(500, message=ECHO),
    "html": fake_openai.HTML,
    "count": fake_openai.ONE_TOO_FEW,
    "nan": fake_openai.NOT_FINITE,
    "reset": Reset(),
}


def _everything_told_about(error: BaseException) -> str:
    """The error as every renderer shows it, with the locals of all frames."""
    seen = [repr(error), str(error), *traceback.format_exception(error)]
    frames = io.StringIO()
    Console(file=frames, width=500).print(
        Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True)
    )
    return "".join([*seen, frames.getvalue(), repr(structlog.tracebacks.ExceptionDictTransformer()(_info(error)))])


def _info(error: BaseException):
    return type(error), error, error.__traceback__


@pytest.fixture
def everything_logged(caplog) -> Iterator[None]:
    """Every logger at its most talkative, structlog's too, in caplog."""
    caplog.set_level(logging.DEBUG)
    before = structlog.get_config()
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()], logger_factory=structlog.stdlib.LoggerFactory()
    )
    yield
    structlog.configure(**before)


@pytest.fixture
def events() -> Iterator[list[MutableMapping[str, Any]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("everything_logged")
async def test_a_key_stands_in_no_error_trace_or_log(api, embedder, caplog, fault):
    api.for_key[CANARY] = FAULTS[fault]

    with pytest.raises(SluiceError) as failed:
        await embedder.embed(["a"], model=MODEL, credential=credential(api, secret=CANARY))

    logged = caplog.text + "".join(repr(record.__dict__) for record in caplog.records)
    assert "HTTP" in logged
    told = _everything_told_about(failed.value) + logged
    assert CANARY not in told
    assert CANARY[:12] not in told
    assert failed.value.__cause__ is None
    assert failed.value.__context__ is None


async def test_the_hunt_would_find_a_key(api):
    async def leak(secret: str) -> None:
        raise ValueError(len(secret))

    with pytest.raises(ValueError, match="26") as leaked:
        await leak(CANARY)

    assert CANARY in _everything_told_about(leaked.value)


class Unwritable:
    """Passes for a text until the SDK writes the request: an error that no part of ours foresees."""

    def encode(self) -> bytes:
        return b"x"


async def test_an_error_of_our_own_in_the_background_ends_the_call_without_its_words(api, embedder, events):
    with pytest.raises(SluiceError, match="broke inside Sluice") as failed:
        await embedder.embed([Unwritable()], model=MODEL, credential=credential(api, secret=CANARY))

    assert "dispatch.py" in events[0]["place"]
    assert CANARY not in repr(events) + _everything_told_about(failed.value)
