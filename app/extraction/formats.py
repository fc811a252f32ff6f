"""Which format a file is in: its content decides, the extension where content does not tell."""

import io
import zipfile
import zlib
from pathlib import Path, PurePath

PLAIN = "text/plain"
PDF = "application/pdf"
HTML = "text/html"
MAIL = "message/rfc822"
RTF = "application/rtf"
ENCRYPTED_OFFICE = "application/encrypted"
SUPPORTED = "PDF, DOCX, PPTX, XLSX, ODT, ODS, ODP, EPUB, RTF, HTML, EML, DOC, PPT, XLS and any plain text"

_OPENXML = "application/vnd.openxmlformats-officedocument."
_BY_EXTENSION = {
    ".pdf": PDF,
    ".docx": f"{_OPENXML}wordprocessingml.document",
    ".pptx": f"{_OPENXML}presentationml.presentation",
    ".xlsx": f"{_OPENXML}spreadsheetml.sheet",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".epub": "application/epub+zip",
    ".rtf": RTF,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".eml": MAIL,
    ".msg": "application/vnd.ms-outlook",
    ".doc": "application/msword",
    ".ppt": "application/vnd.ms-powerpoint",
    ".xls": "application/vnd.ms-excel",
}
_ZIP_FOLDERS = {"word/": ".docx", "ppt/": ".pptx", "xl/": ".xlsx"}
_ZIP, _OLE2 = b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_STREAM = "EncryptedPackage".encode("utf-16-le")
"""The stream of an OLE2 container that holds an encrypted OOXML package (MS-OFFCRYPTO 2.1.1)."""
_OLE2_TYPES = (".doc", ".ppt", ".xls", ".msg")
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_MAIL_HEADERS = (b"received:", b"return-path:", b"mime-version:", b"from:", b"delivered-to:", b"message-id:")
_SNIFFED_BYTES = 1024
_MOST_INSPECTED_BYTES = 64 * 1024 * 1024
"""The directory of a larger archive is not read here, outside of the guarded children: its extension decides."""


def media_type_of(path: Path, filename: str) -> str | None:
    """The media type of a stored file; as `supported_media_type`, without reading more than is needed."""
    with path.open("rb") as source:
        head = source.read(_SNIFFED_BYTES)
        if head.startswith((_ZIP, _OLE2)) and path.stat().st_size <= _MOST_INSPECTED_BYTES:
            head += source.read()
    return supported_media_type(filename, head)


def supported_media_type(filename: str, content: bytes) -> str | None:
    """The media type of a file from its name and its content, or the first few KB of it; None if unsupported."""
    head = content[:_SNIFFED_BYTES]
    extension = PurePath(filename.lower()).suffix
    if b"%PDF-" in head:
        return PDF
    if head.startswith(_ZIP):
        return _of_zip(content, extension)
    if head.startswith(_OLE2):
        if _ENCRYPTED_STREAM in content:
            return ENCRYPTED_OFFICE
        return _BY_EXTENSION[extension] if extension in _OLE2_TYPES else None
    if head.lstrip().startswith(b"{\\rtf"):
        return RTF
    return _of_text(head, extension)


def _of_zip(content: bytes, extension: str) -> str | None:
    """By its entries if the whole archive is here, else by extension."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            if "mimetype" in names and archive.getinfo("mimetype").file_size < _SNIFFED_BYTES:
                declared = archive.read("mimetype").decode("ascii", "replace").strip()
                if declared in _BY_EXTENSION.values():
                    return declared
            for folder, kind in _ZIP_FOLDERS.items():
                if any(name.startswith(folder) for name in names):
                    return _BY_EXTENSION[kind]
            return None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError):
        return _BY_EXTENSION.get(extension)


def _of_text(head: bytes, extension: str) -> str | None:
    if not is_text(head):
        return None
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) or extension in {".html", ".htm", ".xhtml"}:
        return HTML
    if extension == ".eml" or (not extension and start.startswith(_MAIL_HEADERS)):
        return MAIL
    return PLAIN


def is_text(head: bytes) -> bool:
    """Whether these first bytes can be text: a byte order mark, or no NUL and few control characters."""
    if head.startswith(_BYTE_ORDER_MARKS):
        return True
    if b"\x00" in head:
        return False
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)  # noqa: PLR2004 - C0 ends at 32
    return controls * 20 <= len(head)
