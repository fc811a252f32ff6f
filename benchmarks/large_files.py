"""A worker's memory while it has several large files in work at once.

    python -m benchmarks.large_files [--files 4] [--chunks 20000] [--dimensions 3072]

Starts the real service with one worker, uploads text files of so many chunks of 100 tokens in one batch, and
prints the most memory that the worker's process has ever held, and how long the batch took.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import httpx

from app.cli.service import RunningService, ServicePlan, running_service
from benchmarks.ingest import make_texts, provider
from benchmarks.memory import peak_mib
from tests.support.environment import clean_environment
from tests.support.ports import free_port

BYTES_A_CHUNK = 470
"""Of 100 tokens of the texts that `make_texts` makes, roughly."""


async def ingest(service: RunningService, texts: list[bytes]) -> tuple[float, int]:
    """Seconds until all files of one batch upload are searchable, and how many chunks they have."""
    headers = {"Authorization": f"Bearer {service.api_key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, timeout=300) as http:
        store = (await http.post("/v1/vector_stores", json={"name": "large"})).raise_for_status().json()["id"]
        parts = [("files", (f"{number}.txt", text)) for number, text in enumerate(texts)]
        chunking = '{"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}'
        started = time.perf_counter()
        answer = await http.post(
            "/v1/ingestions", data={"vector_store_ids": store, "chunking_strategy": chunking}, files=parts
        )
        batch = answer.raise_for_status().json()["id"]
        while True:
            page = (await http.get("/v1/ingestions", params={"batch_id": batch})).raise_for_status().json()
            if not page["file_counts"]["in_progress"]:
                break
            await asyncio.sleep(0.2)
        if page["file_counts"]["completed"] != len(texts):
            raise SystemExit(f"not all files became searchable: {page['file_counts']} {page['data'][0]['error']}")
        return time.perf_counter() - started, sum(each["progress"]["chunks_total"] for each in page["data"])


def main() -> None:
    """Run once: memory hardly varies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, default=3072)
    options = parser.parse_args()
    texts = make_texts(options.files, options.chunks * BYTES_A_CHUNK, seed=1)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder, provider(0, options.dimensions) as url:
        environment = clean_environment() | {
            "LOG_LEVEL": "warning",
            "RAG_OPENAI_API_BASE_URL": url,
            "RAG_OPENAI_API_KEY": "sk-benchmark",
            "RAG_EMBEDDING_DIMENSIONS": str(options.dimensions),
        }
        plan = ServicePlan(Path(folder), port=free_port(), workers=1, environment=environment)
        with running_service(plan, lambda _text: None) as service:
            worker = service.processes[-1].pid
            idle = peak_mib(worker)
            seconds, chunks = asyncio.run(ingest(service, texts))
            print(f"{options.files} files, {chunks} chunks of {options.dimensions} dimensions, in {seconds:.0f} s")
            print(f"the worker held {peak_mib(worker):.0f} MiB at most, {idle:.0f} MiB at its start")


if __name__ == "__main__":
    main()
