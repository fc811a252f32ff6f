"""Decoding, cleaning and cutting text."""

import re
from collections.abc import Sequence
from functools import lru_cache

from semantic_text_splitter import TextSplitter

from app.extraction.values import Chunking

_TOKENIZER_MODEL = "text-embedding-3-small"
"""Names cl100k_base, which the splitter carries in itself: no download."""

_CONTROLS = {code: " " for code in (*range(32), *range(127, 160)) if code not in (9, 10)} | {0: None}
_LINE_ENDS = dict.fromkeys((0x0D, 0x85, 0x2028, 0x2029), "\n")
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_CLEANING = str.maketrans(_CONTROLS | _LINE_ENDS | _SURROGATES)
_UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n){2,}")
_WINDOW_CHARACTERS_A_TOKEN = 64
_MOST_WINDOW_CHARACTERS = 65_536


def decode(content: bytes) -> str:
    """Text from bytes: by byte order mark, as UTF-8, else as Windows-1252, which reads anything.

    UTF-8 with a few broken bytes stays UTF-8: it must not be garbled as a whole.
    """
    if content.startswith(b"\xef\xbb\xbf"):
        return content[3:].decode("utf-8", "replace")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    right = len(text) - len(text.encode("ascii", "ignore")) - broken
    return text if right >= broken else content.decode("cp1252", "replace")


def clean(text: str) -> str:
    """Text that Postgres takes and people can read: no NUL, no lone surrogates, no control characters.

    Of blank lines in a row two stay: nobody pays for more, and the splitter takes minutes for thousands.
    """
    if _UNCLEAN.search(text) is not None:  # seldom, and translating costs 15 times as much as looking
        text = text.replace("\r\n", "\n").translate(_CLEANING)
    return _BLANK_LINES.sub("\n\n\n", text)


def cut(text: str, chunking: Chunking) -> Sequence[str]:
    """Chunks of at most `max_chunk_size_tokens` tokens at the best boundaries; none is blank.

    Long texts are cut window by window, each window's last chunk again with the next one: the splitter's
    time is quadratic in the length of a line.
    """
    splitter = splitter_for(chunking)
    window = min(_WINDOW_CHARACTERS_A_TOKEN * chunking.max_chunk_size_tokens, _MOST_WINDOW_CHARACTERS)
    chunks: list[str] = []
    start = 0
    while start < len(text):
        found = splitter.chunk_indices(text[start : start + window])
        is_last_window = start + window >= len(text)
        if is_last_window or len(found) < 2:  # noqa: PLR2004 - one chunk fills the window
            chunks += [chunk for _, chunk in found]
            start += window
        else:
            chunks += [chunk for _, chunk in found[:-1]]
            start += found[-1][0]
    return [chunk for chunk in chunks if chunk.strip()]


@lru_cache(maxsize=16)
def splitter_for(chunking: Chunking) -> TextSplitter:
    """A splitter; kept, because making one takes 40 ms."""
    return TextSplitter.from_tiktoken_model(
        _TOKENIZER_MODEL, chunking.max_chunk_size_tokens, overlap=chunking.chunk_overlap_tokens
    )
