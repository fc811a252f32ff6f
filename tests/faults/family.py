"""The processes below ours."""

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

Worker = subprocess.Popen[bytes]


def children(pid: int, word: str) -> list[psutil.Process]:
    """Those whose command line has this word in it; any may end while we look."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                found[child] = " ".join(child.cmdline())
    return [child for child, line in found.items() if word in line]


def of_this_version(workers: Sequence[Worker]) -> list[Worker]:
    """Those that run in our own folder; one of the previous version runs in that of its sources."""
    found = []
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(worker.pid).cwd() == str(Path.cwd()):
                found.append(worker)
    return found


def zygotes(workers: Sequence[Worker]) -> list[psutil.Process]:
    """The workers' processes that fork the parsers."""
    return [each for worker in workers for each in children(worker.pid, "app.extraction.zygote")]


def parsers(workers: Sequence[Worker]) -> list[psutil.Process]:
    """The children that parse a document at this moment."""
    return [child for zygote in zygotes(workers) for child in children(zygote.pid, "")]


def owner_of(parser: psutil.Process, workers: Sequence[Worker]) -> Worker | None:
    """Whose child's child it is, if it is one of these workers'."""
    above = {each.pid for each in parser.parents()}
    return next((worker for worker in workers if worker.pid in above), None)
