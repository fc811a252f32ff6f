"""Texts that are hard to cut, and how they are made easy."""

import io
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from app.extraction import Chunking, Extractor, supported_media_type
from app.extraction.texts import clean, cut

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@pytest.mark.parametrize("unit", ["\t\n", " \n", "\t\r", "\u2028", "\u3000\n", "\x85"])
def test_of_blank_lines_in_a_row_two_stay(unit):
    assert clean(f"one\n{unit * 20_000}two") in {"one\n\n\ntwo", "one\n\n\n\ttwo"}


def test_a_text_without_long_runs_of_blank_lines_is_left_alone():
    text = "one\n\n\ntwo\n    three \n\n four"
    assert clean(text) == text


@pytest.mark.parametrize("unit", ["\t\n", "\u2028", "\t\n" * 50 + "a"])
def test_white_space_of_64_kb_is_cut_before_anybody_waits(unit):
    """It took 18 s and more; a time limit of the test's own, far above what it takes, and no measurement."""
    cutting = threading.Thread(
        target=cut, args=[clean(unit * (65_536 // len(unit.encode()))), Chunking(800, 400)], daemon=True
    )
    cutting.start()
    cutting.join(10)
    assert not cutting.is_alive()


async def test_a_text_that_a_thread_should_not_be_held_by_is_cut_in_a_child(extractor: Extractor, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("word " * 4000)
    await extractor.extract(path, filename="a.txt", media_type=None, chunking=Chunking())
    assert extractor.zygote_pid is not None


@pytest.mark.parametrize("damage", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_damaged_mimetype_leaves_the_decision_to_the_name(damage):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression=damage) as archive:
        archive.writestr("mimetype", "application/epub+zip")
    content = bytearray(packed.getvalue())
    start = content.index(b"mimetype") + len("mimetype")
    content[start : start + 12] = bytes(255 - byte for byte in content[start : start + 12])
    assert supported_media_type("a.docx", bytes(content)) in {DOCX, None}


def test_a_directory_of_a_million_entries_is_not_read_outside_of_a_child():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    content = packed.getvalue()
    end = content.rindex(b"PK\x05\x06")
    entry = content[content.index(b"PK\x01\x02") : end]
    entries = entry * (5 * 1024 * 1024 // len(entry))
    record = bytearray(content[end:])
    record[12:16] = len(entries).to_bytes(4, "little")
    huge = content[: content.index(b"PK\x01\x02")] + entries + bytes(record)
    assert supported_media_type("a.bin", huge) is None
    assert supported_media_type("a.docx", huge) == DOCX


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_packed_mimetype_is_not_unpacked_outside_of_a_child(compression):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression=compression) as archive:
        archive.writestr("mimetype", "application/epub+zip".ljust(1 << 24))
        archive.writestr("word/document.xml", "<x/>")
    content = packed.getvalue().replace((1 << 24).to_bytes(4, "little"), (20).to_bytes(4, "little"))
    tracemalloc.start()
    assert supported_media_type("a", content) == DOCX
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 1 << 20
