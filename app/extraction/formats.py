"""Which format a file is in: its content decides, the extension where content does not tell."""

import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path, PurePath

PLAIN = "text/plain"
PDF = "application/pdf"
HTML = "text/html"
MAIL = "message/rfc822"
RTF = "application/rtf"
ENCRYPTED_OFFICE = "application/encrypted"
SUPPORTED = "PDF, DOCX, PPTX, XLSX, ODT, ODS, ODP, EPUB, RTF, HTML, EML, MSG, DOC, PPT, XLS and any plain text"

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
_ZIP_END, _ZIP64_LOCATOR = b"PK\x05\x06", b"PK\x06\x07"
_RECORD_BYTES = 22
_MOST_END_BYTES = 20 + _RECORD_BYTES + 65_536
"""A ZIP64 locator, the record of an archive's end, and its comment."""
_ZIP, _OLE2 = b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, OverflowError)
_ENCRYPTED_STREAM = "EncryptedPackage".encode("utf-16-le")
"""The stream of an OLE2 container that holds an encrypted OOXML package (MS-OFFCRYPTO 2.1.1)."""
_OLE2_STREAMS = {
    ".doc": ("WordDocument",),
    ".ppt": ("PowerPoint Document",),
    ".xls": ("Workbook", "Book"),
    ".msg": ("__properties_version1.0",),
}
"""The stream that each kind of OLE2 container must hold (MS-DOC, MS-PPT, MS-XLS, MS-OXMSG)."""
_UTF8_MARK = b"\xef\xbb\xbf"
_BYTE_ORDER_MARKS = (_UTF8_MARK, b"\xff\xfe", b"\xfe\xff")
_PDF_ON_ITS_OWN_LINE = re.compile(rb"(?:^|[\r\n])%PDF-")
_SEEN = (
    (_ZIP, "a ZIP archive that is no document"),
    (_OLE2, "an OLE2 container that is no document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"RIFF", "sound, video or a WebP image"),
    (b"ID3", "MP3 sound"),
    (b"OggS", "Ogg sound or video"),
    (b"\x1aE\xdf\xa3", "Matroska video"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_MAIL_HEADERS = (b"received:", b"return-path:", b"mime-version:", b"from:", b"delivered-to:", b"message-id:")
_SNIFFED_BYTES = 1024
_MOST_INSPECTED_BYTES = 64 * 1024 * 1024
_MOST_DIRECTORY_BYTES = 4 * 1024 * 1024
"""The directory of a larger archive, or a longer one, is not read here, outside of the guarded children: the
extension decides. (A million entries took 13 s and 640 MB.)
"""


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
    if _is_pdf(head):
        return PDF
    if head.startswith(_ZIP):
        return _of_zip(content, extension)
    if head.startswith(_OLE2):
        return _of_ole2(content, extension)
    if head.lstrip().startswith(b"{\\rtf"):
        return RTF
    return _of_text(head, extension)


def what_is_seen(path: Path) -> str:
    """Of which kind an unsupported file seems to be, in words for a person."""
    with path.open("rb") as source:
        head = source.read(_SNIFFED_BYTES)
    for start, words in _SEEN:
        if head.startswith(start):
            return words
    return f"binary content that starts with {head[:4].hex(' ')}"


def _is_pdf(head: bytes) -> bool:
    """Readers allow junk before the header; but a text that mentions `%PDF-` in a sentence is a text."""
    if head.startswith(b"%PDF"):
        return True
    return b"%PDF-" in head and (not is_text(head) or _PDF_ON_ITS_OWN_LINE.search(head) is not None)


def _of_ole2(content: bytes, extension: str) -> str | None:
    """By the names in its directory if they are here, else by extension."""
    if _ENCRYPTED_STREAM in content:
        return ENCRYPTED_OFFICE
    if extension in _OLE2_STREAMS:
        return _BY_EXTENSION[extension]
    for kind, streams in _OLE2_STREAMS.items():
        # a directory entry is its name in UTF-16, filled up with zeros to 64 bytes (MS-CFB 2.6.1)
        if any(stream.encode("utf-16-le").ljust(64, b"\0") in content for stream in streams):
            return _BY_EXTENSION[kind]
    return None


def _of_zip(content: bytes, extension: str) -> str | None:
    """By its entries if the whole archive is here and as it should be, else by extension."""
    try:
        if not _has_short_directory(content):
            return _BY_EXTENSION.get(extension)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.replace("\\", "/") for name in archive.namelist()]  # some writers know no better
            declared = _declared_type(archive) if "mimetype" in names else None
            if declared in _BY_EXTENSION.values():
                return declared
            for folder, kind in _ZIP_FOLDERS.items():
                if any(name.startswith(folder) for name in names):
                    return _BY_EXTENSION[kind]
            return None
    except (*_DAMAGE, RuntimeError, ValueError):
        return _BY_EXTENSION.get(extension)


def _declared_type(archive: zipfile.ZipFile) -> str:
    """What the entry `mimetype` says.

    Raises:
        BadZipFile: it is not stored, as it must be (OpenDocument 1.3 part 2, 3.3; EPUB OCF 4.3): it may be a bomb.
    """
    if archive.getinfo("mimetype").compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile
    with archive.open("mimetype") as entry:
        return entry.read(_SNIFFED_BYTES).decode("ascii", "replace").strip()


def _has_short_directory(content: bytes) -> bool:
    """Whether the directory is short by the record that zipfile takes (APPNOTE.TXT 4.3.16)."""
    end = content[-_MOST_END_BYTES:]
    if _ZIP64_LOCATOR in end:  # it leads to another record
        return False
    last = end[-_RECORD_BYTES:]
    if not (last.startswith(_ZIP_END) and last.endswith(b"\0\0")):  # a comment follows
        last = end[max(0, end.rfind(_ZIP_END)) :]
    return int.from_bytes(last[12:16], "little") <= _MOST_DIRECTORY_BYTES


def _of_text(head: bytes, extension: str) -> str | None:
    if not is_text(head):
        return None
    start = head.removeprefix(_UTF8_MARK).lstrip().lower()
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
