"""All documents of the founders' corpus, as they are and damaged three ways, and all bombs, under default limits.

    python -m tests.extraction [--seed 1]

A long run with a command of its own (`make test-corpus`). Each must end in text or in a typed failure within its
wall time, with no process left behind; the worker's own process (this one) may grow by 256 MiB, and a child may
have 256 MiB beyond its limit. Exits with 1 otherwise.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from app.errors import Unprocessable
from app.extraction import Chunking, ExtractionLimits, Extractor
from app.settings import Settings
from tests.extraction.bombs import BOMBS
from tests.extraction.conftest import CORPUS
from tests.extraction.mutations import MUTATIONS

_SLACK_SECONDS = 5.0
_MIB = 1 << 20
MOST_GROWTH_BYTES = 256 * _MIB
MOST_BEYOND_LIMIT_BYTES = 256 * _MIB
"""A parser starts with the zygote's memory, and its limit is for what comes on top."""


class Run:
    """Reads documents, and keeps the figures."""

    def __init__(self, limits: ExtractionLimits) -> None:
        self.limits = limits
        self.ends: dict[str, Counter[str]] = {}
        self.slowest = (0.0, "")
        self.largest_child_bytes = 0
        self.wrong: list[str] = []

    async def read(self, extractor: Extractor, kind: str, path: Path) -> None:
        started = time.monotonic()
        try:
            await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
            end = "text"
        except Unprocessable as exc:
            end = exc.failure
        except Exception as exc:  # noqa: BLE001 - what must not be
            end = type(exc).__name__
            self.wrong.append(f"{kind} {path.name}: {exc!r}")
        seconds = time.monotonic() - started
        self.slowest = max(self.slowest, (seconds, f"{kind} {path.name}"))
        if seconds > self.limits.timeout_seconds + _SLACK_SECONDS:
            self.wrong.append(f"{kind} {path.name}: {seconds:.0f} s")
        self.ends.setdefault(kind, Counter())[end] += 1

    def out_of_bounds(self, *, grown_bytes: int) -> list[str]:
        """What took more memory than it may."""
        found = []
        if grown_bytes > MOST_GROWTH_BYTES:
            found.append(f"this process grew by {grown_bytes // _MIB} MiB")
        if self.largest_child_bytes > self.limits.memory_bytes + MOST_BEYOND_LIMIT_BYTES:
            found.append(f"a child had {self.largest_child_bytes // _MIB} MiB")
        return found

    async def watch(self, extractor: Extractor) -> None:
        """The largest child, looked at fifty times a second."""
        while True:
            if extractor.zygote_pid is not None and psutil.pid_exists(extractor.zygote_pid):
                for child in psutil.Process(extractor.zygote_pid).children():
                    try:
                        self.largest_child_bytes = max(self.largest_child_bytes, child.memory_info().rss)
                    except psutil.NoSuchProcess:
                        continue
            await asyncio.sleep(0.02)


def make_files(folder: Path, seed: int) -> dict[str, list[Path]]:
    """By kind. Bombs are made in a process of their own: making them takes memory."""
    code = "import sys; from pathlib import Path; from tests.extraction.bombs import BOMBS\n"
    code += "for name, (suffix, make) in BOMBS.items():\n"
    code += "    (Path(sys.argv[1]) / f'{name}.{suffix}').write_bytes(make())"
    (folder / "bombs").mkdir()
    subprocess.run([sys.executable, "-c", code, folder / "bombs"], check=True)
    files = {"bombs": sorted((folder / "bombs").iterdir())}
    assert len(files["bombs"]) == len(BOMBS)
    for name in ("files", "hard"):
        plain = sorted((CORPUS / name).iterdir())
        files[name] = plain
        for mutate in MUTATIONS:
            kind = f"{name}, {mutate.__name__}"
            dice = random.Random(f"{seed} {kind}")
            (folder / kind).mkdir()
            files[kind] = [folder / kind / path.name for path in plain]
            for path, damaged in zip(plain, files[kind], strict=True):
                damaged.write_bytes(mutate(path.read_bytes(), dice))
    return files


async def run(files: dict[str, list[Path]]) -> Run:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    limits = ExtractionLimits(
        timeout_seconds=float(defaults["extraction_timeout_seconds"]),
        memory_bytes=int(defaults["extraction_memory_bytes"]),
        max_characters=int(defaults["extraction_max_characters"]),
        concurrency=int(defaults["extraction_concurrency"]),
        max_pages=int(defaults["extraction_max_pages"]),
        max_tokens=int(defaults["extraction_max_tokens"]),
    )
    made = Run(limits)
    async with Extractor(limits) as extractor:
        watching = asyncio.create_task(made.watch(extractor))
        left = iter([(kind, path) for kind, paths in files.items() for path in paths])

        async def read_some() -> None:
            for kind, path in left:
                await made.read(extractor, kind, path)

        await asyncio.gather(*(read_some() for _ in range(limits.concurrency)))
        watching.cancel()
        if extractor.zygote_pid is not None and psutil.Process(extractor.zygote_pid).children():
            made.wrong.append("processes are left behind")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    console = Console(width=160, soft_wrap=True)
    if not CORPUS.is_dir():
        sys.exit(f"the founders' corpus is not at {CORPUS}")
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), options.seed)
        before = psutil.Process().memory_info().rss
        started = time.monotonic()
        made = asyncio.run(run(files))
        seconds = time.monotonic() - started
    codes = sorted({code for ends in made.ends.values() for code in ends})
    table = Table("documents", *codes)
    for kind, ends in made.ends.items():
        table.add_row(kind, *(str(ends[code] or "") for code in codes))
    console.print(table)
    grown = psutil.Process().memory_info().rss - before
    made.wrong += made.out_of_bounds(grown_bytes=grown)
    console.print(
        f"{sum(map(len, files.values()))} documents in {seconds:.0f} s; the slowest took {made.slowest[0]:.1f} s "
        f"({made.slowest[1]}); the largest child had {made.largest_child_bytes // _MIB} MiB; this process grew by "
        f"{grown // _MIB} MiB; {len(made.wrong)} went wrong"
    )
    console.print(*made.wrong, sep="\n", markup=False)
    sys.exit(bool(made.wrong))


if __name__ == "__main__":
    main()
