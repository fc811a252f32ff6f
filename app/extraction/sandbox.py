"""What a parser's process may not do, where Linux offers it: read files, open sockets, start programs, hurt others.

Landlock (linux/landlock.h, ABI 1 and later) leaves it the interpreter's own files, read only; seccomp
(linux/seccomp.h, filter mode) answers EPERM to system calls that no parser needs. The process and its children
cannot undo either. By ctypes: the bindings on PyPI need a libseccomp that slim images lack, or are no release yet.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_SECCOMP, _PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 21, 38
_SECCOMP_MODE_FILTER = 2

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_READ = 1 << 2 | 1 << 3  # files, folders
_HANDLED_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NET_SINCE, _SCOPES_SINCE = 4, 6

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24  # offsets in struct seccomp_data
_SOCKET_KIND = 0xF
_IOCTLS = (0x8901, 0x8902, 0x40086602, 0x401C5820)  # FIOSETOWN, SIOCSPGRP; FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR
_FCNTLS_OF_OWNERS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000


@dataclass(frozen=True, slots=True)
class _Architecture:
    audit: int
    clone: int
    clone3: int
    socketpair: int
    ioctl: int
    fcntl: int
    own_only: tuple[int, ...]  # their first argument must be this process
    self_only: tuple[int, ...]  # likewise, or 0, which means it
    refused: tuple[int, ...]


_ANYWHERE = (
    *(425, 426, 427),  # io_uring
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree … mount_setattr
    *(434, 438, 424, 440),  # pidfd_open, pidfd_getfd, pidfd_send_signal, process_madvise
    *(463, 466, 469),  # setxattrat, removexattrat, file_setattr
)
_ARCHITECTURES = {
    "x86_64": _Architecture(
        0xC000003E,
        clone=56,
        clone3=435,
        socketpair=53,
        ioctl=16,
        fcntl=72,
        own_only=(62, 234),  # kill, tgkill
        self_only=(302, 203),  # prlimit64, sched_setaffinity
        refused=(
            *_ANYWHERE,
            *(41, 42, 43, 288, 49, 50),  # socket, connect, accept, accept4, bind, listen
            *(57, 58, 59, 322),  # fork, vfork, execve, execveat
            *(101, 310, 311, 312, 200, 129, 297),  # ptrace, process_vm_*, kcmp, tkill, rt_(tg)sigqueueinfo
            *(155, 161, 165, 166, 272, 308),  # pivot_root, chroot, mount, umount2, unshare, setns
            *(248, 249, 250, 321, 298, 323, 304),  # keys, bpf, perf_event_open, userfaultfd, open_by_handle_at
            *(29, 30, 31, 64, 68, 240, 175, 313, 246),  # System V IPC, mq_open, kernel modules, kexec
            *(90, 91, 268, 452, 92, 93, 94, 260),  # chmod and chown, which Landlock does not know
            76,  # truncate, which it knows since ABI 3
            *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime, utimes, futimesat, utimensat, xattr
            *(141, 251, 142, 144, 314),  # setpriority, ioprio_set, sched_setparam, _setscheduler, _setattr
        ),
    ),
    "aarch64": _Architecture(
        0xC00000B7,
        clone=220,
        clone3=435,
        socketpair=199,
        ioctl=29,
        fcntl=25,
        own_only=(129, 131),
        self_only=(261, 122),
        refused=(
            *_ANYWHERE,
            *(198, 203, 202, 242, 200, 201),
            *(221, 281),
            *(117, 270, 271, 272, 130, 138, 240),
            *(41, 51, 40, 39, 97, 268),
            *(217, 218, 219, 280, 241, 282, 265),
            *(194, 195, 196, 190, 186, 180, 105, 273, 104),
            *(52, 53, 452, 54, 55),
            45,
            *(88, 5, 6, 7, 14, 15, 16),
            *(140, 30, 118, 119, 274),
        ),
    ),
}


def missing() -> list[str]:
    """What this kernel (or container) does not offer of the two; nothing is changed by asking."""
    found = []
    if _landlock_abi() < 1:
        found.append("Landlock")
    if platform.machine() not in _ARCHITECTURES or _LIBC.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        found.append("seccomp")
    return found


def prepare() -> None:
    """Make what `enter` needs, for children forked later."""
    if _landlock_abi() > 0:
        _rules()


def enter() -> None:
    """Give up everything but computing, for good, as far as the kernel offers it.

    Raises:
        OSError: the kernel offers it and refuses all the same.
    """
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    lacks = missing()
    if "Landlock" not in lacks:
        _checked(_LIBC.syscall(_RESTRICT_SELF, _rules(), 0))
    if "seccomp" not in lacks:
        _leave_system_calls(_ARCHITECTURES[platform.machine()])


def _interpreters_folders() -> list[str]:
    """Parsers import lazily, and read fonts, tables and zones beside their code."""
    libraries = (
        Path("/usr/lib"),
        Path("/usr/local/lib"),
        Path("/lib"),
        Path("/lib64"),
        Path("/usr/share/zoneinfo"),
    )
    own = {sys.prefix, sys.base_prefix, *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))}
    return sorted(own | {str(each) for each in libraries if each.is_dir()})


def _landlock_abi() -> int:
    abi: int = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    return abi


@cache
def _rules() -> int:
    """A descriptor of Landlock's rules, kept for as long as the process lives."""
    abi = _landlock_abi()
    handled = max((known, mask) for known, mask in _HANDLED_BY_ABI.items() if known <= abi)[1]
    network = 0b11 if abi >= _NET_SINCE else 0  # bind and connect over TCP
    scopes = 0b11 if abi >= _SCOPES_SINCE else 0  # abstract sockets, signals
    attributes = struct.pack("QQQ", handled, network, scopes)[
        : 8 * (1 + (abi >= _NET_SINCE) + (abi >= _SCOPES_SINCE))
    ]
    rules = _checked(_LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for path in _interpreters_folders():
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            beneath = struct.pack("=Qi", _READ, folder)
            _checked(_LIBC.syscall(_ADD_RULE, rules, _PATH_BENEATH, beneath, 0))
        finally:
            os.close(folder)
    return rules


def _leave_system_calls(machine: _Architecture) -> None:
    program = b"".join(struct.pack("=HBBI", *each) for each in _program(machine, os.getpid()))
    buffer = ctypes.create_string_buffer(program)
    described = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    _checked(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0))


