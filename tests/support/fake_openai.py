"""An embeddings API that speaks HTTP, with scripted faults: `async with FakeOpenAI() as api`, or run this module.

    python -m tests.support.fake_openai --port 9000 --latency-ms 50 --dimensions 1536

Vectors follow from the words of a text (feature hashing), so texts that share words are near each other.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FEATURES_A_WORD = 8


@lru_cache(maxsize=1 << 16)
def _features(word: str, dimensions: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(positions, signs) of a word, both FEATURES_A_WORD long."""
    digest = hashlib.blake2b(word.encode(), digest_size=4 * FEATURES_A_WORD).digest()
    numbers = np.frombuffer(digest, dtype="<u4").tolist()
    return tuple(n // 2 % dimensions for n in numbers), tuple(1.0 if n % 2 else -1.0 for n in numbers)


def vector_of(text: str, dimensions: int) -> NDArray[np.float32]:
    """The unit vector that this API answers for a text; the same in every process."""
    features = [_features(word, dimensions) for word in re.findall(r"\w+", text.lower()) or [text]]
    positions = [position for places, _ in features for position in places]
    signs = [sign for _, signs in features for sign in signs]
    vector = np.bincount(positions, weights=signs, minlength=dimensions)
    if not vector.any():  # signs that cancel out; no model answers zeros
        vector[0] = 1.0
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with an error in OpenAI's shape, or with `body` if that is given."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "scripted"
    error_code: str | None = None
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Mangled:
    """Answer 200 with a list of embeddings that `mangle` has been at."""

    mangle: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Answer as usual, but only once `release` is set."""

    release: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Huge:
    """Answer with a body of so many bytes, which look like the beginning of one long number."""

    size_bytes: int = 1 << 30
    code: int = 200


@dataclass(frozen=True, slots=True)
class Cut:
    """Promise a body and hang up in the midst of it."""

    code: int = 200


@dataclass(frozen=True, slots=True)
class Usual:
    """Answer as usual."""


Behaviour = Status | Mangled | Held | Reset | Huge | Cut | Usual

HTML = Status(200, {"content-type": "text/html"}, body=b"<!doctype html><title>Welcome</title>")
ONE_TOO_FEW = Mangled(lambda entries: entries[:-1])
SHUFFLED = Mangled(lambda entries: entries[::-1])
WRONG_INDEX = Mangled(lambda entries: [entry | {"index": 7} for entry in entries])
NO_INDEX = Mangled(lambda entries: [{"embedding": entry["embedding"]} for entry in entries])
HOLES = Mangled(lambda entries: [entry | {"embedding": [None] * 8} for entry in entries])
UNEVEN = Mangled(lambda entries: [entry | {"embedding": [1.0] * (9 + n)} for n, entry in enumerate(entries)])
ZEROS = Mangled(lambda entries: [entry | {"embedding": [0.0] * 8} for entry in entries])
NOT_FINITE = Mangled(lambda entries: [entry | {"embedding": [float("nan")] * 8} for entry in entries])


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came in."""

    authorization: str | None
    headers: Mapping[str, str]
    model: str
    texts: tuple[str, ...]
    dimensions: int | None  # as asked for
    encoding_format: str | None


class FakeOpenAI:
    """`POST /v1/embeddings` on a loopback port of its own.

    What a request meets is the first of: the behaviour in `for_key` of its API key; that in `for_word` of a word in
    one of its texts; the next one of `script`; and else the usual answer after `latency_seconds`.
    """

    def __init__(
        self,
        *,
        dimensions: int = 8,
        latency_seconds: float = 0.0,
        port: int = 0,
        floats_only: bool = False,
        cookie: str | None = None,
    ) -> None:
        self.dimensions = dimensions  # unless the request asks for another number
        self.requests: list[Seen] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.billed_tokens = 0
        self.for_key: dict[str, Behaviour] = {}
        self.for_word: dict[str, Behaviour] = {}
        self._script: deque[Behaviour] = deque()
        self._latency_seconds = latency_seconds
        self._floats_only = floats_only  # as servers that ignore encoding_format
        self._cookie = cookie
        self._port = port
        self._arrived = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def script(self, *behaviours: Behaviour) -> None:
        """What the next requests meet, one each."""
        self._script.extend(behaviours)

    def unscript(self) -> tuple[Behaviour, ...]:
        """Forget what no request has met of the script; it is returned."""
        left = tuple(self._script)
        self._script.clear()
        return left

    async def arrived(self, requests: int) -> None:
        """Wait until so many requests have come in since the start."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= requests)

    @property
    def base_url(self) -> str:
        """What to give the SDK as `base_url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._converse(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other until the client hangs up."""
        try:
            while await self._exchange(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client may leave whenever it likes
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read and answer one request; False ends the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if not head[0].startswith("POST /v1/embeddings "):
            writer.write(self._response(_error(Status(404, message="no such route"))))
            return True
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(json.loads(body), headers, writer)
        finally:
            self.in_flight -= 1

    async def _answer(
        self, asked: dict[str, Any], headers: Mapping[str, str], writer: asyncio.StreamWriter
    ) -> bool:
        texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
        seen = Seen(
            headers.get("authorization"),
            headers,
            asked["model"],
            tuple(texts),
            asked.get("dimensions"),
            asked.get("encoding_format"),
        )
        behaviour = self._behaviour(seen)
        async with self._arrived:
            self.requests.append(seen)
            self._arrived.notify_all()
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        match behaviour:
            case Reset():
                writer.transport.abort()
                return False
            case Held():
                await behaviour.release.wait()
            case Huge():
                await _write_huge(behaviour, writer)
                return False
            case Cut():
                cut = Status(behaviour.code, {"content-length": "5000"}, body=b'{"data": [{"ind')
                writer.write(self._response(cut, status=cut))
                return False
        status = behaviour if isinstance(behaviour, Status) else Status(200)
        answer = _error(status) if isinstance(behaviour, Status) else self._embeddings(seen, behaviour)
        writer.write(self._response(answer, status=status))
        return True

    def _behaviour(self, seen: Seen) -> Behaviour:
        key = (seen.authorization or "").removeprefix("Bearer ")
        if key in self.for_key:
            return self.for_key[key]
        for word, behaviour in self.for_word.items():
            if any(word in text for text in seen.texts):
                return behaviour
        return self._script.popleft() if self._script else Usual()

    def _embeddings(self, seen: Seen, behaviour: Behaviour) -> Status:
        as_base64 = seen.encoding_format == "base64" and not self._floats_only
        vectors = [vector_of(text, seen.dimensions or self.dimensions) for text in seen.texts]
        entries: list[dict[str, Any]] = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        if isinstance(behaviour, Mangled):
            entries = behaviour.mangle(entries)
        tokens = sum(tokens_of(text) for text in seen.texts)
        self.billed_tokens += tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": entries, "model": seen.model, "usage": usage}
        return Status(200, body=json.dumps(answer).encode())

    def _response(self, answer: Status, *, status: Status | None = None) -> bytes:
        body = answer.body or b""
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "date": formatdate(usegmt=True),
        }
        if self._cookie:
            headers["set-cookie"] = self._cookie
        headers |= (status or answer).headers
        lines = [f"HTTP/1.1 {answer.code} {HTTPStatus(answer.code).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def _write_huge(huge: Huge, writer: asyncio.StreamWriter) -> None:
    """Until all is written or the client leaves."""
    head = f"HTTP/1.1 {huge.code} {HTTPStatus(huge.code).phrase}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {huge.size_bytes}\r\n\r\n".encode())
    piece = b"1" * (1 << 16)
    for _ in range(huge.size_bytes // len(piece)):
        writer.write(piece)
        await writer.drain()


def tokens_of(text: str) -> int:
    """What this API bills for a text: its words."""
    return len(text.split())


def _error(status: Status) -> Status:
    if status.body is not None:
        return status
    error = {"message": status.message, "type": "scripted", "param": None, "code": status.error_code}
    return Status(status.code, body=json.dumps({"error": error}).encode())


async def _serve(arguments: argparse.Namespace) -> None:
    latency_seconds = arguments.latency_ms / 1000
    api = FakeOpenAI(dimensions=arguments.dimensions, latency_seconds=latency_seconds, port=arguments.port)
    async with api:
        sys.stdout.write(f"listening on {api.base_url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fake_openai", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed at the start")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how long each answer takes")
    parser.add_argument("--dimensions", type=int, default=1536, help="unless a request names a number")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args(None if arguments is None else list(arguments))))


if __name__ == "__main__":
    main()
