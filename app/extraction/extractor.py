"""Documents to chunks of text."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from app.errors import Unprocessable
from app.extraction import sandbox
from app.extraction.formats import PLAIN, SUPPORTED, media_type_of, what_is_seen
from app.extraction.guard import GuardedParser
from app.extraction.texts import clean, cut, decode
from app.extraction.values import Chunking, ExtractedDocument, ExtractionLimits, TextChunk

logger = structlog.stdlib.get_logger(__name__)

_SMALL_BYTES = 16 * 1024
"""Plain text up to here is cut in a thread, which saves the fork; the splitter releases the interpreter's lock.

No limit on time holds there: the worst that is known takes a second at this length, 16 times that at four times it.
"""


class Extractor:
    """Reads documents within limits; use as an async context manager, one per event loop."""

    def __init__(self, limits: ExtractionLimits, *, zygote: str = "app.extraction.zygote") -> None:
        """`zygote` names the module that parses; tests put a worse one there."""
        self._parser = GuardedParser(limits, zygote)
        self._limits = limits

    async def __aenter__(self) -> Self:
        if lacks := sandbox.missing():
            logger.warning("the kernel does not fence parsers in", lacks=lacks)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._parser.close()

    @property
    def zygote_pid(self) -> int | None:
        """The process whose children parse, once there is one."""
        return self._parser.zygote_pid

    async def extract(
        self, source: Path, *, filename: str, media_type: str | None, chunking: Chunking
    ) -> ExtractedDocument:
        """The document's text in chunks; at least one.

        `media_type` is what was found at upload; the whole content is looked at again here, because an
        archive's kind stands at its end. Small plain texts are cut in a thread, all else in a guarded child.

        Raises:
            Unprocessable: the document is at fault; the code and the sentence say why.
        """
        found = await asyncio.to_thread(media_type_of, source, filename) or media_type
        if found is None:
            seen = await asyncio.to_thread(what_is_seen, source)
            raise Unprocessable("unsupported_file", f"'{filename}' is {seen}; supported are {SUPPORTED}.")
        if found == PLAIN and (await asyncio.to_thread(source.stat)).st_size <= _SMALL_BYTES:
            characters, chunks = await asyncio.to_thread(_cut_small, source, chunking)
        else:
            answer = await self._parser.parse(source, found, chunking)
            characters, chunks = answer.characters, answer.chunks
        if not chunks:
            raise Unprocessable("empty_text", f"'{filename}' holds no text.")
        most_tokens = sum(min(len(chunk), chunking.max_chunk_size_tokens) for chunk in chunks)
        if most_tokens > self._limits.max_tokens:
            raise Unprocessable(
                "too_many_tokens",
                f"'{filename}' comes to some {most_tokens} tokens in {len(chunks)} chunks; at most "
                f"EXTRACTION_MAX_TOKENS ({self._limits.max_tokens}) are embedded: split it, or overlap less.",
            )
        return ExtractedDocument(tuple(TextChunk(chunk) for chunk in chunks), characters, found)


def _cut_small(source: Path, chunking: Chunking) -> tuple[int, list[str]]:
    text = clean(decode(source.read_bytes()))
    return len(text), list(cut(text, chunking))
