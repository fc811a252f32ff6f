"""The children that parse: limited, alone with their document, and gone when they should be."""

import asyncio
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.errors import FailureCode, Unprocessable
from app.extraction import Chunking, Extractor
from tests.extraction.bombs.pdf import pdf_of_two_pages
from tests.extraction.conftest import LIMITS, children_of, is_running, until

LONG = "The keeper winds the clockwork every four hours. "
CANARY = "sk-canary-in-the-environment"


async def extract(extractor: Extractor, path: Path) -> int:
    document = await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
    return len(document.chunks)


async def refusal(extractor: Extractor, path: Path) -> FailureCode:
    with pytest.raises(Unprocessable) as refused:
        await extract(extractor, path)
    assert str(refused.value)
    return refused.value.failure


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(LONG * 60_000)  # 3 MB: seconds of cutting
    return path


@pytest.fixture
def inflating(tmp_path: Path) -> Path:
    """A DOCX of some 300 KB whose text is 300 MB."""
    path = tmp_path / "inflating.docx"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w") as part,
    ):
        part.write(
            b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p>'
        )
        for _ in range(300):
            part.write(b"<w:r><w:t>" + b"a" * (1 << 20) + b"</w:t></w:r>")
        part.write(b"</w:p></w:body></w:document>")
    return path


def extractor_with(**changes: float) -> Extractor:
    return Extractor(replace(LIMITS, **changes))  # type: ignore[arg-type]


async def test_a_text_beyond_the_limit_is_refused(book: Path) -> None:
    async with extractor_with(max_characters=100_000) as extractor:
        assert await refusal(extractor, book) == "too_much_text"


async def test_no_page_is_left_out_without_a_word(tmp_path: Path) -> None:
    """pdfium ends lines with two characters, of which one stays: 244 in all, 185 once they are cleaned."""
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of_two_pages(60))
    async with extractor_with(max_characters=200) as extractor:
        document = await extractor.extract(path, filename="a.pdf", media_type=None, chunking=Chunking())
        assert document.chunks[-1].text.endswith("lamp")
    async with extractor_with(max_characters=150) as extractor:
        with pytest.raises(Unprocessable, match="EXTRACTION_MAX_CHARACTERS") as refused:
            await extract(extractor, path)
    assert refused.value.failure == "too_much_text"


async def test_an_archive_that_inflates_is_a_typed_failure(inflating: Path) -> None:
    async with extractor_with(memory_bytes=256 << 20, timeout_seconds=20) as extractor:
        assert await refusal(extractor, inflating) == "unpacks_too_large"
        assert extractor.zygote_pid is not None
        assert children_of(extractor.zygote_pid) == []


async def test_too_little_memory_is_a_typed_failure(book: Path) -> None:
    async with extractor_with(memory_bytes=1 << 20) as extractor:
        assert await refusal(extractor, book) in {"parser_memory", "parser_crashed"}


async def test_a_document_that_takes_too_long_is_given_up(book: Path) -> None:
    async with extractor_with(timeout_seconds=0.05) as extractor:
        assert await refusal(extractor, book) == "parser_timeout"
        assert extractor.zygote_pid is not None
        assert children_of(extractor.zygote_pid) == []


async def test_cancelling_ends_the_child(extractor: Extractor, book: Path) -> None:
    running = asyncio.create_task(extract(extractor, book))
    await until(lambda: extractor.zygote_pid is not None and bool(children_of(extractor.zygote_pid)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    zygote = extractor.zygote_pid
    assert zygote is not None
    await until(lambda: children_of(zygote) == [])
    assert await extract(extractor, book) > 100, "the next document is read as if nothing had been"


async def test_a_child_that_is_killed_fails_its_document_alone(extractor: Extractor, book: Path) -> None:
    running = [asyncio.create_task(extract(extractor, book)) for _ in range(2)]
    await until(lambda: extractor.zygote_pid is not None and len(children_of(extractor.zygote_pid)) == 2)
    assert extractor.zygote_pid is not None
    os.kill(children_of(extractor.zygote_pid)[0], signal.SIGSEGV)
    ends = await asyncio.gather(*running, return_exceptions=True)
    failures = [end.failure for end in ends if isinstance(end, Unprocessable)]
    assert failures == ["parser_crashed"]
    assert sum(isinstance(end, int) for end in ends) == 1


async def test_a_zygote_that_is_killed_is_replaced(extractor: Extractor, book: Path) -> None:
    running = asyncio.create_task(extract(extractor, book))
    await until(lambda: extractor.zygote_pid is not None and bool(children_of(extractor.zygote_pid)))
    first = extractor.zygote_pid
    assert first is not None
    orphan = children_of(first)[0]
    os.kill(first, signal.SIGKILL)
    assert await running > 100, "the document is not to blame, so it is read again"
    assert not is_running(orphan)
    assert extractor.zygote_pid != first


async def test_closing_ends_everything(book: Path) -> None:
    async with Extractor(LIMITS) as extractor:
        await extract(extractor, book)
        zygote = extractor.zygote_pid
        assert zygote is not None
    assert not is_running(zygote)


def descriptors(pid: str) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_many_documents_leave_no_child_no_zombie_and_no_descriptor(
    extractor: Extractor, tmp_path: Path
) -> None:
    path = tmp_path / "a.rtf"
    path.write_bytes(b"{\\rtf1 hello world}")
    await extract(extractor, path)
    before = descriptors("self")
    await asyncio.gather(*(extract(extractor, path) for _ in range(50)))
    zygote = extractor.zygote_pid
    assert zygote is not None
    await until(lambda: children_of(zygote) == [])
    assert descriptors("self") <= before
    assert descriptors(str(zygote)) < 20


@pytest.fixture
def canary() -> AsyncIterator[None]:
    os.environ["SLUICE_CANARY"] = CANARY
    yield  # type: ignore[misc]
    del os.environ["SLUICE_CANARY"]


async def test_no_variable_of_ours_reaches_the_processes_that_parse(
    canary: None, extractor: Extractor, book: Path
) -> None:
    running = asyncio.create_task(extract(extractor, book))
    await until(lambda: extractor.zygote_pid is not None and bool(children_of(extractor.zygote_pid)))
    assert extractor.zygote_pid is not None
    for pid in (extractor.zygote_pid, *children_of(extractor.zygote_pid)):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert CANARY.encode() not in environment
        assert b"LANG=" in environment
    await running


async def test_the_event_loop_goes_on_while_a_book_is_cut(extractor: Extractor, book: Path) -> None:
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            longest = max(longest, loop.time() - before)

    beating = asyncio.create_task(beat())
    await extract(extractor, book)
    beating.cancel()
    assert longest < 0.5


def test_it_works_from_a_script_on_uvloop(tmp_path: Path) -> None:
    (tmp_path / "a.rtf").write_bytes(b"{\\rtf1 hello world}")
    code = (
        "import uvloop; from pathlib import Path; from app.extraction import *\n"
        "async def main():\n"
        "    async with Extractor(ExtractionLimits(30, 1 << 30, 1000, 1)) as extractor:\n"
        f"        found = await extractor.extract(Path({str(tmp_path / 'a.rtf')!r}), filename='a.rtf',"
        " media_type=None, chunking=Chunking())\n"
        "        print(found.chunks[0].text)\n"
        "uvloop.run(main())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "hello world", ran.stderr
