"""The processes below one of ours."""

from contextlib import suppress

import psutil


def children(pid: int, word: str) -> list[psutil.Process]:
    """Those whose command line has this word in it; any may end while we look."""
    found = {}
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.NoSuchProcess):
                found[child] = " ".join(child.cmdline())
    return [child for child, line in found.items() if word in line]
