import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.extraction import ExtractionLimits, Extractor

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
LIMITS = ExtractionLimits(timeout_seconds=30, memory_bytes=1 << 30, max_characters=5_000_000, concurrency=2)


@pytest.fixture
async def extractor() -> AsyncIterator[Extractor]:
    async with Extractor(LIMITS) as extractor:
        yield extractor


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
