"""What extraction is asked for and what it yields."""

from dataclasses import dataclass

from app.errors import BadRequest

TOO_MUCH_TEXT = "The document holds more text than EXTRACTION_MAX_CHARACTERS allows; split it."
NOT_FENCED_IN = 71
"""The status of a child that the system did not let limit itself; `EX_OSERR` of sysexits.h."""
_LEAST_TOKENS, _MOST_TOKENS = 100, 4096


@dataclass(frozen=True, slots=True)
class Chunking:
    """How a text is cut: chunks of at most so many cl100k tokens, each repeating the end of the one before.

    The defaults are OpenAI's `auto`, the limits its `static` chunking strategy's.

    Raises:
        BadRequest: out of the limits; names the value.
    """

    max_chunk_size_tokens: int = 800
    chunk_overlap_tokens: int = 400

    def __post_init__(self) -> None:
        if not _LEAST_TOKENS <= self.max_chunk_size_tokens <= _MOST_TOKENS:
            raise BadRequest(
                f"max_chunk_size_tokens must lie between {_LEAST_TOKENS} and {_MOST_TOKENS}, "
                f"not {self.max_chunk_size_tokens}.",
                param="chunking_strategy",
            )
        if not 0 <= self.chunk_overlap_tokens <= self.max_chunk_size_tokens // 2:
            raise BadRequest(
                "chunk_overlap_tokens must lie between 0 and half of max_chunk_size_tokens "
                f"({self.max_chunk_size_tokens // 2}), not {self.chunk_overlap_tokens}.",
                param="chunking_strategy",
            )


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of a document's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ExtractedDocument:
    """A document's text, cut; `characters` counts the text before cutting."""

    chunks: tuple[TextChunk, ...]
    characters: int
    media_type: str


@dataclass(frozen=True, slots=True)
class ExtractionLimits:
    """What a parser may take for one file, and how many run at once."""

    timeout_seconds: float
    memory_bytes: int
    max_characters: int
    concurrency: int
    max_pages: int = 10_000
    max_tokens: int = 10_000_000
