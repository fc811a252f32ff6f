"""Text from documents; runs only inside a guarded child process."""

import codecs
import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import kreuzberg
import pypdf
import pypdfium2
from pypdf.errors import DeprecationError, PyPdfError

from app.errors import Unprocessable
from app.extraction.archives import refuse_bombs
from app.extraction.formats import ENCRYPTED_OFFICE, HTML, PDF, PLAIN
from app.extraction.texts import clean, decode
from app.extraction.values import TOO_MUCH_TEXT

_ENCRYPTED = "The PDF is encrypted and needs a password; remove it and upload the file again."
_ENCRYPTED_DOCUMENT = "The document is encrypted; remove the password and upload it again."
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]{1,40})", re.IGNORECASE)
_HEAD_BYTES = 4096
_MEANING_WINDOWS_1252 = {"iso8859-1", "ascii"}
"""To browsers, and so to those who write pages (WHATWG Encoding Standard, 4.2)."""
_IMAGE_IN_TEXT = re.compile(r"!\[([^\]\n]{0,1000})\]\(data:[^)\s]*\)")
"""An image that an HTML page carries in itself: base64, which is no text."""
_PYPDF_FAILURES = (
    PyPdfError,
    DeprecationError,
    NotImplementedError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RecursionError,
    OSError,
    struct.error,
    zlib.error,
)
"""pypdf raises nearly anything on damaged files."""
_WITHOUT_TEXT = "The PDF has no text layer (scanned pages?); run it through OCR and upload the result."


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a document is read at all."""

    max_characters: int
    max_pages: int
    max_unpacked_bytes: int


def read_text(content: bytes, media_type: str, bounds: Bounds) -> str:
    """A document's text, not yet cleaned as a whole.

    Raises:
        Unprocessable: `encrypted_file`, `unreadable_file`, `empty_text`, `too_many_pages`, `too_much_text`,
            `unpacks_too_large`.
    """
    if media_type == PLAIN:
        return decode(content)
    if media_type == ENCRYPTED_OFFICE:
        raise Unprocessable("encrypted_file", _ENCRYPTED_DOCUMENT)
    if media_type == PDF:
        return _read_pdf(content, bounds)
    refuse_bombs(content, max_unpacked_bytes=bounds.max_unpacked_bytes)
    if media_type == HTML:
        content = _as_utf8(content)
    return _read_with_kreuzberg(content, media_type)


def _read_pdf(content: bytes, bounds: Bounds) -> str:
    """By pdfium first, ten times as fast; pypdf for what pdfium cannot read or finds empty."""
    text = _read_with_pdfium(content, bounds)
    if text is None or not text.strip():
        text = _read_with_pypdf(content, bounds) or text
    if text is None:
        raise Unprocessable("unreadable_file", "The PDF is damaged: neither pdfium nor pypdf can read it.")
    if not text.strip():
        raise Unprocessable("empty_text", _WITHOUT_TEXT)
    return text


def _read_with_pdfium(content: bytes, bounds: Bounds) -> str | None:
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as exc:
        if "password" in str(exc).lower():
            raise Unprocessable("encrypted_file", _ENCRYPTED) from exc
        return None
    _refuse_many_pages(len(document), bounds)
    return _joined(_pages_of_pdfium(document), bounds)


def _pages_of_pdfium(document: pypdfium2.PdfDocument) -> Iterator[str]:
    for number in range(len(document)):
        with contextlib.suppress(pypdfium2.PdfiumError):  # one broken page must not cost the others
            yield document[number].get_textpage().get_text_range()


def _read_with_pypdf(content: bytes, bounds: Bounds) -> str | None:
    try:
        reader = _open_with_pypdf(content)
        _refuse_many_pages(len(reader.pages), bounds)
        return _joined((page.extract_text() for page in reader.pages), bounds)
    except Unprocessable:
        raise
    except _PYPDF_FAILURES:
        return None


def _joined(pages: Iterable[str], bounds: Bounds) -> str:
    """Pages to a text; no more of them are read than may be.

    Raises:
        Unprocessable: `too_much_text`.
    """
    read, left = [], bounds.max_characters
    for page in pages:
        read.append(clean(page))
        left -= len(read[-1])
        if left < 0:
            raise Unprocessable("too_much_text", TOO_MUCH_TEXT)
    return "\n\n".join(read)


def _refuse_many_pages(count: int, bounds: Bounds) -> None:
    if count > bounds.max_pages:
        raise Unprocessable(
            "too_many_pages",
            f"The PDF has {count} pages; at most EXTRACTION_MAX_PAGES ({bounds.max_pages}) are read; split it.",
        )


def _open_with_pypdf(content: bytes) -> pypdf.PdfReader:
    reader = pypdf.PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unprocessable("encrypted_file", _ENCRYPTED)
    return reader


def _read_with_kreuzberg(content: bytes, media_type: str) -> str:
    config = kreuzberg.ExtractionConfig(use_cache=False)
    try:
        text = kreuzberg.extract_bytes_sync(content, media_type, config=config).content
    except kreuzberg.KreuzbergError as exc:
        if "password" in str(exc).lower() or "encrypted" in str(exc).lower():
            raise Unprocessable("encrypted_file", _ENCRYPTED_DOCUMENT) from exc
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise Unprocessable("unreadable_file", f"The document cannot be read: {reason}") from exc
    return _IMAGE_IN_TEXT.sub(r"\1", text)


def _as_utf8(page: bytes) -> bytes:
    """An HTML page in UTF-8, which is all that its parser reads, from the encoding that it declares."""
    declared = _CHARSET.search(page[:_HEAD_BYTES])
    try:
        page.decode()
    except UnicodeDecodeError:
        try:
            encoding = codecs.lookup(declared[1].decode("ascii") if declared else "").name
            text = page.decode("cp1252" if encoding in _MEANING_WINDOWS_1252 else encoding)
        except (LookupError, UnicodeError):
            text = decode(page)
        return text.encode("utf-8", "replace")
    return page
