"""Where the command finds its settings: the environment first, then a running `sluice up` in the data folder."""

import base64
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from app.errors import Broken
from app.settings import KEK_BYTES, Settings, load_settings

DEFAULT_FOLDER = Path(".sluice")
DEFAULT_URL = "http://127.0.0.1:8000"
_ENVIRONMENT_FILE = "environment.json"
_PIDS_FILE = "pids.json"
_KEY_FILE = "api-key"
_KEK_FILE = "key-encryption-key"


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as target:
        target.write(text)


def _started_at(pid: int) -> int | None:
    """When a living process was started, in ticks since the boot; with its id that names it (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


class DataFolder:
    """What `sluice up` keeps: databases, uploads, the API key, the key-encryption key; private to the user."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    def make(self) -> None:
        """Make sure that it exists and that only this user can read it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)

    def api_key(self) -> str | None:
        """The API key made on first start."""
        path = self.path / _KEY_FILE
        return path.read_text().strip() if path.exists() else None

    def keep_api_key(self, text: str) -> None:
        """Keep the API key made on first start."""
        _write_private(self.path / _KEY_FILE, text + "\n")

    def key_encryption_key(self) -> str:
        """The key-encryption key, made on first use."""
        path = self.path / _KEK_FILE
        if not path.exists():
            _write_private(path, base64.b64encode(secrets.token_bytes(KEK_BYTES)).decode())
        return path.read_text().strip()

    def publish(self, environment: dict[str, str]) -> None:
        """Tell other `sluice` commands on this machine where the running service's parts are."""
        _write_private(self.path / _ENVIRONMENT_FILE, json.dumps(environment))

    def withdraw(self) -> None:
        """The service has stopped."""
        for name in (_ENVIRONMENT_FILE, _PIDS_FILE):
            (self.path / name).unlink(missing_ok=True)

    def note_pids(self, pids: Sequence[int]) -> None:
        """Note which processes belong to the running service: `sluice up` first, then its parts."""
        _write_private(self.path / _PIDS_FILE, json.dumps([(pid, _started_at(pid)) for pid in pids]))

    def living_pids(self) -> list[int]:
        """Those of the noted processes that still run; a number that the system gave to another program is none."""
        path = self.path / _PIDS_FILE
        noted: list[tuple[int, int | None]] = json.loads(path.read_text()) if path.exists() else []
        return [pid for pid, started_at in noted if started_at is not None and _started_at(pid) == started_at]

    def published(self) -> dict[str, str]:
        """What a running `sluice up` has published; empty if none runs."""
        path = self.path / _ENVIRONMENT_FILE
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        return found


def command_settings(folder: Path) -> Settings:
    """Settings for a command that works on the database directly.

    Raises:
        Broken: nothing says where the database is; or a setting is wrong.
    """
    published = DataFolder(folder).published()
    if "DATABASE_URL" not in os.environ and "DATABASE_URL" not in published:
        raise Broken("DATABASE_URL is missing: set it, or run 'sluice up' in this folder first")
    overrides = {name.lower(): value for name, value in published.items() if name not in os.environ}
    return load_settings(**overrides)


def api_access(folder: Path, *, url: str | None, api_key: str | None) -> tuple[str, str]:
    """Base URL and API key for a command that is a client: options, then the environment, then `sluice up`.

    Raises:
        Broken: there is no API key to be found.
    """
    data = DataFolder(folder)
    base = url or os.environ.get("SLUICE_URL") or data.published().get("SLUICE_URL") or DEFAULT_URL
    key = api_key or os.environ.get("SLUICE_API_KEY") or data.api_key()
    if not key:
        raise Broken("no API key: pass --api-key, set SLUICE_API_KEY, or run 'sluice up' in this folder first")
    return base.rstrip("/"), key
