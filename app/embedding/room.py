"""How many files a key may have in work while its provider limits its rate: other keys need the slots too."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.embedding.limiter import KeyLimiter
from app.embedding.values import EmbeddingCredential
from app.errors import KeyBusy

SHORT_PAUSE_SECONDS = 3.0
"""A pause that a file may as well spend being read and cut."""


class Room:
    """The files that one process has in work, by the key that pays.

    A throttled key may have a quarter of `slots`, all throttled keys together half of them. What a key had in work
    when its provider first complained may stay; the embedder's patience ends that.
    """

    def __init__(self, *, slots: int, limiter_of: Callable[[EmbeddingCredential], KeyLimiter | None]) -> None:
        self._most_a_key = max(1, slots // 4)
        self._most_of_all = max(1, slots // 2)
        self._limiter_of = limiter_of
        self._files: Counter[EmbeddingCredential] = Counter()

    @contextmanager
    def take(self, credential: EmbeddingCredential) -> Iterator[None]:
        """Room for one file while the block runs.

        Raises:
            KeyBusy: the key is to pause, or it has its share.
        """
        self._check(credential)
        self._files[credential] += 1
        try:
            yield
        finally:
            self._files -= Counter({credential: 1})

    def _check(self, credential: EmbeddingCredential) -> None:
        limiter = self._limiter_of(credential)
        if limiter is None or not limiter.is_throttled:
            return
        pause_seconds = limiter.parked_seconds()
        if pause_seconds > SHORT_PAUSE_SECONDS:
            sentence = f"The API at {credential.host} told this key to pause for {pause_seconds:.0f} seconds."
            raise KeyBusy(sentence, retry_after_seconds=pause_seconds)
        of_all = sum(files for each, files in self._files.items() if self._is_throttled(each))
        if self._files[credential] >= self._most_a_key or of_all >= self._most_of_all:
            sentence = f"The API at {credential.host} limits this key's rate; the file waits for others to finish."
            raise KeyBusy(sentence, retry_after_seconds=pause_seconds)

    def _is_throttled(self, credential: EmbeddingCredential) -> bool:
        limiter = self._limiter_of(credential)
        return limiter is not None and limiter.is_throttled
