"""Real documents: each ends in chunks, or in a refusal that a person understands."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from app.errors import Unprocessable
from app.extraction import Chunking, Extractor
from app.samples import write_samples
from tests.extraction.conftest import CORPUS


@pytest.mark.parametrize("folder", ["files", "hard"])
async def test_every_document_ends_in_chunks_or_in_a_reason(extractor: Extractor, folder: str) -> None:
    if not (CORPUS / folder).is_dir():
        pytest.skip("the founders' corpus is not here")
    ends: Counter[str] = Counter()
    refusals: list[tuple[str, Unprocessable]] = []

    async def read(path: Path) -> None:
        try:
            document = await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
        except Unprocessable as exc:
            refusals.append((path.name, exc))
        else:
            ends["chunks"] += 1
            assert document.chunks, path.name
            "".join(chunk.text for chunk in document.chunks).encode()
            assert not any("\x00" in chunk.text for chunk in document.chunks), path.name

    paths = sorted((CORPUS / folder).iterdir())
    await asyncio.gather(*(read(path) for path in paths))
    for name, refusal in refusals:
        assert len(str(refusal)) > 10, name
        assert refusal.failure not in {"parser_timeout", "parser_crashed"}, name
        ends[refusal.failure] += 1
    assert ends.total() == len(paths)
    assert ends["chunks"] > len(paths) * (0.7 if folder == "files" else 0.3), ends


KNOWN = {
    "lighthouse-log.pdf": "the keeper starts the fog signal at once",
    "leave-policy.docx": "Parental leave is twenty-six weeks at full pay",
    "coffee.md": "between 92 and 96 degrees Celsius",
    "bees.html": "a colony that feels cramped will swarm",
    "garden.txt": "Potatoes follow beans",
    "tides.csv": "Old Quay,05:58",
}


async def test_our_own_samples_say_what_they_say(extractor: Extractor, tmp_path: Path) -> None:
    for path in write_samples(tmp_path):
        document = await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
        text = " ".join(" ".join(chunk.text for chunk in document.chunks).split())
        assert KNOWN[path.name].lower() in text.lower(), path.name
        assert "console.log" not in text


async def read(extractor: Extractor, path: Path) -> str:
    document = await extractor.extract(path, filename=path.name, media_type=None, chunking=Chunking())
    return " ".join(chunk.text for chunk in document.chunks)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("utf-8", ""), ("iso-8859-1", "iso-8859-1"), ("cp1252", ""), ("utf-16", ""), ("shift_jis", "Shift_JIS")],
)
async def test_a_page_is_read_in_the_encoding_that_it_declares(
    extractor: Extractor, tmp_path: Path, encoding: str, declared: str
) -> None:
    text = "日本語の文章" if encoding == "shift_jis" else "schöne Grüße"
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={declared}">' if declared else ""
    page = tmp_path / "page.html"
    page.write_bytes(f"<html><head>{meta}</head><body><p>{text}</p></body></html>".encode(encoding))
    assert await read(extractor, page) == text


@pytest.mark.parametrize("declared", ["iso-8859-1", "ISO8859-1", "latin1", "us-ascii", "ascii", "windows-1252"])
async def test_latin_1_is_windows_1252_to_a_browser_and_to_us(
    extractor: Extractor, tmp_path: Path, declared: str
) -> None:
    page = tmp_path / "page.html"
    page.write_bytes(f'<meta charset="{declared}"><p>„5 €“… schön'.encode("cp1252"))
    assert await read(extractor, page) == "„5 €“… schön"


async def test_of_an_image_inside_a_page_only_its_words_are_text(extractor: Extractor, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<p>before <img alt="a red kite" src="data:image/png;base64,iVBORw0KGgo="> after</p>')
    text = await read(extractor, page)
    assert "a red kite" in text
    assert "iVBORw0KGgo" not in text


@pytest.mark.parametrize(
    ("content", "seen"), [(b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"), (b"\0\1\2\3", "00 01 02 03")]
)
async def test_a_refusal_names_what_was_seen_and_what_is_supported(
    extractor: Extractor, tmp_path: Path, content: bytes, seen: str
) -> None:
    picture = tmp_path / "report.docx"
    picture.write_bytes(content)
    with pytest.raises(Unprocessable, match=seen) as refused:
        await read(extractor, picture)
    assert refused.value.failure == "unsupported_file"
    assert "DOCX" in str(refused.value)
