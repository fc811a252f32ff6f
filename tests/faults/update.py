"""A rolling update under load: the version before the newest migration, `alembic upgrade head`, both, this one.

    python -m tests.faults.update

Uploads go on all the time; none may be refused, each file must be searchable in the end, and the doctor content.
"""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
from rich.console import Console

from app.access.people import create_user
from app.access.tokens import create_token
from app.db import open_pool, transaction
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.settings import load_settings
from tests.faults.harness import QUICK
from tests.faults.kinds.processes import ROOT, version_before_newest_migration
from tests.faults.promises import broken_promises
from tests.faults.uploads import WORDS
from tests.support.environment import clean_environment
from tests.support.ports import free_port

PHASE_SECONDS = 4.0
START_SECONDS = 60.0
FILES = 8


class Load:
    """Uploads one batch after another to whichever API is current."""

    def __init__(self, api_key: str) -> None:
        self.url = ""
        self.batches: list[str] = []
        self.refused: list[str] = []
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, url: str) -> None:
        self.url = url
        self.store = self.ask("POST", "/v1/vector_stores", json={})["id"]
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def ask(self, method: str, path: str, **options: object) -> dict:
        answer = httpx.request(method, self.url + path, headers=self._headers, timeout=60, **options)
        return answer.raise_for_status().json()

    def _run(self) -> None:
        while not self._ended.is_set():
            files = [("files", (f"{n}.txt", " ".join(random.choices(WORDS, k=400)))) for n in range(FILES)]
            try:
                data = {"vector_store_ids": [self.store]}
                self.batches.append(self.ask("POST", "/v1/ingestions", data=data, files=files)["id"])
            except httpx.HTTPError as exc:
                self.refused.append(repr(exc))

    def counts(self) -> tuple[int, int]:
        """(in progress, completed) of all batches."""
        pages = [
            self.ask("GET", "/v1/ingestions", params={"batch_id": batch, "limit": 1}) for batch in self.batches
        ]
        counts = [page["file_counts"] for page in pages]
        return sum(each["in_progress"] for each in counts), sum(each["completed"] for each in counts)


class Version:
    """API and two workers of the sources in one folder."""

    def __init__(self, root: Path, environment: dict[str, str], log: Path) -> None:
        self._root, self._environment, self._log = root, environment, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str) -> None:
        subprocess.run([sys.executable, "-m", *command], cwd=self._root, env=self._environment, check=True)

    def start(self) -> None:
        with self._log.open("ab") as log:
            for command in (["serve", "--port", str(self.port)], ["worker"], ["worker"]):
                full = [sys.executable, "-m", "app.cli", *command]
                self._processes.append(
                    subprocess.Popen(full, cwd=self._root, env=self._environment, stdout=log, stderr=log)
                )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            ended = [process.args for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise RuntimeError(f"not ready; ended: {ended}; the log is {self._log}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """Whatever of it still runs."""
        for process in self._processes:
            process.kill()
            process.wait()

    def stop(self) -> bool:
        """SIGTERM; whether all ended in order (uvicorn passes the signal on to itself in the end)."""
        for process in self._processes:
            process.terminate()
        api, *workers = [process.wait(60) for process in self._processes]
        return api in {0, -signal.SIGTERM} and not any(workers)


async def make_key(url: str) -> str:
    pool = await open_pool(url, max_size=2, application_name="test")
    async with transaction(pool) as conn:
        user = await create_user(conn, "ada")
        token = await create_token(conn, user_id=user.id, name="update")
    await pool.close()
    return token.text


def update(folder: Path, stack: ExitStack) -> list[str]:
    """What went wrong."""
    postgres = stack.enter_context(EmbeddedPostgres(folder / "pg"))
    queue = stack.enter_context(EmbeddedRedis(folder / "redis"))
    environment = clean_environment() | QUICK
    environment |= {
        "DATABASE_URL": postgres.url,
        "REDIS_URL": queue.url,
        "STORAGE_URL": f"file://{folder / 'blobs'}",
        "RAG_EMBEDDING_ENGINE": "local",
    }
    settings = load_settings(**{name.lower(): value for name, value in environment.items()})
    old = Version(version_before_newest_migration(folder), environment, folder / "old.log")
    new = Version(ROOT, environment, folder / "new.log")
    stack.callback(old.kill)
    stack.callback(new.kill)
    old.run("alembic", "upgrade", "head")
    load = Load(asyncio.run(make_key(postgres.url)))
    old.start()
    load.start(old.url)
    time.sleep(PHASE_SECONDS)
    new.run("alembic", "upgrade", "head")
    time.sleep(PHASE_SECONDS)
    new.start()
    time.sleep(PHASE_SECONDS)  # both versions' workers, on one queue
    load.url = new.url
    time.sleep(PHASE_SECONDS)
    ended_in_order = old.stop()
    time.sleep(PHASE_SECONDS)
    load.stop()
    deadline = time.monotonic() + 60
    while load.counts()[0] and time.monotonic() < deadline:
        time.sleep(0.1)
    in_progress, completed = load.counts()
    wrong = [f"refused: {each}" for each in load.refused]
    wrong += [] if ended_in_order else ["the old version's processes did not end in order"]
    if in_progress or completed != FILES * len(load.batches):
        wrong.append(f"of {FILES * len(load.batches)} files {completed} are searchable, {in_progress} in progress")
    wrong += asyncio.run(broken_promises(settings))
    wrong += [] if new.stop() else ["the new version's processes did not end in order"]
    print(f"{len(load.batches)} uploads of {FILES} files during the update; {len(wrong)} went wrong")
    return wrong


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="sluice-update-"))
    with ExitStack() as stack:
        wrong = update(folder, stack)
    if wrong:
        Console().print(*wrong, sep="\n", markup=False)
        sys.exit(f"the logs are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
