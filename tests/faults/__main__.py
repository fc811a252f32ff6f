"""Break the running service at random while files are uploaded; afterwards nothing may be lost, doubled or stuck.

    python -m tests.faults [--seconds 60] [--seed 1]

Real API processes, workers, Redis and Postgres; SIGKILL, SIGTERM and SIGSTOP of workers, FLUSHALL, kills and
restarts of Redis, immediate restarts of Postgres, cancels and deletes in the middle. Exits with 1 if a file does
not settle, if one fails, or if `sluice doctor` finds a broken promise. A long run, so it has a command of its own
and is no part of `make test`.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from app.cli.service import RunningService, ServicePlan, running_service
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from tests.acceptance.conftest import UNSET
from tests.support.ports import free_port

QUICK = {"LEASE_SECONDS": "3", "SWEEP_INTERVAL_SECONDS": "0.5", "JOB_RETRY_DELAY": "0.3", "JOB_MAX_RETRIES": "8"}
FILES_AN_UPLOAD = 40
SETTLE_SECONDS = 120
WORDS = Path(__file__).resolve().parents[2].joinpath("LICENSE").read_text().split()


class Harness:
    """A service to break."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.dice = random.Random(seed)
        self.postgres = EmbeddedPostgres(folder / "pg")
        self.redis = EmbeddedRedis(folder / "redis")
        self.workers: list[subprocess.Popen[bytes]] = []
        self.batches: list[str] = []
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
        self.stores = [self.http.post("/v1/vector_stores", json={}).json()["id"] for _ in range(3)]
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

    def upload(self) -> None:
        """One batch upload of texts of many sizes into one to three stores; a refusal is no promise."""
        sizes = [self.dice.choice([20, 500, 3000]) for _ in range(FILES_AN_UPLOAD)]
        files = [
            ("files", (f"{n}.txt", " ".join(self.dice.choices(WORDS, k=size)))) for n, size in enumerate(sizes)
        ]
        stores = self.stores[: self.dice.randint(1, 3)]
        answer = self.ask("POST", "/v1/ingestions", data={"vector_store_ids": stores}, files=files)
        if answer.get("id"):
            self.batches.append(answer["id"])
        self.done["uploads accepted" if answer.get("id") else "uploads refused"] += 1

    def ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self.http.request(method, path, **options).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def some_of_the_last_batch(self) -> list[dict[str, Any]]:
        page = self.ask("GET", "/v1/ingestions", params={"batch_id": self.batches[-1], "limit": 5})
        found: list[dict[str, Any]] = page.get("data", [])
        return found

    def kill_worker(self) -> None:
        worker = self.dice.choice(self.workers)
        worker.kill()
        worker.wait()
        self.workers[self.workers.index(worker)] = self.start_worker()

    def end_worker(self) -> None:
        worker = self.dice.choice(self.workers)
        worker.terminate()
        threading.Thread(target=worker.wait).start()
        self.workers[self.workers.index(worker)] = self.start_worker()

    def freeze_worker(self) -> None:
        worker = self.dice.choice(self.workers)
        worker.send_signal(signal.SIGSTOP)
        threading.Timer(self.dice.choice([1, 5]), lambda: worker.send_signal(signal.SIGCONT)).start()

    def flush_redis(self) -> None:
        self.redis.flush()

    def restart_redis(self) -> None:
        self.redis.stop(kill_signal=self.dice.choice([signal.SIGKILL, signal.SIGTERM]))
        self.upload()
        time.sleep(self.dice.choice([0.2, 2]))
        self.redis.start()

    def restart_postgres(self) -> None:
        self.postgres.stop(immediately=self.dice.random() < 0.5)
        time.sleep(self.dice.choice([0, 1.5]))
        self.postgres.start()

    def cancel_some(self) -> None:
        for each in self.some_of_the_last_batch():
            self.ask("POST", f"/v1/ingestions/{each['id']}/cancel")

    def delete_some(self) -> None:
        for each in self.some_of_the_last_batch():
            self.ask("DELETE", f"/v1/files/{each['file_id']}")

    def break_things(self, seconds: float) -> None:
        """Upload and break, in turns."""
        faults: list[Callable[[], None]] = [
            self.kill_worker, self.kill_worker, self.end_worker, self.freeze_worker, self.flush_redis,
            self.restart_redis, self.restart_postgres, self.cancel_some, self.delete_some,
        ]  # fmt: skip
        end = time.monotonic() + seconds
        self.upload()
        while time.monotonic() < end:
            fault = self.dice.choice(faults)
            fault()
            self.done[fault.__name__] += 1
            self.upload()
            time.sleep(self.dice.random())

    def settle(self) -> Counter[str]:
        """Wait until nothing is in progress: the sum of all batches' counts."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            counts: Counter[str] = Counter()
            for batch in self.batches:
                page = self.ask("GET", "/v1/ingestions", params={"batch_id": batch, "limit": 1})
                counts.update(page.get("file_counts", {"in_progress": 1}))
            if not counts["in_progress"] or time.monotonic() > deadline:
                return counts
            time.sleep(0.2)

    def examine(self) -> str:
        """What `sluice doctor` says, once RQ's records have had a lease and a sweep to follow."""
        time.sleep(2 * float(QUICK["LEASE_SECONDS"]))
        command = [sys.executable, "-m", "app.cli", "doctor", "--data", str(self.folder / "data")]
        return subprocess.run(
            command, env=self.service.environment, capture_output=True, text=True, check=False
        ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sluice-faults-"))
    with ExitStack() as stack:
        harness = Harness(folder, options.seed)
        harness.start(stack)
        harness.break_things(options.seconds)
        started = time.monotonic()
        counts = harness.settle()
        seconds = time.monotonic() - started
        verdict = harness.examine()
    print(f"seed {options.seed}:", ", ".join(f"{name} {count}" for name, count in sorted(harness.done.items())))
    print(f"files: {dict(counts)}; settled {seconds:.1f} s after the last fault\ndoctor: {verdict}")
    if counts["in_progress"] or counts["failed"] or verdict != "no broken invariant":
        sys.exit(f"broken; the logs are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
