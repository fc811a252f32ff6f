"""Values that several requests share, with OpenAI's limits."""

import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
)

from app.extraction import Chunking

AUTO_MAX_TOKENS = 800
AUTO_OVERLAP_TOKENS = 400
_MOST_PAIRS = 16


class RequestBody(BaseModel):
    """A request's body: a parameter that we do not know is an error, not silence."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True)


def check_storable(text: str) -> str:
    """The text, if Postgres can store it.

    Raises:
        ValueError: it has NUL characters, or halves of surrogate pairs (JSON's escapes can make both).
    """
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("must not contain unpaired surrogates")
    return text


def _storable(number: float) -> float:
    try:
        finite = math.isfinite(float(number))
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError("must be a finite number that fits into a double")
    return number


def _at_most_16(pairs: dict[str, object]) -> dict[str, object]:
    if len(pairs) > _MOST_PAIRS:
        raise ValueError(f"must have at most {_MOST_PAIRS} keys")
    return pairs


Text = Annotated[str, AfterValidator(check_storable)]
Name = Annotated[Text, StringConstraints(max_length=256)]
Number = Annotated[StrictInt | StrictFloat, AfterValidator(_storable)]
PairKey = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
PairText = Annotated[Text, StringConstraints(max_length=512)]
Metadata = Annotated[dict[PairKey, PairText], AfterValidator(_at_most_16)]
Attributes = Annotated[dict[PairKey, PairText | Number | StrictBool], AfterValidator(_at_most_16)]
Status = Literal["in_progress", "completed", "failed", "cancelled"]


class AutoChunking(RequestBody):
    """The server chooses: chunks of 800 tokens that overlap by 400."""

    type: Literal["auto"]


class StaticSizes(RequestBody):
    """Sizes in tokens; `Chunking` checks their limits."""

    max_chunk_size_tokens: StrictInt
    chunk_overlap_tokens: StrictInt


class StaticChunking(RequestBody):
    """Chunk sizes that the client chose."""

    type: Literal["static"]
    static: StaticSizes


ChunkingStrategy = Annotated[AutoChunking | StaticChunking, Discriminator("type")]


class StaticChunkingAnswer(Answer):
    """How a file is chunked; `auto` is answered as the sizes it stands for, as OpenAI does."""

    type: Literal["static"] = "static"
    static: StaticSizes

    @classmethod
    def of(cls, max_tokens: int, overlap_tokens: int) -> "StaticChunkingAnswer":
        """The answer for sizes in tokens."""
        return cls(static=StaticSizes(max_chunk_size_tokens=max_tokens, chunk_overlap_tokens=overlap_tokens))


def chunking_of(strategy: AutoChunking | StaticChunking | None) -> Chunking:
    """The chunking that a strategy means; none means `auto`.

    Raises:
        BadRequest: sizes outside 100..4096, or an overlap of more than half.
    """
    if isinstance(strategy, StaticChunking):
        return Chunking(strategy.static.max_chunk_size_tokens, strategy.static.chunk_overlap_tokens)
    return Chunking(AUTO_MAX_TOKENS, AUTO_OVERLAP_TOKENS)


class FileCountsAnswer(Answer):
    """How many files are in which status."""

    in_progress: int
    completed: int
    failed: int
    cancelled: int
    total: int


def unix_seconds(moment: datetime) -> int:
    """A time as OpenAI writes it."""
    return int(moment.timestamp())


def maybe_unix_seconds(moment: datetime | None) -> int | None:
    """As `unix_seconds`, None for no time."""
    return None if moment is None else unix_seconds(moment)
