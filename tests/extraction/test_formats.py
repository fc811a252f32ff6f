import io
import unicodedata
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import BadRequest
from app.extraction import Chunking, supported_media_type
from app.extraction.texts import clean, cut, decode, splitter_for

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
ODT = "application/vnd.oasis.opendocument.text"


def archive(**entries: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as made:
        for name, content in entries.items():
            made.writestr(name.replace("__", "/"), content)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("filename", "content", "expected"),
    [
        ("a.pdf", b"%PDF-1.7", "application/pdf"),
        ("renamed.txt", b"junk before\n%PDF-1.4", "application/pdf"),
        ("a.md", b"A PDF starts with %PDF-1.7, they say.", "text/plain"),
        ("tiny.pdf", b"%PDF\n1\x000 obj<</Pages", "application/pdf"),
        ("a", archive(word__document="x"), DOCX),
        ("a.xlsx", archive(**{"xl\\workbook.xml": "x"}), XLSX),
        ("a.xlsx", archive(word__document="x"), DOCX),
        ("a.odt", archive(mimetype=ODT), ODT),
        ("a.zip", archive(readme="x"), None),
        ("a.docx", archive(word__document="x" * 9999)[:500], DOCX),
        ("a.rtf", b"{\\rtf1 hello}", "application/rtf"),
        ("page", b"<!DOCTYPE html><p>hi", "text/html"),
        ("page.htm", b"hi", "text/html"),
        ("mail.eml", b"Subject: hi\n\nbody", "message/rfc822"),
        ("mail", b"Return-Path: <a@b>\nSubject: hi\n\nbody", "message/rfc822"),
        ("a.json", b'{"a": 1}', "text/plain"),
        ("a.csv", b"a,b\n1,2", "text/plain"),
        ("notes", "schöne Grüße".encode("cp1252"), "text/plain"),
        ("notes.txt", "ä".encode("utf-16"), "text/plain"),
        ("a.bin", b"\x00\x01\x02\x03" * 50, None),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/msword"),
        ("a.bin", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", None),
        (
            "no-extension",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "Workbook".encode("utf-16-le").ljust(64, b"\x00"),
            "application/vnd.ms-excel",
        ),
        ("page", b"\xef\xbb\xbf<!doctype html><p>hi", "text/html"),
        ("empty.txt", b"", "text/plain"),
        (
            "a.xlsx",
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "application/encrypted",
        ),
    ],
)
def test_content_decides_and_the_extension_helps(filename: str, content: bytes, expected: str | None) -> None:
    assert supported_media_type(filename, content) == expected


@given(st.binary(max_size=300), st.sampled_from(["a", "a.pdf", "a.docx", "a.txt", "a.eml"]))
def test_no_bytes_at_all_break_the_detection(content: bytes, filename: str) -> None:
    supported_media_type(filename, content)
    supported_media_type(filename, b"PK\x03\x04" + content)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_decoded_whatever_its_encoding(encoding: str) -> None:
    assert decode("schöne Grüße".encode(encoding)) == "schöne Grüße"


def test_one_broken_byte_does_not_garble_the_whole_text() -> None:
    assert decode("größer und schöner".encode() + b"\xff") == "größer und schöner\ufffd"


@given(st.text(st.characters(codec=None), max_size=200) | st.binary(max_size=200).map(decode))
def test_cleaned_text_is_what_postgres_takes(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode()
    assert not any(unicodedata.category(each) == "Cc" and each not in "\n\t" for each in cleaned)


def test_a_control_character_parts_words_and_the_one_for_a_new_line_makes_one():
    assert clean("one\x07two\x96three\x9ffour\x85five\xa0six") == "one two three four\nfive\xa0six"


@pytest.mark.parametrize(("most", "overlap"), [(99, 0), (4097, 0), (800, 401), (800, -1), (100, 51)])
def test_chunk_sizes_out_of_their_limits_are_refused(most: int, overlap: int) -> None:
    with pytest.raises(BadRequest, match="chunk"):
        Chunking(most, overlap)


@given(st.lists(st.text("abcdefghij", min_size=1, max_size=9), min_size=1, max_size=800))
def test_chunks_hold_every_word_in_order_and_none_is_blank(words: list[str]) -> None:
    chunks = cut(" ".join(words), Chunking(100, 0))
    assert " ".join(chunks).split() == words
    assert all(chunk.strip() for chunk in chunks)


@given(st.text(min_size=1, max_size=4000), st.sampled_from([(100, 0), (100, 50), (300, 100)]))
def test_no_chunk_is_longer_than_allowed_and_together_they_hold_the_text(text: str, sizes: tuple[int, int]) -> None:
    chunking = Chunking(*sizes)
    cleaned = clean(text)
    chunks = cut(cleaned, chunking)
    assert "".join(chunks).split() or not cleaned.strip()
    position = 0
    for chunk in chunks:
        found = cleaned.find(chunk, 0 if chunking.chunk_overlap_tokens else position)
        assert found >= 0
        assert not cleaned[position:found].strip(), "nothing but white space may stand between chunks"
        position = max(position, found + len(chunk))
        assert list(splitter_for(Chunking(sizes[0], 0)).chunks(chunk)) == [chunk], "it fits as it is"
    assert not cleaned[position:].strip()


def test_a_token_is_a_token_of_cl100k() -> None:
    # " hello" is one token of cl100k_base, so a hundred of them fill a chunk of a hundred exactly
    assert [len(chunk.split()) for chunk in cut("hello" + " hello" * 299, Chunking(100, 0))] == [100, 100, 100]


def test_a_long_line_without_spaces_is_cut_in_linear_time_and_whole() -> None:
    text = "".join(chr(0x4E00 + n % 2000) for n in range(200_000))
    assert "".join(cut(text, Chunking(800, 0))) == text


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    first, second, *_ = cut(" ".join(f"w{n}" for n in range(400)), Chunking(100, 50))
    assert set(first.split()) & set(second.split())
