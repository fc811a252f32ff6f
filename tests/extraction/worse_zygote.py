"""A zygote whose parser does what a document tells it: the worst that a parser can do."""

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from app.extraction.zygote import serve


def hang() -> str:
    while True:
        signal.pause()


def spin() -> str:
    while True:
        pass


def eat_memory() -> str:
    eaten = []
    while True:
        eaten.append(bytearray(1 << 20))


def abort_for_want_of_memory() -> str:
    os.write(2, b"memory allocation of 8589934592 bytes failed\n")
    os.abort()


def quit_quietly() -> str:
    os._exit(0)


def be_killed() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def talk() -> str:
    """Far more to stderr than a pipe holds."""
    os.write(1, b"not for the log" * 100_000)
    for _ in range(64):
        os.write(2, b"memory allocation of" * 4096)
    return "talked"


def answer(raw: bytes) -> str:
    for descriptor in _pipes():
        os.write(descriptor, raw)
        os._exit(0)
    return "there is no pipe"


def tell() -> str:
    return json.dumps({"environment": dict(os.environ), "open": len(_open_descriptors()), "pipes": len(_pipes())})


def _open_descriptors() -> list[int]:
    """All but stdin, stdout and stderr; the one that lists them is closed by then and does not count."""
    return [
        int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if int(path.name) > 2 and path.exists()
    ]


def _pipes() -> list[int]:
    return [descriptor for descriptor in _open_descriptors() if stat.S_ISFIFO(os.fstat(descriptor).st_mode)]


COMMANDS: dict[str, Callable[[], str]] = {
    "hang": hang,
    "spin": spin,
    "abort": os.abort,
    "eat memory": eat_memory,
    "abort for want of memory": abort_for_want_of_memory,
    "quit quietly": quit_quietly,
    "be killed": be_killed,
    "talk": talk,
    "tell": tell,
    "answer nonsense": lambda: answer(b"\xff\xfe nonsense"),
    "answer a list": lambda: answer(b"[1, 2]"),
    "answer wrong chunks": lambda: answer(b'{"characters": 1, "chunks": [1]}'),
    "answer a made-up failure": lambda: answer(b'{"failure": "key_revoked", "message": "ha"}'),
    "answer deeply": lambda: answer(b"[" * 50_000),
}


def read(content: bytes, media_type: str, *, max_characters: int) -> str:
    return COMMANDS[content.decode().removeprefix("{\\rtf ").removesuffix("}")]()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), read)
