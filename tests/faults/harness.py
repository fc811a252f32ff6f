"""A service to break: real API processes, workers, Redis and Postgres behind proxies, a provider, and its load."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
from tests.faults.endings import END_SECONDS, Endings
from tests.faults.family import children
from tests.faults.inside import fail_points
from tests.faults.promises import API_LOST, REFUSED, Promises, Reader, broken_promises
from tests.faults.provider import Provider
from tests.faults.rows import repeated, until_busy
from tests.faults.texts import Texts
from tests.faults.uploads import LARGE, SIZES, draw_upload
from tests.support.ports import free_port
from tests.support.proxy import Proxy

QUICK = {
    "LEASE_SECONDS": "2",
    "SWEEP_INTERVAL_SECONDS": "0.3",
    "JOB_RETRY_DELAY": "0.2",
    "JOB_MAX_RETRIES": "8",
    "WORKER_CONCURRENCY": "4",
    "EMBEDDING_TIMEOUT_SECONDS": "2",
    "EXTRACTION_TIMEOUT_SECONDS": "4",
    "RAG_EMBEDDING_ENGINE": "openai",
    "RAG_OPENAI_API_KEY": "sk-server",
}
LEASE_SECONDS = float(QUICK["LEASE_SECONDS"])
EXTRACTION_SECONDS = float(QUICK["EXTRACTION_TIMEOUT_SECONDS"])
API_PROCESSES = 2
WORKERS = 3
SETTLE_SECONDS = 60
FOLLOW_SECONDS = 30
"""How long a job's status may disagree with its row's (issue 4: within 30 s)."""
UPLOAD_SECONDS = 5
"""Longest answer to an upload, whatever Redis or the provider do; their own limits are 250 ms and none."""
WAKE_SECONDS = 0.5
"""For what a sleeper does when it wakes up."""
DISK_MEGABYTES = 256
MAY_FOLLOW = ("a row and its RQ job agree", "Redis answers")
_DELETED_AT_ONCE = 4
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
        self.forged = folder / "forged"
        self.texts = Texts()
        self.wrong: list[str] = []
        self.refused: list[str] = []  # uploads, or they took too long: wrong unless the fault may lead to that
        self.checks: list[Callable[[], list[str]]] = []  # of this fault, once its files have settled
        self.took_place = True  # the fault, unless it says that it did not
        self.sleepers: list[threading.Timer] = []
        self.met: set[subprocess.Popen[bytes]] = set()  # at work
        self.endings = Endings()
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
        plan = ServicePlan(data, port=free_port(), api_processes=API_PROCESSES, workers=0, environment=environment)
        self.service: RunningService = stack.enter_context(running_service(plan, print))
        own = self.service.environment | {"DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url}
        self.settings = load_settings(**{name.lower(): value for name, value in own.items()})
        headers = {"Authorization": f"Bearer {self.service.api_key}"}
        # a new connection each time: a kept one may lead to a process that has been killed since
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = stack.enter_context(
            httpx.Client(base_url=self.service.url, headers=headers, timeout=60, limits=limits)
        )
        self.stores = [self.new_store(choice) for choice in EMBEDDINGS]
        self.queue = redis.Redis.from_url(self.redis.url)
        stack.callback(self.queue.close)
        stack.callback(self.stop_workers)
        self.workers = [self.start_worker() for _ in range(WORKERS)]
        self.api_pids = {each.pid for each in self.api_processes()}
        self.reader = Reader(self.postgres.url)
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

    def busy_worker(self) -> "subprocess.Popen[bytes]":
        """One that has files in hand, as Postgres has it; any, if none gets some in time."""
        self.upload(LARGE)
        by_name = {name_of(worker): worker for worker in self.workers}
        name = asyncio.run(until_busy(self.postgres.url, list(by_name)))
        self.done["workers met at work" if name else "workers met idle"] += 1
        if name is None:
            self.took_place = False
            return self.dice.choice(self.workers)
        self.met.add(by_name[name])
        return by_name[name]

    def replace_worker(
        self, stop: signal.Signals, *, environment: dict[str, str] | None = None, root: Path | None = None
    ) -> "subprocess.Popen[bytes]":
        """End a busy worker, which is returned, and start another."""
        worker = self.busy_worker()
        self.end_worker(worker, stop)
        if worker in self.workers:  # else it has met a fail point at the same time, and has a successor
            self.workers[self.workers.index(worker)] = self.start_worker(environment=environment, root=root)
        return worker

    def end_worker(self, worker: "subprocess.Popen[bytes]", stop: signal.Signals) -> None:
        """Signal a worker, which has to obey in time."""
        if stop is signal.SIGTERM:
            self.endings.expect(worker)  # first: it may be killed at a point on its way
        else:
            threading.Thread(target=worker.wait, daemon=True).start()
        worker.send_signal(stop)

    def put_to_sleep(self, pid: int, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self.wake(pid, seconds)

    def wake(self, pid: int, seconds: float) -> None:
        """SIGCONT so much later; what has to be so then is looked at after that."""

        def wake() -> None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        self.sleepers.append(threading.Timer(seconds, wake))
        self.sleepers[-1].start()

    def is_worker(self, pid: int) -> bool:
        """Whether that is a worker's, of those that work or have been told to end."""
        return pid in {worker.pid for worker in [*self.workers, *self.endings.workers()]}

    def succeed_worker(self, pid: int) -> None:
        """Start another worker for one that was killed; nothing if that was no worker of ours."""
        for number, worker in enumerate(self.workers):
            if worker.pid == pid:
                worker.wait(END_SECONDS)
                self.workers[number] = self.start_worker()
        self.endings.forget(pid)

    def api_processes(self) -> list[psutil.Process]:
        """The processes that answer, children of `sluice serve`."""
        return children(self.service.processes[0].pid, "spawn_main")

    def upload(self, sizes: Sequence[int] = SIZES, *, documents: int = 2, stores: list[str] | None = None) -> None:
        """One batch upload of texts of these sizes into one to four stores; a refusal is no promise."""
        self.send(self.draw_upload(sizes, documents=documents, stores=stores))

    def draw_upload(
        self, sizes: Sequence[int] = SIZES, *, documents: int = 2, stores: list[str] | None = None
    ) -> dict[str, Any]:
        """What `send` sends."""
        stores = stores or self.dice.sample(self.stores, self.dice.randint(1, 4))
        chosen = self.dice.choices(self.samples, k=documents)
        return draw_upload(self.dice, sizes, documents=chosen, stores=stores)

    def send(self, upload: dict[str, Any], **headers: str) -> str | None:
        """Send an upload; its batch, if it was accepted."""
        started = time.monotonic()
        refusal = ""
        try:
            answer = self.http.post("/v1/ingestions", headers=headers, **upload)
        except httpx.TransportError as exc:
            refusal = repr(exc)
        else:
            refusal = "" if answer.status_code == httpx.codes.ACCEPTED else f"{answer.status_code} {answer.text}"
        seconds = time.monotonic() - started
        self.done["uploads refused" if refusal else "uploads accepted"] += 1
        self.refused += [f"an upload was refused: {refusal}"] if refusal else []
        self.refused += [f"an upload was answered after {seconds:.1f} s"] if seconds > UPLOAD_SECONDS else []
        if refusal:
            return None
        made = answer.json()
        self.texts.note(upload, made["data"])
        self.promises.expect(made["id"], made["data"], stores=upload["data"]["vector_store_ids"])
        self.files += [each["file_id"] for each in made["data"]]
        batch: str = made["id"]
        return batch

    def expect_batch(self, batch: str, store: str) -> None:
        """A batch was accepted that the SDK's way of attaching has made."""
        self.promises.expect(batch, self._page(batch).get("data", []), stores=[store])

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer or the refusal; nothing where the server failed: it may have done it or not."""
        try:
            response = self.http.request(method, path, **options)
            answer: dict[str, Any] = {} if response.is_server_error else response.json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def newest_ingestions(self) -> list[dict[str, Any]]:
        """Those of the newest batch."""
        batches = list(self.promises.open_batches)
        found: list[dict[str, Any]] = self._page(batches[-1]).get("data", []) if batches else []
        return found

    def some_ingestions(self) -> list[dict[str, Any]]:
        """A few of the newest batch."""
        found = self.newest_ingestions()
        return self.dice.sample(found, min(5, len(found)))

    def delete_old_files(self) -> None:
        """As users do who tidy up."""
        with ThreadPoolExecutor(_DELETED_AT_ONCE) as threads:
            while len(self.files) > KEPT_FILES:
                threads.submit(self.ask, "DELETE", f"/v1/files/{self.files.popleft()}")

    def _page(self, batch: str, *, limit: int = 100) -> dict[str, Any]:
        return self.ask("GET", "/v1/ingestions", params={"batch_id": batch, "limit": limit})

    def forget_gone_batches(self, store: str) -> None:
        """Those that went with this store, as they were for no other."""
        for batch in [each for each, stores in list(self.promises.stores.items()) if stores == {store}]:
            answer = self.http.get("/v1/ingestions", params={"batch_id": batch})
            if answer.status_code == httpx.codes.NOT_FOUND:
                del self.promises.open_batches[batch], self.promises.stores[batch]

    def settle(self) -> float:
        """Wait until nothing is in progress, and again when all sleepers are awake; seconds until the first time.

        What is not as it was promised goes to `wrong`.
        """
        started = time.monotonic()
        pages = self.settled_pages()
        seconds = time.monotonic() - started
        if self.sleepers:
            for sleeper in self.sleepers:
                sleeper.join()
            self.sleepers.clear()
            time.sleep(WAKE_SECONDS)
            pages = self.settled_pages()
        promised = [each for batch in pages for each in self.promises.open_batches[batch]]
        self.wrong += self.promises.settle(pages, asyncio.run(repeated(self.postgres.url, promised)))
        checks, self.checks = self.checks, []
        self.wrong += [each for check in checks for each in check()]
        return seconds

    def settled_pages(self) -> dict[str, dict[str, Any]]:
        """Wait until nothing of the open batches is in progress; the batches that got there."""
        deadline = time.monotonic() + SETTLE_SECONDS
        pages: dict[str, dict[str, Any]] = {}
        while True:
            for batch in set(self.promises.open_batches) - set(pages):
                # the counts first, of which one row is enough: the whole page is dear for who is asked all the time
                if _has_settled(self._page(batch, limit=1)) and _has_settled(page := self._page(batch)):
                    pages[batch] = page
            waits = set(self.promises.open_batches) - set(pages)
            if not waits:
                return pages
            if time.monotonic() > deadline:
                self.wrong += [f"batch {batch} has not settled after {SETTLE_SECONDS} s" for batch in waits]
                return pages
            time.sleep(0.05)

    def examine(self) -> list[str]:
        """All that is wrong since the last time."""
        self.provider.balance()
        found = self._findings() + self.texts.wrong(self.postgres.url)
        wrong = self.wrong + (self.refused if REFUSED not in self.promises.may else [])
        self.wrong, self.refused = [], []
        return [*wrong, *found, *self.reader.report(), *self._dead(), *self.endings.wrong(self.met)]

    def _findings(self) -> list[str]:
        """Whatever any look finds; but of what may follow, what has not in time."""
        deadline = time.monotonic() + FOLLOW_SECONDS
        lasting: dict[str, None] = {}
        while True:
            found = asyncio.run(broken_promises(self.settings))
            lasting |= dict.fromkeys(each for each in found if not each.startswith(MAY_FOLLOW))
            late = [each for each in found if each.startswith(MAY_FOLLOW)]
            if not late or time.monotonic() > deadline:
                return [*lasting, *late]
            time.sleep(0.2)

    def _dead(self) -> list[str]:
        """Processes of ours that nobody ended."""
        dead = [worker for worker in self.workers if worker.poll() is not None]
        for worker in dead:
            self.workers[self.workers.index(worker)] = self.start_worker()
        wrong = [f"a worker ended by itself with status {worker.returncode}" for worker in dead]
        before, self.api_pids = self.api_pids, {each.pid for each in self.api_processes()}
        if before - self.api_pids and API_LOST not in self.promises.may:
            wrong.append(f"API processes ended by themselves: {before - self.api_pids}")
        return wrong


def _has_settled(page: dict[str, Any]) -> bool:
    counts: dict[str, int] = page.get("file_counts", {"in_progress": 1})
    return counts["in_progress"] == 0


def name_of(worker: "subprocess.Popen[bytes]") -> str:
    """What its leases say."""
    return f"file_processor_{socket.gethostname()}_{worker.pid}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
