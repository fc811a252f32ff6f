"""The parent's side of the zygote: one guarded child a document, waited for without blocking the loop."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.errors import FailureCode, Transient, Unprocessable
from app.extraction.values import Chunking, ExtractionLimits

_PROJECT = Path(__file__).resolve().parents[2]
_KILLED_STATUS_SECONDS = 5.0
_ANSWER_BYTES_A_CHARACTER = 24
"""Overlap repeats up to half of a text, and JSON writes a character as up to twelve bytes."""


_FRUGAL = {
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
}
"""A child's address space is limited, and every thread's arena and stack counts."""
_LARGE_ANSWER_BYTES = 1 << 20


class ZygoteGone(Exception):
    """The zygote died; the next call starts another."""


class Zygote:
    """A running zygote process and the calls that wait for it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "app.extraction.zygote", str(theirs.fileno())],
            env={"PYTHONPATH": str(_PROJECT), "LANG": "C.UTF-8", **_FRUGAL},
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.setblocking(False)
        self._control = ours
        self._numbers = itertools.count()
        self._started: dict[int, asyncio.Future[tuple[int, asyncio.Future[int]]]] = {}
        self._statuses: dict[int, asyncio.Future[int]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, self._on_news)
        self.is_alive = True

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    def close(self) -> None:
        """End the zygote and all its children."""
        self._fail()
        self._process.kill()
        self._process.wait()

    async def spawn(self, request: dict[str, Any], document: int, pipe: int) -> tuple[int, "asyncio.Future[int]"]:
        """Fork a child for a request: its pid, and a future of its wait status.

        Raises:
            ZygoteGone: it died meanwhile.
        """
        number = next(self._numbers)
        started = self._started[number] = self._loop.create_future()
        message = json.dumps({**request, "id": number}).encode()
        try:
            socket.send_fds(self._control, [message], [document, pipe])
        except OSError as exc:
            self._fail()
            raise ZygoteGone from exc
        try:
            return await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(_kill_started)
            raise

    def _on_news(self) -> None:
        while True:
            try:
                message = self._control.recv(4096)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._fail()
                return
            self._note(json.loads(message))

    def _note(self, news: dict[str, int]) -> None:
        if "id" in news:
            ended = self._statuses[news["pid"]] = self._loop.create_future()
            self._started.pop(news["id"]).set_result((news["pid"], ended))
        else:
            self._statuses.pop(news["pid"]).set_result(news["status"])

    def _fail(self) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        self._loop.remove_reader(self._control)
        self._control.close()
        everyone: list[asyncio.Future[Any]] = [*self._started.values(), *self._statuses.values()]
        for waiting in everyone:
            if not waiting.done():
                waiting.set_exception(ZygoteGone())
                waiting.exception()  # somebody may no longer be waiting


def _kill_started(started: "asyncio.Future[tuple[int, asyncio.Future[int]]]") -> None:
    """End a child that nobody waits for any more."""
    if started.cancelled() or started.exception() is not None:
        return
    pid, ended = started.result()
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class GuardedParser:
    """Parses documents in children of a zygote, with limits; one per process and event loop."""

    def __init__(self, limits: ExtractionLimits) -> None:
        self._limits = limits
        self._zygote: Zygote | None = None
        self._places = asyncio.Semaphore(limits.concurrency)

    @property
    def zygote_pid(self) -> int | None:
        """The running zygote's process id."""
        return self._zygote.pid if self._zygote is not None and self._zygote.is_alive else None

    def close(self) -> None:
        """End the zygote and its children."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    async def parse(self, source: Path, media_type: str, chunking: Chunking) -> dict[str, Any]:
        """The child's answer: `characters` and `chunks`.

        Raises:
            Unprocessable: the document's fault, or a limit; the child is gone in any case.
        Transient: the zygote died twice.
        """
        limits = self._limits
        request = {
            "media_type": media_type,
            "max_characters": limits.max_characters,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.timeout_seconds,
            "max_tokens": chunking.max_chunk_size_tokens,
            "overlap_tokens": chunking.chunk_overlap_tokens,
        }
        async with self._places:
            try:
                answer = await self._ask(request, source)
            except ZygoteGone:
                answer = await self._ask_again(request, source)
        if "failure" in answer:
            failure: FailureCode = answer["failure"]
            raise Unprocessable(failure, answer["message"]) if answer["message"] else _failure(failure)
        return answer

    async def _ask_again(self, request: dict[str, Any], source: Path) -> dict[str, Any]:
        """The zygote died, which is not the document's fault: another one gets one more try."""
        try:
            return await self._ask(request, source)
        except ZygoteGone as exc:
            raise Transient("The parser process died twice; the file is tried again later.") from exc

    async def _ask(self, request: dict[str, Any], source: Path) -> dict[str, Any]:
        if self._zygote is None or not self._zygote.is_alive:
            self.close()
            self._zygote = Zygote()
        read_end, write_end = os.pipe()
        document = os.open(source, os.O_RDONLY)
        try:
            pid, ended = await self._zygote.spawn(request, document, write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(document)
            os.close(write_end)
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                raw = await _read_all(read_end, self._limits.max_characters * _ANSWER_BYTES_A_CHARACTER)
                status = await asyncio.shield(ended)
        except TimeoutError:
            raise _failure("parser_timeout") from None
        finally:
            if not ended.done():  # timed out, cancelled, or too talkative
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.wait({ended}, timeout=_KILLED_STATUS_SECONDS)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
            raise _failure("parser_timeout")
        if status != 0 or not raw:
            raise _failure("parser_crashed")
        answer: dict[str, Any] = (
            await asyncio.to_thread(json.loads, raw) if len(raw) > _LARGE_ANSWER_BYTES else json.loads(raw)
        )
        return answer


async def _read_all(descriptor: int, most_bytes: int) -> bytes:
    """Everything that comes through a pipe; its read end is closed in the end.

    Raises:
        Unprocessable: `too_much_text`, more than `most_bytes`.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    pieces, size = [], 0
    try:
        while piece := await reader.read(1 << 20):
            pieces.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise _failure("too_much_text")
    finally:
        transport.close()
    return b"".join(pieces)


_MESSAGES: dict[str, str] = {
    "parser_timeout": "Reading this document took longer than EXTRACTION_TIMEOUT_SECONDS allows.",
    "parser_memory": "Reading this document took more memory than EXTRACTION_MEMORY_BYTES allows.",
    "parser_crashed": "The parser crashed on this document, or hit its memory limit; it may be damaged.",
    "too_much_text": "The document holds more text than EXTRACTION_MAX_CHARACTERS allows; split it.",
}


def _failure(code: FailureCode) -> Unprocessable:
    return Unprocessable(code, _MESSAGES[code])
