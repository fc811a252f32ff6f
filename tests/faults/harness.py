"""A service to break: real API processes, workers, Redis and Postgres, its load, and what must be true of it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import redis

from app.cli.service import RunningService, ServicePlan, running_service
from app.doctor import examine
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.errors import Transient
from app.resources import open_resources
from app.settings import load_settings
from tests.acceptance.conftest import UNSET
from tests.support.ports import free_port

QUICK = {"LEASE_SECONDS": "2", "SWEEP_INTERVAL_SECONDS": "0.3", "JOB_RETRY_DELAY": "0.2", "JOB_MAX_RETRIES": "8"}
FILES_AN_UPLOAD = 16
SETTLE_SECONDS = 60
FOLLOW_SECONDS = 30
"""How long a job's status may disagree with its row's (issue 4: within 30 s)."""
WORDS = Path(__file__).resolve().parents[2].joinpath("LICENSE").read_text().split()
SIZES = (20, 500, 3000)
LARGE = (20_000,)
"""Words; such a file is on its way for long enough to be met there."""
NUL = "nul.txt"


class Harness:
    """The service and its load."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder = folder
        self.dice = dice
        self.postgres = EmbeddedPostgres(folder / "pg")
        self.redis = EmbeddedRedis(folder / "redis")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.last_files: list[str] = []
        self.open_batches: dict[str, int] = {}  # batch → how many files it was promised for
        self.cancelled: set[str] = set()  # ingestions of which we were told so
        self.deleted: set[str] = set()  # likewise, of their files
        self.done: Counter[str] = Counter()

    def start(self, stack: ExitStack) -> None:
        """Start everything: two API processes, one worker of the service's own, two of ours to kill."""
        for server in (self.postgres, self.redis):
            stack.enter_context(server)
        environment = {name: value for name, value in os.environ.items() if name not in UNSET} | QUICK
        environment |= {"DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url}
        plan = ServicePlan(self.folder / "data", port=free_port(), api_processes=2, environment=environment)
        self.service: RunningService = stack.enter_context(running_service(plan, print))
        headers = {"Authorization": f"Bearer {self.service.api_key}"}
        self.http = stack.enter_context(httpx.Client(base_url=self.service.url, headers=headers, timeout=60))
        self.stores = [self.http.post("/v1/vector_stores", json={}).json()["id"] for _ in range(4)]
        self.queue = redis.Redis.from_url(self.redis.url)
        stack.callback(self.queue.close)
        stack.callback(self.stop_workers)
        self.workers = [self.start_worker(), self.start_worker()]

    def start_worker(self) -> "subprocess.Popen[bytes]":
        with (self.folder / "workers.log").open("ab") as log:
            command = [sys.executable, "-m", "app.cli", "worker"]
            return subprocess.Popen(command, env=self.service.environment, stdout=log, stderr=log)

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)

    def replace_worker(self, stop: signal.Signals) -> None:
        worker = self.dice.choice(self.workers)
        worker.send_signal(signal.SIGCONT)
        worker.send_signal(stop)
        threading.Thread(target=worker.wait).start()
        self.workers[self.workers.index(worker)] = self.start_worker()

    def upload(self, sizes: Sequence[int] = SIZES) -> None:
        """One batch upload of texts of these sizes into one to four stores; a refusal is no promise."""
        files = [
            ("files", (f"{number}.txt", " ".join(self.dice.choices(WORDS, k=self.dice.choice(sizes)))))
            for number in range(FILES_AN_UPLOAD - 1)
        ]
        files.append(("files", (NUL, "words and more words. " * 4000 + "\x00 far behind.")))
        stores = self.dice.sample(self.stores, self.dice.randint(1, 4))
        answer = self.ask("POST", "/v1/ingestions", data={"vector_store_ids": stores}, files=files)
        if answer.get("id"):
            self.open_batches[answer["id"]] = FILES_AN_UPLOAD
            self.last_files = [each["id"] for each in answer.get("files", [])]
        self.done["uploads accepted" if answer.get("id") else "uploads refused"] += 1

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.http.request(method, path, **options).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def some_ingestions(self) -> list[dict[str, Any]]:
        if not self.open_batches:
            return []
        batch = list(self.open_batches)[-1]
        found: list[dict[str, Any]] = self.ask(
            "GET", "/v1/ingestions", params={"batch_id": batch, "limit": FILES_AN_UPLOAD}
        ).get("data", [])
        return self.dice.sample(found, min(5, len(found)))

    def settle(self) -> list[str]:
        """Wait until nothing is in progress; what is not as it was promised."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            pages = {
                batch: self.ask("GET", "/v1/ingestions", params={"batch_id": batch, "limit": 100})
                for batch in self.open_batches
            }
            if all(page.get("file_counts", {"in_progress": 1})["in_progress"] == 0 for page in pages.values()):
                wrong = [each for batch, page in pages.items() for each in self._wrong_in(batch, page)]
                self.open_batches.clear()
                return wrong
            time.sleep(0.05)
        stuck = list(self.open_batches)
        self.open_batches.clear()
        return [f"batch {batch} has not settled after {SETTLE_SECONDS} s" for batch in stuck]

    def _wrong_in(self, batch: str, page: dict[str, Any]) -> list[str]:
        wrong = []
        known = {each["id"]: each["status"] for each in page["data"]}
        for ingestion, status in known.items():
            self.done[f"files {status}"] += 1
            if status != ("cancelled" if ingestion in self.cancelled else "completed"):
                wrong.append(f"ingestion {ingestion} of batch {batch} ended as {status}")
        wrong += [
            f"ingestion {each} of batch {batch} is there, its file was deleted"
            for each in self.deleted & set(known)
        ]
        gone = self.open_batches[batch] - len(known)
        if gone > len(self.deleted):
            wrong.append(f"batch {batch}: {gone} files are gone, {len(self.deleted)} were deleted")
        return wrong

    def examine(self) -> list[str]:
        """The doctor's findings; a job may follow its row within `FOLLOW_SECONDS`."""
        deadline = time.monotonic() + FOLLOW_SECONDS
        while True:
            found = asyncio.run(self._examine())
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    async def _examine(self) -> list[str]:
        settings = load_settings(**{name.lower(): value for name, value in self.service.environment.items()})
        with suppress(Transient):
            async with open_resources(settings, role="doctor") as resources:
                return [f"{each.promise}: {each.where}" for each in await examine(resources)]
        return ["Postgres does not answer"]
