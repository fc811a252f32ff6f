"""The built-in embedder: the mean of word-piece vectors, with the weights that the `wordllama` wheel brings.

Reads the wheel's two files itself and does not import the package, which would import `requests`, set up the root
logger, and pad each batch to its longest text: on two cores and texts of 30 to 550 words, that library's `embed`
does 0.6 to 2.6 MB/s in up to 600 MB; this does 7 MB/s in 150 MB, with the same vectors to float32 rounding.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from app.embedding.values import Vectors
from app.errors import Broken
from app.settings import LOCAL_DIMENSIONS

PIECE_CHARACTERS = 128 * 1024  # about 20 ms of work, so that calls take turns and a cancelled one ends soon
WINDOW_CHARACTERS = 32 * 1024  # longer texts are tokenized window by window, for turns among rayon's threads


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    tokenizer: Tokenizer
    table: Vectors  # (vocabulary, LOCAL_DIMENSIONS)


class LocalEmbeddings:
    """The built-in model; loads its weights when they are first needed, and never works on the event loop."""

    def __init__(self, *, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="embedding")
        self._loading = asyncio.Lock()
        self._weights: _Weights | None = None

    async def aclose(self) -> None:
        """Wait for the pieces in work and end the threads."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of `texts` (none empty), shape (texts, LOCAL_DIMENSIONS)."""
        loop = asyncio.get_running_loop()
        async with self._loading:
            if self._weights is None:
                self._weights = await loop.run_in_executor(self._threads, _load)
        vectors = np.empty((len(texts), LOCAL_DIMENSIONS), dtype=np.float32)
        for piece in _pieces(texts):
            vectors[piece] = await loop.run_in_executor(
                self._threads, _embed, self._weights, texts[piece.start : piece.stop]
            )
        return vectors


def _load() -> _Weights:
    package = find_spec("wordllama")
    if package is None or not package.submodule_search_locations:
        raise Broken("The built-in embedder needs the package wordllama; install it, or use another engine.")
    folder = Path(package.submodule_search_locations[0])
    with safe_open(folder / "weights" / f"l2_supercat_{LOCAL_DIMENSIONS}.safetensors", framework="np") as file:
        table = np.ascontiguousarray(file.get_tensor("embedding.weight"), dtype=np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _Weights(tokenizer, table)


def _pieces(texts: Sequence[str]) -> Iterator[slice]:
    """Runs of texts of about PIECE_CHARACTERS, at least one text each."""
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and characters + len(text) > PIECE_CHARACTERS:
            yield slice(start, index)
            start, characters = index, 0
        characters += len(text)
    yield slice(start, len(texts))


def _embed(weights: _Weights, texts: Sequence[str]) -> Vectors:
    windows = [
        (row, text[start : start + WINDOW_CHARACTERS])
        for row, text in enumerate(texts)
        for start in range(0, len(text), WINDOW_CHARACTERS)
    ]
    vectors = np.zeros((len(texts), LOCAL_DIMENSIONS), dtype=np.float32)
    encodings = weights.tokenizer.encode_batch_fast([text for _, text in windows], add_special_tokens=False)
    for (row, _), encoding in zip(windows, encodings, strict=True):
        vectors[row] += np.take(weights.table, encoding.ids, axis=0).sum(axis=0)
    # The mean and the sum have one direction, so the norm makes them equal.
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors
