"""The queues that `benchmarks.queues` compares, and an environment of its own for each."""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import uv

ENVIRONMENTS = Path(tempfile.gettempdir()) / "sluice-benchmark-environments"
INSTALL_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue: what it is installed from, and about how many no-op jobs it does in a second."""

    name: str
    script: str
    packages: tuple[str, ...]
    speed: int
    at_once: tuple[int, ...] = (10, 100, 1000)
    modes: tuple[str, ...] = ("one", "many")
    fork: bool = False
    remark: str = ""

    @property
    def most(self) -> int:
        """How many jobs at once stand for it where one figure is shown: 100, or what it can do."""
        return min(100, max(self.at_once))


SPEEDUPS = ("hiredis==3.5.0", "uvloop==0.23.0")
RQ = ("rq==3.0.0", "redis==8.1.0", "hiredis==3.5.0")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("ours", "ours.py", (), 18_000, modes=("one", "many", "bulk")),
        Peer("arq", "arq_peer.py", ("arq==0.28.0", "redis==5.3.1", *SPEEDUPS), 2_500, remark="poll_delay 0.01"),
        Peer(
            "saq",
            "saq_peer.py",
            ("saq[redis,hiredis]==0.26.4", "redis==7.4.1", "typing_extensions", *SPEEDUPS),
            2_500,
        ),
        Peer(
            "streaq",
            "streaq_peer.py",
            ("streaq==7.2.0", "redis==8.1.0", *SPEEDUPS),
            1_300,
            modes=("one", "many", "bulk"),
        ),
        Peer(
            "taskiq",
            "taskiq_peer.py",
            ("taskiq==0.13.0", "taskiq-redis==1.2.4", "redis==8.1.0", *SPEEDUPS),
            2_300,
            remark="stream, results",
        ),
        Peer(
            "dramatiq",
            "dramatiq_peer.py",
            ("dramatiq[redis]==2.2.1", "redis==8.1.0", "hiredis==3.5.0"),
            5_000,
            (10, 100),
            ("one",),
            remark="at most 64 threads, no results",
        ),
        Peer(
            "celery",
            "celery_peer.py",
            ("celery[redis]==5.7.0", "redis==8.1.0", "hiredis==3.5.0"),
            800,
            (10, 100),
            ("one",),
            remark="threads",
        ),
        Peer("rq simple", "rq_peer.py", RQ, 600, (1,), ("one", "bulk"), remark="one at a time"),
        Peer("rq fork", "rq_peer.py", RQ, 100, (1,), (), fork=True, remark="one at a time"),
    )
}


def python_of(peer: Peer) -> str:
    """The interpreter of a peer's environment, made if it is not there.

    Raises:
        RuntimeError: it cannot be installed; says why.
    """
    if not peer.packages:
        return sys.executable
    digest = hashlib.sha256(" ".join((sys.version, *peer.packages)).encode()).hexdigest()[:8]
    folder = ENVIRONMENTS / f"{peer.script.removesuffix('.py')}-{digest}"
    python = str(folder / "bin" / "python")
    done = folder / "installed"
    if not done.exists():
        _run_uv("venv", "--clear", "--python", sys.executable, str(folder))
        _run_uv("pip", "install", "--python", python, *peer.packages)
        done.touch()
    return python


def _run_uv(*words: str) -> None:
    command = [uv.find_uv_bin(), *words, "-q"]
    outcome = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if outcome.returncode:
        raise RuntimeError(f"not installed: {outcome.stderr.strip()[-200:]}")
