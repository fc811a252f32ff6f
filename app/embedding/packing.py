"""Who waits for which vectors, and which texts leave together. Nothing here touches the network or a clock."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from app.embedding.answers import Answer
from app.embedding.values import Embedded
from app.errors import SluiceError, Unprocessable

MAX_TOKENS = 250_000  # of the 300,000 that OpenAI allows a request
BYTES_PER_TOKEN = 2  # low on purpose: English has 4, the worst scripts about 2
TURN_TEXTS = 32  # how many texts of one call leave before another call has its turn


def estimated_tokens(texts: Sequence[str]) -> list[int]:
    """A number of tokens for each text that its real number hardly ever exceeds.

    Raises:
        Unprocessable: `embedding_refused` for an empty text, or one that holds half a surrogate pair.
    """
    try:
        sizes = [len(text.encode()) for text in texts]
    except UnicodeEncodeError:
        raise Unprocessable("embedding_refused", "A text is not valid Unicode and cannot be embedded.") from None
    if 0 in sizes:
        raise Unprocessable("embedding_refused", "An empty text cannot be embedded.")
    return [size // BYTES_PER_TOKEN + 1 for size in sizes]


class Call:
    """The texts of one `embed`, which may leave in several requests and share them with other calls."""

    def __init__(self, texts: Sequence[str], *, dimensions: int) -> None:
        self.texts = texts
        self.tokens = estimated_tokens(texts)
        self.sent = 0  # the first so many texts have left
        self.embedded: asyncio.Future[Embedded] = asyncio.get_running_loop().create_future()
        self._vectors = np.empty((len(texts), dimensions), dtype=np.float32)
        self._missing = len(texts)
        self._billed_tokens = 0

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: answered, failed or cancelled."""
        return self.embedded.done()

    def fill(self, part: "Part", answer: Answer, *, at: int, billed_tokens: int) -> None:
        """Take this call's rows, from row `at`, out of the answer to a request that it shared."""
        if self.is_over:
            return
        self._vectors[part.start : part.stop] = answer.vectors[at : at + len(part)]
        self._missing -= len(part)
        self._billed_tokens += billed_tokens
        if not self._missing:
            self.embedded.set_result(Embedded(self._vectors, self._billed_tokens))

    def fail(self, error: SluiceError) -> None:
        """End the call, unless it is over already."""
        if not self.is_over:
            self.embedded.set_exception(error)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A run of texts of one call."""

    call: Call
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> int:
        """The estimate for these texts."""
        return sum(self.call.tokens[self.start : self.stop])


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """What one request carries."""

    parts: tuple[Part, ...]
    retries: int = 0
    first_tried_at: float | None = None  # on the dispatcher's clock

    @property
    def size(self) -> int:
        """How many texts."""
        return sum(map(len, self.parts))

    @property
    def texts(self) -> list[str]:
        """The texts, part after part."""
        return [text for part in self.parts for text in part.call.texts[part.start : part.stop]]

    @property
    def calls(self) -> list[Call]:
        """Those who wait for this request, each once."""
        return list(dict.fromkeys(part.call for part in self.parts))

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(call.is_over for call in self.calls)

    def settle(self, answer: Answer) -> None:
        """Give each call its vectors, and its share of the bill by estimated size."""
        shares = shared(answer.billed_tokens, [part.tokens for part in self.parts])
        row = 0
        for part, billed_tokens in zip(self.parts, shares, strict=True):
            part.call.fill(part, answer, at=row, billed_tokens=billed_tokens)
            row += len(part)

    def by_call(self) -> list["Pack"]:
        """A request for each call that still waits, so that a bad text hurts its own call only."""
        return [
            replace(self, parts=tuple(part for part in self.parts if part.call is call))
            for call in self.calls
            if not call.is_over
        ]

    def halves(self) -> list["Pack"]:
        """Two requests of about half the texts; only for two texts or more."""
        runs = [Part(part.call, index, index + 1) for part in self.parts for index in range(part.start, part.stop)]
        middle = len(runs) // 2
        return [replace(self, parts=tuple(_joined(half))) for half in (runs[:middle], runs[middle:])]


def shared(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights` (positive) into integers that add up to it."""
    marks = [total * mark // sum(weights) for mark in accumulate(weights, initial=0)]
    return [after - before for before, after in pairwise(marks)]


def _joined(parts: Iterable[Part]) -> list[Part]:
    """The parts, with neighbours of one call made one."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and last.call is part.call and last.stop == part.start:
            joined[-1] = Part(part.call, last.start, part.stop)
        else:
            joined.append(part)
    return joined


class PackQueue:
    """The calls of one credential and model whose texts have not all left."""

    def __init__(self, *, batch_size: int) -> None:
        self._batch_size = batch_size
        self._calls: deque[Call] = deque()
        self._returned: deque[Pack] = deque()

    def __bool__(self) -> bool:
        return bool(self._calls or self._returned)

    def add(self, call: Call) -> None:
        """Queue a call behind the others."""
        self._calls.append(call)

    def put_back(self, pack: Pack) -> None:
        """Queue a request that must be made again, before everything new."""
        self._returned.append(pack)

    def take(self) -> Pack | None:
        """The next request, at most `batch_size` texts and MAX_TOKENS; None if nobody waits any more.

        Calls take turns of TURN_TEXTS, so that a search does not stand behind a whole book.
        """
        while self._returned:
            pack = self._returned.popleft()
            if not pack.is_abandoned:
                return pack
        parts: list[Part] = []
        texts_left, tokens_left = self._batch_size, MAX_TOKENS
        while self._calls and texts_left:
            call = self._calls[0]
            if call.is_over:
                self._calls.popleft()
                continue
            part = _cut(call, texts=min(texts_left, TURN_TEXTS), tokens=tokens_left)
            if not part:
                if parts:
                    break
                part = Part(call, call.sent, call.sent + 1)  # too long for any request: let the API say so
            parts.append(part)
            call.sent = part.stop
            texts_left -= len(part)
            tokens_left -= part.tokens
            self._calls.popleft()
            if call.sent < len(call.texts):
                self._calls.append(call)
        return Pack(tuple(_joined(parts))) if parts else None

    def drain(self) -> list[Call]:
        """Everyone who waits here; the queue is empty then."""
        waiting = [*self._calls, *(call for pack in self._returned for call in pack.calls)]
        self._calls.clear()
        self._returned.clear()
        return waiting


def _cut(call: Call, *, texts: int, tokens: int) -> Part:
    """The next texts of a call that fit, perhaps none of them."""
    stop = call.sent
    while stop < len(call.texts) and stop - call.sent < texts and call.tokens[stop] <= tokens:
        tokens -= call.tokens[stop]
        stop += 1
    return Part(call, call.sent, stop)
