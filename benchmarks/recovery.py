"""How soon the files of a worker that was killed run again, and how long uploads wait for a Redis that is dead.

    python -m benchmarks.recovery [--runs 5]

The real service with its default lease (30 s) and sweep (5 s). A worker is ended while it waits for the answer of a
provider that stays silent; another one is there. The clock starts at the first signal. Medians and the worst of the
runs.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from app.cli.service import RunningService, ServicePlan, running_service
from app.embedded import EmbeddedRedis
from tests.faults.provider import Provider
from tests.support.environment import clean_environment
from tests.support.fake_openai import Held
from tests.support.ports import free_port

UPLOADS = 200
GRACE_SECONDS = 25.0  # of app/worker.py: what is in hand at SIGTERM may finish for so long
APART_SECONDS = 1.1  # within a second, two signals count as one
ENDS = {
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM twice, 1.1 s apart (gives back at the second)": [signal.SIGTERM, signal.SIGTERM],
    "SIGTERM once (gives back at the end of its grace, 25 s)": [signal.SIGTERM],
}


class Bench:
    """The service, and what is done to it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.provider = stack.enter_context(Provider())
        self.redis = stack.enter_context(EmbeddedRedis(folder))
        environment = clean_environment() | {
            "REDIS_URL": self.redis.url,
            "RAG_EMBEDDING_ENGINE": "openai",
            "RAG_OPENAI_API_KEY": "sk-server",
            "RAG_OPENAI_API_BASE_URL": self.provider.api.base_url,
        }
        plan = ServicePlan(folder, port=free_port(), workers=0, environment=environment)
        self.service: RunningService = stack.enter_context(running_service(plan, print))
        headers = {"Authorization": f"Bearer {self.service.api_key}"}
        self.http = stack.enter_context(httpx.Client(base_url=self.service.url, headers=headers, timeout=60))
        embedding = {"model": "text-embedding-3-small", "dimensions": 8}
        store = self.http.post("/v1/vector_stores", json={"embedding": embedding})
        self.store: str = store.raise_for_status().json()["id"]

    def worker(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "app.cli", "worker"]
        return subprocess.Popen(command, env=self.service.environment, stderr=subprocess.DEVNULL)

    def upload(self, text: str) -> str:
        answer = self.http.post(
            "/v1/ingestions", data={"vector_store_ids": [self.store]}, files=[("files", ("a.txt", text))]
        )
        ingestion: str = answer.raise_for_status().json()["data"][0]["id"]
        return ingestion

    def until(self, ingestion: str, state: str) -> None:
        while self.http.get(f"/v1/ingestions/{ingestion}").json()["state"] != state:
            time.sleep(0.02)

    def seconds_to_recover(self, text: str, signals: list[signal.Signals]) -> float:
        """From the first signal until the file that was in hand is searchable."""
        victim = self.worker()
        self.provider.api.script(Held())
        ingestion = self.upload(text)
        self.until(ingestion, "running")
        while not self.provider.api.requests:
            time.sleep(0.01)
        other = self.worker()
        time.sleep(3)  # until it is there
        started = time.monotonic()
        victim.send_signal(signals[0])
        for each in signals[1:]:
            time.sleep(APART_SECONDS)
            victim.send_signal(each)
        self.until(ingestion, "completed")
        seconds = time.monotonic() - started
        victim.wait()
        other.terminate()
        other.wait()
        self.provider.balance()
        return seconds

    def upload_milliseconds(self) -> list[float]:
        milliseconds = []
        for number in range(UPLOADS):
            started = time.perf_counter()
            self.upload(f"Upload {number} at {started}")
            milliseconds.append((time.perf_counter() - started) * 1000)
        return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    table = Table("", "median", "worst")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(stack, Path(folder))
        for name, signals in ENDS.items():
            seconds = [bench.seconds_to_recover(f"Text {number}: {name}", signals) for number in range(runs)]
            table.add_row(f"{name}, s", f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
        after = [each - GRACE_SECONDS for each in seconds]
        table.add_row(
            "the last, from the end of its grace, s", f"{statistics.median(after):.1f}", f"{max(after):.1f}"
        )
        p99 = {"Redis alive": statistics.quantiles(bench.upload_milliseconds(), n=100)[98]}
        os.kill(bench.redis.pid, signal.SIGSTOP)
        p99["Redis frozen"] = statistics.quantiles(bench.upload_milliseconds(), n=100)[98]
        os.kill(bench.redis.pid, signal.SIGCONT)
        bench.redis.stop(kill_signal=signal.SIGKILL)
        p99["Redis dead"] = statistics.quantiles(bench.upload_milliseconds(), n=100)[98]
        bench.redis.start()
        for name, figure in p99.items():
            table.add_row(f"upload answered 202, p99 of {UPLOADS}, {name}, ms", f"{figure:.0f}", "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