def _program(machine: _Architecture, pid: int) -> Sequence[tuple[int, int, int, int]]:
    """Classic BPF: (code, jump if true, jump if false, operand)."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    own_or_refuse = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 0, 1, pid), allow, refuse]
    self_or_refuse = [
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 1, 0, pid),
        (_JUMP_EQUAL, 0, 1, 0),
        allow,
        refuse,
    ]
    thread_or_refuse = [(_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD), allow, refuse]
    stream_or_refuse = [  # the runtime in kreuzberg needs a pair
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 0, 4, socket.AF_UNIX),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_AND, 0, 0, _SOCKET_KIND),
        (_JUMP_EQUAL, 0, 1, socket.SOCK_STREAM),
        allow,
        refuse,
    ]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32),
        refuse,
        (_JUMP_EQUAL, 0, 1, machine.clone3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # its flags are out of sight; libc falls back on clone
        (_JUMP_EQUAL, 0, len(thread_or_refuse), machine.clone),
        *thread_or_refuse,
        (_JUMP_EQUAL, 0, len(stream_or_refuse), machine.socketpair),
        *stream_or_refuse,
    ]
    for number, requests in ((machine.ioctl, _IOCTLS), (machine.fcntl, _FCNTLS_OF_OWNERS)):
        jumps = [(_JUMP_EQUAL, len(requests) - at, 0, each) for at, each in enumerate(requests)]
        others_or_refuse = [(_LOAD, 0, 0, _SECOND_ARGUMENT), *jumps, allow, refuse]
        program += [(_JUMP_EQUAL, 0, len(others_or_refuse), number), *others_or_refuse]
    for number in machine.own_only:
        program += [(_JUMP_EQUAL, 0, len(own_or_refuse), number), *own_or_refuse]
    for number in machine.self_only:
        program += [(_JUMP_EQUAL, 0, len(self_or_refuse), number), *self_or_refuse]
    for number in machine.refused:
        program += [(_JUMP_EQUAL, 0, 1, number), refuse]
    return [*program, allow]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
