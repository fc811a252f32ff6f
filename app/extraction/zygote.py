"""The process that parses: started once with an empty environment, it forks a child for every risky file.

Started by exec, before any secret could be in its memory, with the parsers imported: a child costs a fork.
The parent sends a request and two descriptors (the document, the pipe for the answer) over a Unix socket; the
zygote answers with the child's pid when it starts, and with its wait status when it ends. Of what a child writes
to its stderr one bit goes on: whether it ended for want of memory.
"""

import contextlib
import ctypes
import json
import logging
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.errors import Unprocessable
from app.extraction import sandbox
from app.extraction.parsers import Bounds, read_text
from app.extraction.texts import clean, cut, splitter_for
from app.extraction.values import NOT_FENCED_IN, Chunking

_MOST_REQUEST_BYTES = 65536
_PR_SET_PDEATHSIG = 1
_MOST_OPEN_FILES = 64
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_PAGE_BYTES = resource.getpagesize()
_LAST_WORDS_BYTES = 4096
_WANT_OF_MEMORY = (
    b"memory allocation of",
    b"bad_alloc",
    b"Cannot allocate memory",
    b"ut of memory",
    b"OutOfMemory",
)
"""What Rust, C++ and C libraries say before they abort."""

ReadText = Callable[..., str]
"""`read_text` of the parsers, or what a test puts in its place."""


def answer_request(request: dict[str, Any], content: bytes, read: ReadText) -> dict[str, Any]:
    """Extract and cut one document; the answer is what goes over the pipe as JSON."""
    try:
        bounds = Bounds(request["max_characters"], request["max_pages"], request["memory_bytes"] // 2)
        text = clean(read(content, request["media_type"], bounds))
        if len(text) > request["max_characters"]:
            return {"failure": "too_much_text", "message": ""}
        chunks = cut(text, Chunking(request["max_tokens"], request["overlap_tokens"]))
    except Unprocessable as exc:
        return {"failure": exc.failure, "message": str(exc)}
    except MemoryError:
        return {"failure": "parser_memory", "message": ""}
    except Exception as exc:  # noqa: BLE001 - parsers raise anything on damaged files; its text may quote the file
        return {
            "failure": "unreadable_file",
            "message": f"The document is damaged or uses what the parser does not know ({type(exc).__name__}).",
        }
    return {"characters": len(text), "chunks": list(chunks)}


def _limit(request: dict[str, Any], zygote: int) -> None:
    """Bound this child's memory, CPU time and core dumps; it dies with the zygote."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != zygote:  # it died before we asked to be told
        os._exit(1)
    with contextlib.suppress(OSError):  # not everywhere allowed
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
    baseline = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    most_bytes = baseline + request["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    seconds = max(1, int(request["cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_OPEN_FILES, _MOST_OPEN_FILES))


def _speak_to(words: int) -> None:
    """Send stdout and stderr, which quote documents, away from our log."""
    os.dup2(words, 1)
    os.dup2(words, 2)


def _keep_only(document: int, pipe: int) -> None:
    """Close what belongs to the zygote."""
    lower, upper = sorted((document, pipe))
    os.closerange(3, lower)
    os.closerange(lower + 1, upper)
    os.closerange(upper + 1, _DESCRIPTORS)


def _run_child(request: dict[str, Any], document: int, pipe: int, read: ReadText) -> None:
    with os.fdopen(document, "rb") as source:
        content = source.read()
    answer = answer_request(request, content, read)
    with os.fdopen(pipe, "wb") as target:
        target.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace"))


class _Server:
    """The zygote's loop: requests, ends of children, and the last words of each."""

    def __init__(self, control: socket.socket, read: ReadText) -> None:
        self._control = control
        self._read = read
        self._selector = selectors.DefaultSelector()
        self._words: dict[int, int] = {}  # a child's pid → the pipe that its stderr comes through
        self._said: dict[int, bytes] = {}  # that pipe → the last of what came

    def run(self) -> None:
        """Serve until the parent closes its end or dies."""
        woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    message, descriptors, _, _ = socket.recv_fds(self._control, _MOST_REQUEST_BYTES, 2)
                    if not message:
                        return
                    self._fork(json.loads(message), *descriptors)
                elif key.fd == woken:
                    os.read(woken, 4096)
                elif key.fd in self._said:  # not yet reaped and closed in this round
                    self._listen(key.fd)
            self._reap()

    def _fork(self, request: dict[str, Any], document: int, pipe: int) -> None:
        heard, words = os.pipe()
        os.set_blocking(heard, False)
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                _speak_to(words)
                status = NOT_FENCED_IN
                _limit(request, zygote)
                sandbox.enter()
                status = 1
                _keep_only(document, pipe)
                _run_child(request, document, pipe, self._read)
                status = 0
            except MemoryError:  # over the document's bytes or the answer's, before or after it was parsed
                os.write(2, _WANT_OF_MEMORY[0])
            finally:
                os._exit(status)
        for descriptor in (document, pipe, words):
            os.close(descriptor)
        self._words[pid], self._said[heard] = heard, b""
        self._selector.register(heard, selectors.EVENT_READ)
        self._send({"id": request["id"], "pid": pid})

    def _listen(self, heard: int) -> bool:
        """Take what a child says, so that it never waits for us; whether there may be more."""
        try:
            piece = os.read(heard, _MOST_REQUEST_BYTES)
        except BlockingIOError:
            return False
        if not piece and heard in self._selector.get_map():
            self._selector.unregister(heard)
        self._said[heard] = (self._said[heard] + piece)[-_LAST_WORDS_BYTES:]
        return bool(piece)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            wanted_memory = status != 0 and any(words in self._last_words(pid) for words in _WANT_OF_MEMORY)
            self._forget(pid)
            self._send({"pid": pid, "status": status, "wanted_memory": wanted_memory})

    def _last_words(self, pid: int) -> bytes:
        heard = self._words[pid]
        while self._listen(heard):
            pass
        return self._said[heard]

    def _forget(self, pid: int) -> None:
        heard = self._words.pop(pid)
        del self._said[heard]
        if heard in self._selector.get_map():
            self._selector.unregister(heard)
        os.close(heard)

    def _send(self, news: dict[str, int | bool]) -> None:
        self._control.send(json.dumps(news).encode())


def serve(control: socket.socket, read: ReadText = read_text) -> None:
    """Be the zygote until the parent closes its end of `control` or dies; does not return."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when this ends
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # parsers quote the documents that they complain about
    splitter_for(Chunking())  # inherited by every child
    sandbox.prepare()
    _Server(control, read).run()
    os._exit(0)  # children die with us (PR_SET_PDEATHSIG)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
