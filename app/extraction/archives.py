"""What office documents, books and archives unpack to, read from their directory before anything is unpacked."""

import io
import zipfile

from app.errors import Unprocessable

_MOST_ENTRIES = 20_000
_MOST_RATIO = 200
_FREE_BYTES = 64 * 1024 * 1024
"""Below this any ratio is fine: empty tables compress a thousandfold."""


def refuse_bombs(content: bytes, *, max_unpacked_bytes: int) -> None:
    """Pass a ZIP archive that unpacks to what can be read, and whatever is none.

    A directory may lie; the limit on the parser's memory holds all the same.

    Raises:
        Unprocessable: `unpacks_too_large`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # the parser will say what is wrong with it
        return
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > _MOST_ENTRIES:
        raise Unprocessable(
            "unpacks_too_large", f"The document holds {len(entries)} parts; at most {_MOST_ENTRIES} are read."
        )
    if unpacked > max_unpacked_bytes or (unpacked > _FREE_BYTES and unpacked > _MOST_RATIO * len(content)):
        raise Unprocessable(
            "unpacks_too_large",
            f"The document of {len(content)} bytes unpacks to {unpacked} bytes, more than can be read; "
            "split it, or raise EXTRACTION_MEMORY_BYTES.",
        )
