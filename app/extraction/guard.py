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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from app.errors import FailureCode, Transient, Unprocessable
from app.extraction.values import NOT_FENCED_IN, TOO_MUCH_TEXT, Chunking, ExtractionLimits

_PROJECT = Path(__file__).resolve().parents[2]
_KILLED_STATUS_SECONDS = 5.0
_STARTED_SECONDS = 30.0
"""A zygote that has not forked by then hangs; it imports the parsers in less than one on an idle machine."""
_ANSWER_BYTES_A_CHARACTER = 12
"""Overlap doubles a text at most, UTF-8 takes four bytes a character, and quotes and commas take the rest."""


_FRUGAL = {
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
}
"""A child's address space is limited, and every thread's arena and stack counts."""
_LARGE_ANSWER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ChildEnd:
    """How a child ended: its wait status, and whether it was for want of memory."""

    status: int
    wanted_memory: bool


class ParserKilled(Transient):
    """The parser was killed while it read this document, as the kernel does when the machine is short of memory."""

    gives_up_as = "parser_memory"


class NotFencedIn(Transient):
    """The system did not let the parser give up its rights, so the document was not read."""


class ZygoteGone(Exception):
    """The zygote died; the next call starts another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A document's text in chunks, and how many characters it had before it was cut."""

    characters: int
    chunks: list[str]


class Zygote:
    """A running zygote process and the calls that wait for it."""

    def __init__(self, program: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", program, str(theirs.fileno())],
            env={"PYTHONPATH": str(_PROJECT), "LANG": "C.UTF-8", **_FRUGAL},
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.setblocking(False)
        self._control = ours
        self._numbers = itertools.count()
        self._started: dict[int, asyncio.Future[tuple[int, asyncio.Future[ChildEnd]]]] = {}
        self._statuses: dict[int, asyncio.Future[ChildEnd]] = {}
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

    async def spawn(
        self, request: dict[str, Any], document: int, pipe: int
    ) -> tuple[int, "asyncio.Future[ChildEnd]"]:
        """Fork a child for a request: its pid, and a future of its end.

        Raises:
            ZygoteGone: it died meanwhile, or hangs and is ended.
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
            async with asyncio.timeout(_STARTED_SECONDS):
                return await asyncio.shield(started)
        except TimeoutError:
            self.close()
            raise ZygoteGone from None
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
            end = ChildEnd(news["status"], bool(news["wanted_memory"]))
            self._statuses.pop(news["pid"]).set_result(end)

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


def _kill_started(started: "asyncio.Future[tuple[int, asyncio.Future[ChildEnd]]]") -> None:
    """End a child that nobody waits for any more."""
    if started.cancelled() or started.exception() is not None:
        return
    pid, ended = started.result()
    if not ended.done():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class GuardedParser:
    """Parses documents in children of a zygote, with limits; one per process and event loop."""

    def __init__(self, limits: ExtractionLimits, program: str) -> None:
        self._limits = limits
        self._program = program
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

    async def parse(self, source: Path, media_type: str, chunking: Chunking) -> Answer:
        """The document's text in chunks.

        Raises:
            Unprocessable: the document's fault, or a limit; the child is gone in any case.
            Transient: the zygote died twice, somebody killed the child, or it could not be fenced in.
        """
        limits = self._limits
        request = {
            "media_type": media_type,
            "max_characters": limits.max_characters,
            "max_pages": limits.max_pages,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.timeout_seconds,
            "max_tokens": chunking.max_chunk_size_tokens,
            "overlap_tokens": chunking.chunk_overlap_tokens,
        }
        async with self._places:
            try:
                return await self._ask(request, source)
            except ZygoteGone:
                return await self._ask_again(request, source)

    async def _ask_again(self, request: dict[str, Any], source: Path) -> Answer:
        """The zygote died, which is not the document's fault: another one gets one more try."""
        try:
            return await self._ask(request, source)
        except ZygoteGone as exc:
            raise Transient("The parser process died twice; the file is tried again later.") from exc

    async def _ask(self, request: dict[str, Any], source: Path) -> Answer:
        if self._zygote is None or not self._zygote.is_alive:
            self.close()
            self._zygote = Zygote(self._program)
        document = os.open(source, os.O_RDONLY)
        read_end, write_end = os.pipe()
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
                end = await asyncio.shield(ended)
        except TimeoutError:
            raise _failure("parser_timeout") from None
        finally:
            if not ended.done():  # timed out, cancelled, or too talkative
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                await asyncio.wait({ended}, timeout=_KILLED_STATUS_SECONDS)
        if end.status != 0:
            raise _error_of(end)
        if len(raw) > _LARGE_ANSWER_BYTES:
            return await asyncio.to_thread(_understood, raw)
        return _understood(raw)


def _error_of(end: ChildEnd) -> Unprocessable | Transient:
    """What the end of a child means. Its own limit it meets by an error or a signal: who kills it is the kernel,
    and that may be another document's fault.
    """
    killed_by = os.WTERMSIG(end.status) if os.WIFSIGNALED(end.status) else None
    if killed_by == signal.SIGXCPU:
        return _failure("parser_timeout")
    if end.wanted_memory:
        return _failure("parser_memory")
    if os.waitstatus_to_exitcode(end.status) == NOT_FENCED_IN:
        return NotFencedIn()
    return ParserKilled() if killed_by == signal.SIGKILL else _failure("parser_crashed")


def _understood(raw: bytes) -> Answer:
    """What a child says, believed only if it has the form of an answer.

    Raises:
        Unprocessable: the child's own verdict, or `parser_crashed` if it talks nonsense.
    """
    match _parsed(raw):
        case {"failure": str(failure), "message": str(message)} if failure in _FAILURES:
            code = cast("FailureCode", failure)
            raise Unprocessable(code, message) if message else _failure(code)
        case {"characters": int(characters), "chunks": list(chunks)} if all(isinstance(one, str) for one in chunks):
            return Answer(characters, chunks)
        case _:
            raise _failure("parser_crashed")


def _parsed(raw: bytes) -> object:
    try:
        parsed: object = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return parsed


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


_FAILURES = {
    "encrypted_file",
    "unreadable_file",
    "empty_text",
    "too_much_text",
    "too_many_pages",
    "unpacks_too_large",
    "parser_memory",
}
"""The verdicts that are a child's to give."""
_MESSAGES: dict[str, str] = {
    "parser_timeout": "Reading this document took longer than EXTRACTION_TIMEOUT_SECONDS allows.",
    "parser_memory": "Reading this document took more memory than EXTRACTION_MEMORY_BYTES allows.",
    "parser_crashed": "The parser crashed on this document; it may be damaged.",
    "too_much_text": TOO_MUCH_TEXT,
}


def _failure(code: FailureCode) -> Unprocessable:
    return Unprocessable(code, _MESSAGES.get(code, ""))
