"""Reading a 200 of POST /v1/embeddings with suspicion: servers that call themselves compatible answer all sorts."""

import base64
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.embedding.faults import Fault
from app.embedding.values import EmbeddingCredential, EmbeddingModel, Halves, Vectors, to_halves

MOST_TOKENS = 1 << 31
"""Nobody bills more for one request; sums of it still fit into a bigint."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The vectors of one request, in the order of its texts."""

    vectors: Halves  # (texts, dimensions), all finite as they came
    billed_tokens: int


class _GarbageError(Exception):
    """The answer is not what the API's contract promises; the message says in what."""


def read_answer(
    body: bytes, *, texts: int, model: EmbeddingModel, credential: EmbeddingCredential
) -> Answer | Fault:
    """The answer to a request of `texts` texts, or the fault that makes it useless.

    A wrong width is a refusal, because the model will not change; anything else may have been an accident.
    """
    where = f"{model.name} at {credential.host}"
    try:
        answer, entries = _entries(body, texts=texts)
        vectors = _stacked([_row(entry) for entry in entries])
    except _GarbageError as garbage:
        return Fault("passing", f"The API for {where} gave a useless answer: {garbage}.")
    if vectors.shape[1] != model.dimensions:
        sentence = (
            f"{where} answers vectors of {vectors.shape[1]} dimensions where {model.dimensions} are expected; "
            "use a vector store with the model's own dimensions, or another model."
        )
        return Fault("lane", sentence, failure="dimension_mismatch")
    return Answer(vectors, _billed_tokens(answer))


def _entries(body: bytes, *, texts: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(the whole answer, its entries by index)."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise _GarbageError("no JSON; is the base URL that of an embeddings API?") from None
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _GarbageError("no list of embeddings")
    if len(entries) != texts:
        raise _GarbageError(f"{len(entries)} embeddings for {texts} texts")
    # Servers that leave out the index answer in order.
    try:
        by_index = {entry.get("index", position): entry for position, entry in enumerate(entries)}
        return answer, [by_index[index] for index in range(texts)]
    except (KeyError, TypeError):  # a hole among them; or one that is a list or an object
        raise _GarbageError("indexes that do not match the texts") from None


def _row(entry: dict[str, Any]) -> Vectors:
    """One vector, from base64 (little-endian float32, as asked for) or from numbers (as some answer anyway)."""
    embedding = entry.get("embedding")
    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        row = np.asarray(embedding, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):  # no base64, odd bytes, words, holes or huge integers
        raise _GarbageError("an embedding that cannot be read") from None
    if row.ndim != 1:
        raise _GarbageError("an embedding that is not a vector")
    return row


def _stacked(rows: list[Vectors]) -> Halves:
    if len({row.shape for row in rows}) > 1 or not rows[0].size:
        raise _GarbageError("vectors of no or of several lengths")
    vectors = np.stack(rows)
    if not np.isfinite(vectors).all():
        raise _GarbageError("numbers that are not finite")
    halves = to_halves(vectors)
    if not halves.any(axis=1).all():
        raise _GarbageError("a vector of nothing but zeros, which has no direction")
    return halves


def _billed_tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage")
    tokens = usage.get("prompt_tokens", usage.get("total_tokens")) if isinstance(usage, dict) else None
    return min(max(tokens, 0), MOST_TOKENS) if isinstance(tokens, int) else 0
