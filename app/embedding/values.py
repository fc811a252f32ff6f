from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from app.settings import LOCAL_MODEL

Vectors = NDArray[np.float32]
"""Embeddings, one row a text: shape (texts, dimensions)."""
Halves = NDArray[np.float16]
"""The same as they are stored and searched for; infinite where a component does not fit: the codec refuses it."""


def to_halves(vectors: Vectors) -> Halves:
    """In half the memory: a provider may be faster than Postgres, and then all vectors of a book wait here."""
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16)


@dataclass(frozen=True, slots=True)
class EmbeddingCredential:
    """What a call to an embeddings API is made with; its repr never shows the secret."""

    key_id: str  # the embedding key's id (uuid text) or "server"; with base_url, whose limits apply
    base_url: str = field(repr=False)  # may carry a user and password
    secret: SecretStr  # empty for servers that ask for no key

    @property
    def host(self) -> str:
        """Host and port of the API, the part of its address that may be shown to anyone."""
        return urlsplit(self.base_url).netloc.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """A model and the width that a vector store fixed for it."""

    name: str
    dimensions: int

    @property
    def is_local(self) -> bool:
        """Whether the built-in model is meant, which needs no credential."""
        return self.name == LOCAL_MODEL


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """The vectors of some of a call's texts."""

    rows: Sequence[int]  # which texts
    vectors: Halves  # (rows, dimensions)
    billed_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The vectors of the texts of one call, in the order of the texts."""

    vectors: Halves  # (texts, dimensions)
    billed_tokens: int  # as the provider counted them; 0 for the built-in model or a silent provider
