"""Texts in, vectors out: providers, request packing, and a limiter per embedding key."""

from app.embedding.embedder import Embedder
from app.embedding.large_files import LargeFiles
from app.embedding.values import Embedded, EmbeddingCredential, EmbeddingModel

__all__ = ["Embedded", "Embedder", "EmbeddingCredential", "EmbeddingModel", "LargeFiles"]
