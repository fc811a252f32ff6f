"""Texts that are hard to cut, and how they are made easy."""

import io
import struct
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.extraction import Chunking, Extractor, supported_media_type
from app.extraction.texts import clean, cut, decode

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"


@contextmanager
def at_most(limit_bytes: int) -> Iterator[None]:
    """The block may allocate so much."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= limit_bytes
    finally:
        tracemalloc.stop()


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


def test_counting_what_is_broken_takes_no_object_a_letter():
    content = ("д" * 100_000).encode() + b"\xff"
    with at_most(6 * len(content)):
        assert decode(content).endswith("д\ufffd")


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


DIRECTORY_BYTES = 5 * 1024 * 1024


def docx_with_a_long_directory() -> tuple[bytes, bytes]:
    """All but the record at its end, and that."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    content = packed.getvalue()
    start, end = content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06")
    entries = content[start:end] * (DIRECTORY_BYTES // (end - start))
    sizes = struct.pack("<HHIIH", 0, 0, len(entries), start, 0)
    return content[:start] + entries, b"PK\x05\x06\0\0\0\0" + sizes


def as_it_is(content: bytes, record: bytes) -> bytes:
    return content + record


def with_a_zip64_record(content: bytes, record: bytes) -> bytes:
    length, start = struct.unpack("<II", record[12:20])
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 0, 0, length, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(content), 1)
    return content + zip64 + locator + record[:12] + bytes(10)


def with_another_record_in_its_last(content: bytes, record: bytes) -> bytes:
    """The offset of the directory, which zipfile corrects, reads as the start of a record."""
    return content + record[:16] + b"PK\x05\x06" + record[20:]


def with_another_record_before(content: bytes, record: bytes) -> bytes:
    return content + b"PK\x05\x06" + bytes(18) + record


@pytest.mark.parametrize(
    "ending", [as_it_is, with_a_zip64_record, with_another_record_in_its_last, with_another_record_before]
)
def test_a_directory_of_a_million_entries_is_not_read_outside_of_a_child(ending: Callable[[bytes, bytes], bytes]):
    huge = ending(*docx_with_a_long_directory())
    with at_most(DIRECTORY_BYTES // 4):
        assert supported_media_type("a.xlsx", huge) == XLSX


def test_a_comment_at_its_end_changes_nothing():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
        archive.comment = b"lamp" * 10_000
    assert supported_media_type("a", packed.getvalue()) == DOCX


@pytest.mark.parametrize("compression", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_a_packed_mimetype_is_not_unpacked_outside_of_a_child(compression):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression=compression) as archive:
        archive.writestr("mimetype", "application/epub+zip".ljust(1 << 24))
    content = packed.getvalue().replace((1 << 24).to_bytes(4, "little"), (20).to_bytes(4, "little"))
    with at_most(1 << 20):
        assert supported_media_type("a.docx", content) == DOCX
