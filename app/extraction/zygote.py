"""The process that parses: started once with an empty environment, it forks a child for every risky file.

Started by exec, before any secret could be in its memory, with the parsers imported: a child costs a fork.
The parent sends a request and two descriptors (the document, the pipe for the answer) over a Unix socket; the
zygote answers with the child's pid when it starts, and with its wait status when it ends.
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
from pathlib import Path
from typing import Any

from app.errors import Unprocessable
from app.extraction.parsers import read_text
from app.extraction.texts import clean, cut, splitter_for
from app.extraction.values import Chunking

_MOST_REQUEST_BYTES = 65536
_PR_SET_PDEATHSIG = 1
_MOST_OPEN_FILES = 64
_PAGE_BYTES = resource.getpagesize()


def answer_request(request: dict[str, Any], content: bytes) -> dict[str, Any]:
    """Extract and cut one document; the answer is what goes over the pipe as JSON."""
    try:
        text = clean(read_text(content, request["media_type"], max_characters=request["max_characters"]))
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


def _limit(request: dict[str, Any]) -> None:
    """Bound this child's memory, CPU time and core dumps; it dies with the zygote."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):  # not everywhere allowed
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this process goes first
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # parsers quote documents, and our log is no place for them
        os.dup2(silence, stream)
    baseline = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    most_bytes = baseline + request["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    seconds = max(1, int(request["cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MOST_OPEN_FILES, _MOST_OPEN_FILES))


def _run_child(request: dict[str, Any], document: int, pipe: int) -> None:
    _limit(request)
    with os.fdopen(document, "rb") as source:
        content = source.read()
    answer = answer_request(request, content)
    with os.fdopen(pipe, "wb") as target:
        target.write(json.dumps(answer).encode("utf-8", "surrogatepass"))


def _fork(control: socket.socket, request: dict[str, Any], document: int, pipe: int) -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            control.close()
            _run_child(request, document, pipe)
            status = 0
        finally:
            os._exit(status)
    control.send(json.dumps({"id": request["id"], "pid": pid}).encode())


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(json.dumps({"pid": pid, "status": status}).encode())


def serve(control: socket.socket) -> None:
    """Serve requests until the parent closes its end or dies."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    message, descriptors, _, _ = socket.recv_fds(control, _MOST_REQUEST_BYTES, 2)
                    if not message:
                        return
                    _fork(control, json.loads(message), *descriptors)
                    for descriptor in descriptors:
                        os.close(descriptor)
                else:
                    os.read(woken, 4096)
            _reap(control)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when this ends
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # parsers quote the documents that they complain about
    splitter_for(Chunking())  # inherited by every child
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # children die with us (PR_SET_PDEATHSIG)
