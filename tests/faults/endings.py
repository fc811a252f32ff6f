"""Workers that were told to end: whether each did in time, and well."""

import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field

END_SECONDS = 30
"""A worker that is told to end has 25 s for what it has in hand."""


class _Ending:
    """Notes when a worker has ended, however late one looks; times are monotonic."""

    def __init__(self, worker: "subprocess.Popen[bytes]", until: float) -> None:
        self.until = until
        self.ended_at: float | None = None
        self._worker = worker
        self._noting = threading.Thread(target=self._note, daemon=True)
        self._noting.start()

    def _note(self) -> None:
        self._worker.wait()
        self.ended_at = time.monotonic()

    def is_over(self) -> bool:
        """Whether it has ended."""
        if self._worker.poll() is None:
            return False
        self._noting.join()
        return True


@dataclass
class Endings:
    """Those of which nothing has been said yet."""

    seconds: float = END_SECONDS
    _endings: dict["subprocess.Popen[bytes]", _Ending] = field(default_factory=dict)

    def expect(self, worker: "subprocess.Popen[bytes]") -> None:
        """It is told to end now."""
        self._endings[worker] = _Ending(worker, time.monotonic() + self.seconds)

    def workers(self) -> list["subprocess.Popen[bytes]"]:
        """Who they are."""
        return list(self._endings)

    def forget(self, pid: int) -> None:
        """It was killed on purpose meanwhile."""
        self._endings = {worker: each for worker, each in self._endings.items() if worker.pid != pid}

    def wrong(self, met: set["subprocess.Popen[bytes]"]) -> list[str]:
        """What is to be said of those whose time is over or who have ended; `met` are those that had work."""
        wrong = []
        for worker, ending in list(self._endings.items()):
            if not ending.is_over() and time.monotonic() < ending.until:
                continue
            del self._endings[worker]
            # before a worker listens to signals, they end it; it has nothing in hand then
            was_starting = worker.returncode == -signal.SIGTERM and worker not in met
            if ending.ended_at is None:
                wrong.append("a worker that was told to end did so not at all")
            elif worker.returncode != 0 and not was_starting:
                wrong.append(f"a worker that was told to end did so with status {worker.returncode}")
            elif ending.ended_at > ending.until:
                seconds = self.seconds + ending.ended_at - ending.until
                wrong.append(f"a worker that was told to end did so after {seconds:.1f} s")
        return wrong
