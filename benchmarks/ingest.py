"""The whole service under load: files/s, chunks/s, and how long an upload waits for its answer.

    python -m benchmarks.ingest [--files 200] [--bytes 8000] [--runs 5] [--embedder local fake] [--latency-ms 50]

Starts the real service (API, workers, embedded Postgres and Redis), uploads generated text files one by one and by
one batch upload, and waits until all are searchable. Medians of the runs, with their range.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from app.cli.service import RunningService, ServicePlan, running_service
from benchmarks.cpu import cpu_seconds
from tests.support.environment import clean_environment
from tests.support.ports import free_port

UPLOADS_AT_ONCE = 8
WORDS = Path(__file__).resolve().parent.parent.joinpath("LICENSE").read_text().split()
SHOWN = ("files_per_second", "chunks_per_second", "batch_answer_ms", "upload_p50_ms", "upload_p95_ms")
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Run:
    """One run's figures."""

    files_per_second: float
    chunks_per_second: float
    batch_answer_ms: float
    upload_p50_ms: float
    upload_p95_ms: float
    batch_seconds: float
    cpu_seconds: dict[str, float]  # by process, from the batch upload until all is searchable


@dataclass
class Arm:
    """One embedder's runs."""

    embedder: str
    runs: list[Run] = field(default_factory=list)


def make_texts(count: int, size: int, seed: int) -> list[bytes]:
    """`count` different texts of some `size` bytes of real words."""
    dice = random.Random(seed)
    return [" ".join(dice.choices(WORDS, k=size // 6)).encode()[:size] for _ in range(count)]


@contextmanager
def provider(latency_ms: int, dimensions: int) -> Iterator[str]:
    """The fake embeddings API as a process of its own: its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.fake_openai", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--latency-ms", str(latency_ms), "--dimensions", str(dimensions)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


async def upload_singly(http: httpx.AsyncClient, texts: list[bytes]) -> list[float]:
    """Milliseconds until each POST /v1/files is answered, 8 at once."""
    gate = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def upload(number: int, text: bytes) -> float:
        async with gate:
            started = time.perf_counter()
            answer = await http.post(
                "/v1/files", data={"purpose": "assistants"}, files={"file": (f"{number}.txt", text)}
            )
            answer.raise_for_status()
            return (time.perf_counter() - started) * 1000

    return await asyncio.gather(*(upload(number, text) for number, text in enumerate(texts)))


async def measure(service: RunningService, texts: list[bytes]) -> Run:
    """One run: all texts in one batch upload until searchable, then as single uploads."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=300) as http:
        store = (await http.post("/v1/vector_stores", json={"name": "benchmark"})).json()["id"]
        parts = [("files", (f"{number}.txt", text)) for number, text in enumerate(texts)]
        before = cpu_seconds()
        started = time.perf_counter()
        answer = await http.post("/v1/ingestions", data={"vector_store_ids": store}, files=parts)
        answer.raise_for_status()
        answered = time.perf_counter()
        batch = answer.json()["id"]
        while True:
            page = (await http.get("/v1/ingestions", params={"batch_id": batch, "limit": 1000})).json()
            if not page["file_counts"]["in_progress"]:
                break
            await asyncio.sleep(0.05)
        seconds = time.perf_counter() - started
        after = cpu_seconds()
        spent = {role: after[role] - before[role] for role in sorted(after)}
        if page["file_counts"]["completed"] != len(texts):
            raise SystemExit(f"not all files became searchable: {page['file_counts']}")
        chunks = sum(each["progress"]["chunks_total"] for each in page["data"]) * len(texts) / len(page["data"])
        waits = await upload_singly(http, texts)
        await http.delete(f"/v1/vector_stores/{store}")
    cuts = statistics.quantiles(waits, n=20)
    return Run(
        len(texts) / seconds, chunks / seconds, (answered - started) * 1000, cuts[9], cuts[18], seconds, spent
    )


def run_arm(embedder: str, options: argparse.Namespace) -> Arm:
    """All runs with one embedder, on a service of their own; the first, unmeasured one warms everything up."""
    environment = clean_environment()
    environment["LOG_LEVEL"] = "warning"
    arm = Arm(embedder)
    with (
        tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder,
        provider(options.latency_ms, options.dimensions) as url,
    ):
        if embedder == "fake":
            environment |= {
                "RAG_OPENAI_API_BASE_URL": url,
                "RAG_OPENAI_API_KEY": "sk-benchmark",
                "RAG_EMBEDDING_DIMENSIONS": str(options.dimensions),
            }
        plan = ServicePlan(Path(folder), port=free_port(), workers=options.workers, environment=environment)
        with running_service(plan, lambda _text: None) as service:
            for number in range(options.runs + 1):
                texts = make_texts(options.files, options.bytes, seed=number)
                run = asyncio.run(measure(service, texts))
                if number:
                    arm.runs.append(run)
    return arm


def show(arms: list[Arm], options: argparse.Namespace) -> None:
    """A table of medians, with the range of the runs."""
    title = f"{options.files} text files of {options.bytes} bytes, {options.workers} worker(s), {options.runs} runs"
    table = Table(
        "embedder", "files/s", "chunks/s", "batch answer ms", "upload p50 ms", "upload p95 ms", title=title
    )
    for arm in arms:
        rows = [[getattr(run, name) for name in SHOWN] for run in arm.runs]
        columns = zip(*rows, strict=True)
        cells = [f"{statistics.median(column):.1f} [{min(column):.1f}-{max(column):.1f}]" for column in columns]
        table.add_row(arm.embedder, *cells)
    console = Console(width=150)
    console.print(table)
    for arm in arms:
        roles = sorted({role for run in arm.runs for role in run.cpu_seconds})
        medians = {role: statistics.median(run.cpu_seconds.get(role, 0.0) for run in arm.runs) for role in roles}
        wall = statistics.median(run.batch_seconds for run in arm.runs)
        shares = " · ".join(f"{role} {seconds:.2f}" for role, seconds in medians.items())
        console.print(f"{arm.embedder}: {wall:.2f} s a batch; CPU seconds meanwhile: {shares}")


def main() -> None:
    """Run the arms that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--embedder", nargs="+", choices=("local", "fake"), default=["local", "fake"])
    parser.add_argument("--latency-ms", type=int, default=50, help="of the fake embeddings API")
    parser.add_argument("--dimensions", type=int, default=1536, help="of the fake embeddings API")
    options = parser.parse_args()
    arms = [run_arm(embedder, options) for embedder in options.embedder]
    show(arms, options)
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"ingest-{time.strftime('%Y%m%d-%H%M%S')}.json"
    target.write_text(json.dumps({"options": vars(options), "arms": [asdict(arm) for arm in arms]}, indent=1))
    print(f"written to {target.relative_to(Path.cwd())}" if target.is_relative_to(Path.cwd()) else target)


if __name__ == "__main__":
    main()
