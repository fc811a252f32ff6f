"""How much memory this process holds, from Linux's /proc."""

import os
from pathlib import Path


def resident_mib() -> float:
    """MiB resident."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
