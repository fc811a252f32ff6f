"""Parsers that hang, crash, eat, lie: each hurts its own document alone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import FailureCode, Unprocessable
from app.extraction import Chunking, ExtractedDocument, Extractor, sandbox
from app.extraction.guard import NotFencedIn, ParserKilled
from tests.extraction.conftest import LIMITS, children_of, is_running, until

WORSE = "tests.extraction.worse_zygote"


@pytest.fixture
async def worse() -> AsyncIterator[Extractor]:
    limits = replace(LIMITS, timeout_seconds=1.0, memory_bytes=64 << 20, concurrency=4)
    async with Extractor(limits, zygote=WORSE) as extractor:
        yield extractor


async def told(extractor: Extractor, folder: Path, command: str) -> ExtractedDocument:
    path = folder / f"{command}.rtf"
    path.write_text(f"{{\\rtf {command}}}")
    return await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("hang", "parser_timeout"),
        ("spin", "parser_timeout"),
        ("abort", "parser_crashed"),
        ("eat memory", "parser_memory"),
        ("abort for want of memory", "parser_memory"),
        ("quit quietly", "parser_crashed"),
        ("answer nonsense", "parser_crashed"),
        ("answer a list", "parser_crashed"),
        ("answer wrong chunks", "parser_crashed"),
        ("answer a made-up failure", "parser_crashed"),
        ("answer deeply", "parser_crashed"),
    ],
)
async def test_whatever_a_parser_does_has_a_code(
    worse: Extractor, tmp_path: Path, command: str, expected: FailureCode
) -> None:
    with pytest.raises(Unprocessable) as refused:
        await told(worse, tmp_path, command)
    assert refused.value.failure == expected
    assert_no_children(worse)


async def test_a_document_that_does_not_fit_into_memory_itself_has_its_code(
    worse: Extractor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.rtf"
    path.write_text("{\\rtf")
    os.truncate(path, 1 << 28)
    with pytest.raises(Unprocessable) as refused:
        await worse.extract(path, filename="a.rtf", media_type=None, chunking=Chunking())
    assert refused.value.failure == "parser_memory"
    assert capfd.readouterr() == ("", "")


async def test_a_document_whose_parser_the_kernel_kills_is_tried_again(worse: Extractor, tmp_path: Path) -> None:
    with pytest.raises(ParserKilled) as killed:
        await told(worse, tmp_path, "be killed")
    assert killed.value.gives_up_as == "parser_memory"
    assert_no_children(worse)


def assert_no_children(extractor: Extractor) -> None:
    zygote = extractor.zygote_pid
    assert zygote is not None
    assert children_of(zygote) == []


async def test_they_do_not_hurt_each_other(worse: Extractor, tmp_path: Path) -> None:
    commands = ["hang", "abort", "tell", "eat memory", "tell", "answer nonsense", "be killed", "tell"]
    ends = await asyncio.gather(*(told(worse, tmp_path, each) for each in commands), return_exceptions=True)
    assert [each for each, end in zip(commands, ends, strict=True) if isinstance(end, ExtractedDocument)] == [
        "tell", "tell", "tell",
    ]  # fmt: skip
    assert all(isinstance(end, ExtractedDocument | Unprocessable | ParserKilled) for end in ends), ends


async def test_a_talkative_parser_neither_waits_for_us_nor_writes_to_our_log(
    worse: Extractor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (await told(worse, tmp_path, "talk")).chunks[0].text == "talked"
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def canary() -> Iterator[str]:
    os.environ["SLUICE_CANARY"] = "sk-canary"
    yield "sk-canary"
    del os.environ["SLUICE_CANARY"]


async def test_a_parser_finds_nothing_of_ours(worse: Extractor, tmp_path: Path, canary: str) -> None:
    with (tmp_path / "secret").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        text = (await told(worse, tmp_path, "tell")).chunks[0].text
    seen = json.loads(text)
    assert canary not in text
    assert set(seen["environment"]) <= {
        "LANG", "LC_CTYPE", "PYTHONPATH", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS", "RAYON_NUM_THREADS",
        "TOKIO_WORKER_THREADS", "LD_LIBRARY_PATH",  # the last is set by kreuzberg itself
    }  # fmt: skip
    assert (seen["open"], seen["pipes"]) == (1, 1), "the pipe for the answer, and nothing else"


@pytest.mark.skipif(bool(sandbox.missing()), reason=f"this kernel lacks {sandbox.missing()}")
async def test_a_document_whose_parser_cannot_be_fenced_in_is_tried_again_unread(tmp_path: Path) -> None:
    async with Extractor(LIMITS, zygote="tests.extraction.full_zygote") as full:
        with pytest.raises(NotFencedIn):
            await told(full, tmp_path, "be read")
        assert_no_children(full)


@pytest.mark.skipif(bool(sandbox.missing()), reason=f"this kernel lacks {sandbox.missing()}")
async def test_a_parser_that_is_taken_over_reaches_nothing(worse: Extractor, tmp_path: Path) -> None:
    assert (await told(worse, tmp_path, "reach out")).chunks[0].text == "nothing"


def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.rtf"
    path.write_text("{\\rtf hang}")
    code = (
        "import asyncio; from pathlib import Path; from app.extraction import *\n"
        "async def main():\n"
        f"    async with Extractor(ExtractionLimits(300, 1 << 30, 1000, 1), zygote={WORSE!r}) as extractor:\n"
        f"        await extractor.extract(Path({str(path)!r}), filename='a.rtf',"
        " media_type=None, chunking=Chunking())\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        asyncio.run(until(lambda: bool(children_of(parent.pid)) and bool(children_of(children_of(parent.pid)[0]))))
        zygote = children_of(parent.pid)[0]
        child = children_of(zygote)[0]
        os.kill(parent.pid, signal.SIGKILL)
    asyncio.run(until(lambda: not is_running(zygote) and not is_running(child)))
