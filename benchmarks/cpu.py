"""Which process spends the processor's time: CPU seconds by role, read from Linux's /proc."""

import os
from collections import Counter
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_ROLES = (
    ("app.extraction.zygote", "parsers"),
    ("app.cli serve", "api"),
    ("app.cli worker", "worker"),
    ("tests.support.fake_openai", "provider"),
    ("postgres", "postgres"),
    ("redis-server", "redis"),
)


def cpu_seconds() -> Counter[str]:
    """CPU seconds so far of this process ("client") and its descendants, by role; empty without /proc.

    Children that have ended count with the parent that waited for them; a descendant of no known role is left out.
    """
    stats = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            numbers = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        stats[int(folder.name)] = (int(numbers[1]), [int(ticks) / _TICKS for ticks in numbers[11:15]], command)
    used: Counter[str] = Counter()
    for pid, (_, (user, system, child_user, child_system), command) in stats.items():
        if pid == os.getpid():
            used["client"] += user + system
        elif _descends(pid, stats):
            role = next((role for part, role in _ROLES if part in command), None)
            if role is not None:
                used[role] += user + system + child_user + child_system
    return used


def _descends(pid: int, stats: dict[int, tuple[int, list[float], str]]) -> bool:
    while pid in stats:
        pid = stats[pid][0]
        if pid == os.getpid():
            return True
    return False
