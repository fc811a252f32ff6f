"""Documents to chunks of text: formats, parsers in guarded child processes, chunking."""

from app.extraction.extractor import Extractor
from app.extraction.formats import supported_media_type
from app.extraction.values import Chunking, ExtractedDocument, ExtractionLimits, TextChunk

__all__ = [
    "Chunking",
    "ExtractedDocument",
    "ExtractionLimits",
    "Extractor",
    "TextChunk",
    "supported_media_type",
]
