"""Small files that are much to read: each ends in a code or in its text, and leaves no process behind."""

import asyncio
import io
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from pypdf import PdfReader

from app.errors import Unprocessable
from app.extraction import Chunking, ExtractionLimits, Extractor
from tests.extraction.__main__ import MOST_BEYOND_LIMIT_BYTES, MOST_GROWTH_BYTES, Run
from tests.extraction.bombs import BOMBS
from tests.extraction.bombs.office import zip_of_many_parts
from tests.extraction.bombs.pdf import pdf_of_a_million_pages, pdf_with_a_bomb_for_an_object_stream
from tests.extraction.conftest import CORPUS, children_of
from tests.extraction.mutations import MUTATIONS

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = ExtractionLimits(timeout_seconds=3, memory_bytes=1 << 29, max_characters=5_000_000, concurrency=2)
HANG_SECONDS = 20
AS_TEXT = {  # these are harmless once they are read with care
    "docx_nested_deeply", "xlsx_with_a_far_cell", "odt_with_many_spaces", "mail_in_mail", "mail_nested_in_parts",
    "html_nested_deeply", "html_of_many_attributes", "rtf_nested_deeply",
}  # fmt: skip
SAMPLE = 40


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def extractor() -> AsyncIterator[Extractor]:
    async with Extractor(LIMITS) as extractor:
        yield extractor


async def end_of(extractor: Extractor, path: Path) -> str:
    """The failure's code, or "text"."""
    try:
        async with asyncio.timeout(LIMITS.timeout_seconds + HANG_SECONDS):
            document = await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
    except Unprocessable as exc:
        return exc.failure
    assert document.characters <= LIMITS.max_characters
    return "text"


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_has_an_end(extractor: Extractor, tmp_path: Path, name: str) -> None:
    suffix, make = BOMBS[name]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(make())
    assert path.stat().st_size < 10_000_000
    end = await end_of(extractor, path)
    if name in AS_TEXT:
        assert end == "text"
    zygote = extractor.zygote_pid
    assert zygote is None or children_of(zygote) == []


async def test_bombs_are_refused_before_they_are_read(extractor: Extractor, tmp_path: Path) -> None:
    for make, suffix, code in (
        (pdf_of_a_million_pages, "pdf", "too_many_pages"),
        (zip_of_many_parts, "docx", "unpacks_too_large"),
    ):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(make())
        assert await end_of(extractor, path) == code


async def test_an_object_stream_that_is_a_bomb_is_really_unpacked() -> None:
    reader = PdfReader(io.BytesIO(pdf_with_a_bomb_for_an_object_stream(1000)))
    assert reader.pages[0].extract_text() == "lamp"
    assert {(0, number) for number in range(8, 1008)} <= set(reader.resolved_objects)


async def test_a_run_over_the_corpus_fails_by_its_memory() -> None:
    run = Run(LIMITS)
    run.largest_child_bytes = LIMITS.memory_bytes + MOST_BEYOND_LIMIT_BYTES
    assert run.out_of_bounds(grown_bytes=MOST_GROWTH_BYTES) == []
    run.largest_child_bytes += 1
    assert len(run.out_of_bounds(grown_bytes=MOST_GROWTH_BYTES + 1)) == 2


async def test_tokens_are_bounded_before_they_are_paid(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 5000)
    async with Extractor(replace(LIMITS, max_tokens=4000)) as extractor:
        with pytest.raises(Unprocessable, match="EXTRACTION_MAX_TOKENS") as refused:
            await extractor.extract(path, filename="a.txt", media_type=None, chunking=Chunking(800, 400))
    assert refused.value.failure == "too_many_tokens"


@pytest.mark.parametrize("folder", ["files", "hard"])
async def test_damaged_documents_have_an_end(extractor: Extractor, tmp_path: Path, folder: str) -> None:
    """A sample; `make test-corpus` takes all."""
    if not (CORPUS / folder).is_dir():
        pytest.skip("the founders' corpus is not here")
    dice = random.Random(folder)
    for path in dice.sample(sorted((CORPUS / folder).iterdir()), SAMPLE):
        damaged = tmp_path / path.name
        damaged.write_bytes(dice.choice(MUTATIONS)(path.read_bytes(), dice))
        await end_of(extractor, damaged)
    assert extractor.zygote_pid is not None
    assert children_of(extractor.zygote_pid) == []
