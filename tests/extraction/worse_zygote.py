"""A zygote whose parser does what a document tells it: the worst that a parser can do."""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from app.extraction.parsers import Bounds
from app.extraction.zygote import serve

_F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 15, 0x8901, 0x8902
_LIBC = ctypes.CDLL(None, use_errno=True)


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
    """All but stdin, stdout and stderr."""
    return [number for number in range(3, os.sysconf("SC_OPEN_MAX")) if _is_open(number)]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _pipes() -> list[int]:
    return [descriptor for descriptor in _open_descriptors() if stat.S_ISFIFO(os.fstat(descriptor).st_mode)]


def reach_out() -> str:
    """What a taken-over parser would try; the names of the attempts that succeeded."""
    attempts: dict[str, Callable[[], object]] = {
        "read a file": lambda: Path("/etc/passwd").read_bytes(),
        "read the worker's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
        "list a folder": lambda: list(Path("/").iterdir()),
        "write a file": lambda: Path("/tmp/sluice-worse").write_bytes(b"x"),  # noqa: S108
        "open a socket": socket.socket,
        "pair sockets without a stream": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "pair sockets of a network": lambda: _asked(socket.socketpair, socket.AF_INET, socket.SOCK_STREAM),
        "have somebody signalled": lambda: fcntl.fcntl(1, fcntl.F_SETOWN, os.getpid()),
        "have a thread signalled": lambda: fcntl.fcntl(1, _F_SETOWN_EX, struct.pack("ii", 0, os.getpid())),
        "choose the signal": lambda: fcntl.fcntl(1, fcntl.F_SETSIG, signal.SIGTERM),
        "have somebody signalled by a socket": lambda: _asked(fcntl.ioctl, 1, _FIOSETOWN, os.getpid()),
        "have a group signalled by a socket": lambda: _asked(fcntl.ioctl, 1, _SIOCSPGRP, os.getpid()),
        "start a program": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606
        "fork": os.fork,
        "signal the zygote": lambda: os.kill(os.getppid(), 0),
        "limit the zygote": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
        "slow the zygote down": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 0),
        "bind the zygote to a core": lambda: os.sched_setaffinity(os.getppid(), {0, 1}),
        "shut a folder": lambda: Path("/tmp").chmod(0o1777),  # noqa: S108
        "give a folder away": lambda: os.chown("/tmp", 0, 0),  # noqa: S108
        "date a folder back": lambda: os.utime("/tmp"),  # noqa: S108
        "mark a folder": lambda: os.setxattr("/tmp", "user.worse", b"x"),  # noqa: S108
        "cut a file short": lambda: _asked(os.truncate, "/nowhere", 0),
        "set an attribute": lambda: _asked(_call, 463, -1, None, 0, None, None, 0),
        "remove an attribute": lambda: _asked(_call, 466, -1, None, 0, None),
        "make a file immutable": lambda: _asked(_call, 469, -1, None, None, 0, 0),
        "trace": lambda: _checked(_LIBC.ptrace(16, os.getppid(), 0, 0)),
    }
    return ", ".join(name for name, attempt in attempts.items() if _succeeds(attempt)) or "nothing"


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _asked(call: Callable[..., object], *args: object) -> None:
    """A call that cannot succeed, so that nothing but the filter answers with EPERM."""
    try:
        call(*args)
    except PermissionError:
        raise
    except OSError:
        return


def _call(*args: object) -> None:
    _checked(_LIBC.syscall(*args))


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


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
    "reach out": reach_out,
    "answer nonsense": lambda: answer(b"\xff\xfe nonsense"),
    "answer a list": lambda: answer(b"[1, 2]"),
    "answer wrong chunks": lambda: answer(b'{"characters": 1, "chunks": [1]}'),
    "answer a made-up failure": lambda: answer(b'{"failure": "key_revoked", "message": "ha"}'),
    "answer deeply": lambda: answer(b"[" * 50_000),
}


def read(content: bytes, media_type: str, bounds: Bounds) -> str:
    return COMMANDS[content.decode().removeprefix("{\\rtf ").removesuffix("}")]()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), read)
