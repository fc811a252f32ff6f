"""Decoding, cleaning and cutting text."""

from collections.abc import Sequence
from functools import lru_cache

from semantic_text_splitter import TextSplitter

from app.extraction.values import Chunking

_TOKENIZER_MODEL = "text-embedding-3-small"
"""Names cl100k_base, which the splitter carries in itself: no download."""

_CONTROLS = {code: " " for code in range(32) if code not in (9, 10)} | {0: None, 13: "\n", 127: " "}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_CLEANING = str.maketrans(_CONTROLS | _SURROGATES)


def decode(content: bytes) -> str:
    """Text from bytes: by byte order mark, as UTF-8, else as Windows-1252, which reads anything."""
    if content.startswith(b"\xef\xbb\xbf"):
        return content[3:].decode("utf-8", "replace")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def clean(text: str) -> str:
    """Text that Postgres takes and people can read: no NUL, no lone surrogates, no control characters."""
    return text.replace("\r\n", "\n").translate(_CLEANING)


def cut(text: str, chunking: Chunking) -> Sequence[str]:
    """Chunks of at most `max_chunk_size_tokens` tokens at the best boundaries; none is blank."""
    return [chunk for chunk in splitter_for(chunking).chunks(text) if chunk.strip()]


@lru_cache(maxsize=16)
def splitter_for(chunking: Chunking) -> TextSplitter:
    """A splitter; kept, because making one takes 40 ms."""
    return TextSplitter.from_tiktoken_model(
        _TOKENIZER_MODEL, chunking.max_chunk_size_tokens, overlap=chunking.chunk_overlap_tokens
    )
