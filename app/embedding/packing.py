"""Who waits for which vectors, and which texts leave together. Nothing here touches the network or a clock."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np

from app.embedding.answers import Answer
from app.embedding.values import Answered
from app.errors import SluiceError, Unprocessable

MAX_TOKENS = 250_000  # of the 300,000 that OpenAI allows a request
BYTES_PER_TOKEN = 2  # low on purpose: English has 4, the worst scripts about 2
MOST_ANSWERED_AT_ONCE = 2048
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
    """The texts of one `embed`, which may leave in several requests and share them with other calls.

    After the first failure no more of them leave; those that are under way are waited for: they will be billed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.tokens = estimated_tokens(texts)
        self.sent = 0  # the first so many texts have left
        self._missing = len(texts)
        self._answered: deque[Answered] = deque()
        self._error: SluiceError | None = None
        self._requests = 0  # under way
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def is_over(self) -> bool:
        """Whether nothing more of it is to leave: answered, failed or given up."""
        return self._is_closed or self._error is not None or not self._missing

    async def answers(self) -> AsyncGenerator[Answered]:
        """The vectors as they arrive, each text's once; of what went wrong, the first error, at the end.

        What has come since the last time comes as one, as far as it is not too much to be worked on at once.
        """
        try:
            while self._missing or self._answered:
                if self._answered:
                    yield _as_one(_taken(self._answered, texts=MOST_ANSWERED_AT_ONCE))
                elif self._error is not None and not self._requests:
                    raise self._error
                else:
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Nobody waits any more."""
        self._is_closed = True

    @contextmanager
    def waiting_for_request(self) -> Iterator[None]:
        """The call does not end while the block, a request with texts of its, is under way."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            self._changed.set()

    def fill(self, part: "Part", answer: Answer, *, at: int, billed_tokens: int) -> None:
        """Take this call's rows, from row `at`, out of the answer to a request that it shared."""
        rows = range(part.start, part.stop)
        self._answered.append(Answered(rows, answer.vectors[at : at + len(part)], billed_tokens))
        self._missing -= len(part)
        self._changed.set()

    def fail(self, error: SluiceError) -> None:
        """Let the call end with an error, unless it has one already."""
        self._error = self._error or error
        self._changed.set()


def _taken(waiting: deque[Answered], *, texts: int) -> list[Answered]:
    """The first of them, and more while they are not more than `texts`."""
    taken = [waiting.popleft()]
    texts -= len(taken[0].rows)
    while waiting and len(waiting[0].rows) <= texts:
        texts -= len(waiting[0].rows)
        taken.append(waiting.popleft())
    return taken


def _as_one(answered: Sequence[Answered]) -> Answered:
    return Answered(
        [row for each in answered for row in each.rows],
        np.concatenate([each.vectors for each in answered]),
        sum(each.billed_tokens for each in answered),
    )


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

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """None of its calls ends while the block, the request, is under way."""
        with ExitStack() as stack:
            for call in self.calls:
                stack.enter_context(call.waiting_for_request())
            yield

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
