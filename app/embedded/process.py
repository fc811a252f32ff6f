"""Starting a server binary, waiting until it answers, stopping it without orphans."""

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.errors import Broken

_POLL_SECONDS = 0.02
_LOG_TAIL_LINES = 3


def socket_folder(data_folder: Path) -> Path:
    """A short, private folder for the sockets of the servers that keep their files in `data_folder`.

    Unix socket paths end at 107 bytes, and a project folder may be longer; so it lies in the temporary
    folder, under a name made of the user and the data folder, and must be this user's own.

    Raises:
        Broken: the folder exists and is somebody else's.
    """
    digest = hashlib.sha256(str(data_folder.resolve()).encode()).hexdigest()[:10]
    folder = Path(tempfile.gettempdir()) / f"sluice-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise Broken(f"{folder} belongs to somebody else; remove it or set TMPDIR to a folder of your own")
    return folder


class ServerProcess:
    """One child server: started by `start`, ended by `stop`, its output in `log_path`."""

    def __init__(self, name: str, *, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; a server that is not running has none (Broken)."""
        if self._process is None:
            raise Broken(f"the embedded {self.name} is not running")
        return self._process.pid

    def start(
        self, command: Sequence[str | Path], *, is_ready: Callable[[], bool], timeout_seconds: float = 30
    ) -> None:
        """Run `command` in its own process group and return once `is_ready`.

        Raises:
            Broken: it ended or did not answer in time; with the last lines of its log.
        """
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own binaries, no shell
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we stop the servers in order
            )
        deadline = time.monotonic() + timeout_seconds
        while not is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Broken(f"the embedded {self.name} did not start: {self._last_words()}")
            time.sleep(_POLL_SECONDS)

    def stop(self, *, kill_signal: signal.Signals = signal.SIGTERM, timeout_seconds: float = 15) -> None:
        """End the server: politely, then by force. Harmless if it is gone already."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(kill_signal)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-_LOG_TAIL_LINES:]) or f"no output; see {self.log_path}"
