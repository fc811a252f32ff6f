"""A service to break: real API processes, workers, Redis and Postgres behind proxies, a provider, and its load."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import redis

from app.cli.service import RunningService, ServicePlan, running_service
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.samples import write_samples
from app.settings import LOCAL_MODEL, load_settings
from tests.acceptance.conftest import UNSET
from tests.faults.inside import fail_points
from tests.faults.promises import Promises, Reader, broken_promises
from tests.faults.provider import Provider
from tests.support.ports import free_port
from tests.support.proxy import Proxy

QUICK = {
    "LEASE_SECONDS": "2",
    "SWEEP_INTERVAL_SECONDS": "0.3",
    "JOB_RETRY_DELAY": "0.2",
    "JOB_MAX_RETRIES": "8",
    "EMBEDDING_TIMEOUT_SECONDS": "2",
    "EXTRACTION_TIMEOUT_SECONDS": "4",
    "RAG_EMBEDDING_ENGINE": "openai",
    "RAG_OPENAI_API_KEY": "sk-server",
}
LEASE_SECONDS = float(QUICK["LEASE_SECONDS"])
EXTRACTION_SECONDS = float(QUICK["EXTRACTION_TIMEOUT_SECONDS"])
WORKERS = 3
FILES_AN_UPLOAD = 16
SETTLE_SECONDS = 60
FOLLOW_SECONDS = 30
"""How long a job's status may disagree with its row's (issue 4: within 30 s)."""
WORDS = Path(__file__).resolve().parents[2].joinpath("LICENSE").read_text().split()
SIZES = (20, 500, 3000)
LARGE = (20_000,)
"""Words; such a file is on its way for long enough to be met there."""
NUL = "nul.txt"
DISK_MEGABYTES = 256
KEPT_FILES = 320
"""Older ones are deleted, so that a long run looks at as much after each fault as a short one."""
EMBEDDINGS = (
    {"model": LOCAL_MODEL},
    {"model": LOCAL_MODEL},
    {"model": "text-embedding-3-small", "dimensions": 8},
    {"model": "text-embedding-3-small", "dimensions": 16},
)


class Harness:
    """The service and its load."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder = folder
        self.dice = dice
        self.postgres = EmbeddedPostgres(folder / "pg")
        self.redis = EmbeddedRedis(folder / "redis")
        self.blobs = folder / "blobs"
        self.points = _made(folder / "points")
        self.provider = Provider()
        self.promises = Promises()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.files: deque[str] = deque()
        self.done: Counter[str] = Counter()
        self.samples = [(each.name, each.read_bytes()) for each in write_samples(_made(folder / "samples"))]

    def start(self, stack: ExitStack) -> None:
        """Start everything: two API processes and three workers, which load the fail points."""
        for server in (self.postgres, self.redis, self.provider):
            stack.enter_context(server)
        sockets = parse_qs(urlsplit(self.postgres.url).query)["host"][0]
        self.postgres_wire = stack.enter_context(Proxy(f"{sockets}/.s.PGSQL.5432"))
        self.redis_wire = stack.enter_context(Proxy(urlsplit(self.redis.url).path))
        environment = {name: value for name, value in os.environ.items() if name not in UNSET} | QUICK
        environment |= {
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{self.postgres_wire.port}/sluice",
            "REDIS_URL": f"redis://127.0.0.1:{self.redis_wire.port}",
            "STORAGE_URL": f"file://{self._small_disk(stack)}",
            "RAG_OPENAI_API_BASE_URL": self.provider.api.base_url,
            fail_points.FOLDER: str(self.points),
            "PYTHONPATH": str(Path(fail_points.__file__).parent),
        }
        data = self.folder / "data"
        plan = ServicePlan(data, port=free_port(), api_processes=2, workers=0, environment=environment)
        self.service: RunningService = stack.enter_context(running_service(plan, print))
        own = self.service.environment | {"DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url}
        self.settings = load_settings(**{name.lower(): value for name, value in own.items()})
        headers = {"Authorization": f"Bearer {self.service.api_key}"}
        self.http = stack.enter_context(httpx.Client(base_url=self.service.url, headers=headers, timeout=60))
        self.stores = [self.new_store(choice) for choice in EMBEDDINGS]
        self.queue = redis.Redis.from_url(self.redis.url)
        stack.callback(self.queue.close)
        stack.callback(self.stop_workers)
        self.workers = [self.start_worker() for _ in range(WORKERS)]
        self.reader = Reader(self.postgres.url, self.dice)
        threading.Thread(target=lambda: asyncio.run(self.reader.run()), daemon=True).start()

    def _small_disk(self, stack: ExitStack) -> Path:
        """A tmpfs for uploads where we may mount one; else a folder, which no fault fills."""
        _made(self.blobs)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", self.blobs],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode == 0:
            stack.callback(subprocess.run, ["umount", "--lazy", self.blobs], check=True)
        else:
            self.done[f"no small disk: {mounted.stderr.strip()}"] += 1
        return self.blobs

    def new_store(self, embedding: dict[str, object]) -> str:
        answer = self.http.post("/v1/vector_stores", json={"embedding": embedding})
        store: str = answer.raise_for_status().json()["id"]
        return store

    def start_worker(
        self, *, environment: dict[str, str] | None = None, root: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """A worker; in another environment, or of the sources in another folder."""
        with (self.folder / "workers.log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", "worker"]
            full = self.service.environment | (environment or {})
            return subprocess.Popen(command, env=full, cwd=root, stdout=log, stderr=log)

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)

    def replace_worker(
        self, stop: signal.Signals, *, environment: dict[str, str] | None = None, root: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """End one of the workers, which is returned, and start another."""
        worker = self.dice.choice(self.workers)
        worker.send_signal(signal.SIGCONT)
        worker.send_signal(stop)
        threading.Thread(target=worker.wait).start()
        self.workers[self.workers.index(worker)] = self.start_worker(environment=environment, root=root)
        return worker

    def succeed_worker(self, pid: int) -> None:
        """Start another worker for one that was killed; nothing if that was no worker of ours."""
        for number, worker in enumerate(self.workers):
            if worker.pid == pid:
                worker.wait(LEASE_SECONDS)
                self.workers[number] = self.start_worker()

    def api_processes(self) -> list[psutil.Process]:
        """The processes that answer, children of `sluice serve`."""
        return _children(self.service.processes[0].pid, "spawn_main")

    def zygotes(self) -> list[psutil.Process]:
        """The workers' processes that fork the parsers."""
        return [each for worker in self.workers for each in _children(worker.pid, "app.extraction.zygote")]

    def parsers(self) -> list[psutil.Process]:
        """The children that parse a document at this moment."""
        return [child for zygote in self.zygotes() for child in _children(zygote.pid, "")]

    def worker_of(self, parser: psutil.Process) -> "subprocess.Popen[bytes] | None":
        """Whose child's child it is, if that worker is one of those that we may break."""
        above = {each.pid for each in parser.parents()}
        return next((worker for worker in self.workers if worker.pid in above), None)

    def upload(self, sizes: Sequence[int] = SIZES, *, documents: int = 2, stores: list[str] | None = None) -> None:
        """One batch upload of texts of these sizes into one to four stores; a refusal is no promise."""
        files = [
            ("files", (f"{number}.txt", " ".join(self.dice.choices(WORDS, k=self.dice.choice(sizes)))))
            for number in range(FILES_AN_UPLOAD - 1 - documents)
        ]
        files += [("files", each) for each in self.dice.choices(self.samples, k=documents)]
        files.append(("files", (NUL, "words and more words. " * 4000 + "\x00 far behind.")))
        stores = stores or self.dice.sample(self.stores, self.dice.randint(1, 4))
        answer = self.ask("POST", "/v1/ingestions", data={"vector_store_ids": stores}, files=files)
        if answer.get("id"):
            self.promises.open_batches[answer["id"]] = len(answer["data"])
            self.files += [each["file_id"] for each in answer["data"]]
        self.done["uploads accepted" if answer.get("id") else "uploads refused"] += 1

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.http.request(method, path, **options).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def ingestions(self) -> list[dict[str, Any]]:
        """Those of all batches that have not been seen to settle."""
        return [each for batch in self.promises.open_batches for each in self._page(batch).get("data", [])]

    def some_ingestions(self) -> list[dict[str, Any]]:
        """A few of the newest batch."""
        batches = list(self.promises.open_batches)
        found = self._page(batches[-1]).get("data", []) if batches else []
        return self.dice.sample(found, min(5, len(found)))

    def _dead_workers(self) -> list[str]:
        """Those that nobody ended."""
        dead = [worker for worker in self.workers if worker.poll() is not None]
        for worker in dead:
            self.workers[self.workers.index(worker)] = self.start_worker()
        return [f"a worker ended by itself with status {worker.returncode}" for worker in dead]

    def delete_old_files(self) -> None:
        """As users do who tidy up."""
        while len(self.files) > KEPT_FILES:
            self.ask("DELETE", f"/v1/files/{self.files.popleft()}")

    def _page(self, batch: str) -> dict[str, Any]:
        return self.ask("GET", "/v1/ingestions", params={"batch_id": batch, "limit": 100})

    def forget_gone_batches(self) -> None:
        """Those that went with their only store."""
        for batch in list(self.promises.open_batches):
            if self._page(batch).get("error"):
                del self.promises.open_batches[batch]

    def settle(self) -> list[str]:
        """Wait until nothing is in progress; what is not as it was promised."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            pages = {batch: self._page(batch) for batch in self.promises.open_batches}
            if all(page.get("file_counts", {"in_progress": 1})["in_progress"] == 0 for page in pages.values()):
                return self.promises.settle(pages)
            time.sleep(0.05)
        stuck = list(self.promises.open_batches)
        self.promises.settle({})
        return [f"batch {batch} has not settled after {SETTLE_SECONDS} s" for batch in stuck]

    def examine(self) -> list[str]:
        """What is broken for good; a job may follow its row within `FOLLOW_SECONDS`."""
        self.provider.balance()
        deadline = time.monotonic() + FOLLOW_SECONDS
        while True:
            found = asyncio.run(broken_promises(self.settings))
            if not found or time.monotonic() > deadline:
                torn, self.reader.torn = self.reader.torn, []
                return found + torn + self._dead_workers()
            time.sleep(0.2)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _children(pid: int, word: str) -> list[psutil.Process]:
    """Those whose command line has this word in it."""
    try:
        return [child for child in psutil.Process(pid).children() if word in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []
