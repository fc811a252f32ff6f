"""Identifiers: UUIDv7 inside, OpenAI-style `prefix_<32 hex>` outside."""

import os
import time
from contextlib import suppress
from typing import Literal
from uuid import UUID

from app.errors import NotFound

Kind = Literal["file", "vs", "vsfb", "ing", "user", "group", "token", "ekey"]

_NAMES: dict[Kind, str] = {
    "file": "file",
    "vs": "vector store",
    "vsfb": "file batch",
    "ing": "ingestion",
    "user": "user",
    "group": "group",
    "token": "API key",
    "ekey": "embedding key",
}


def new_id() -> UUID:
    """A new UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then random; so ids sort by creation."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    value = value & ~(0xF << 76) | 7 << 76
    return UUID(int=value & ~(0b11 << 62) | 0b10 << 62)


def to_wire(kind: Kind, value: UUID) -> str:
    """The id as clients see it, for example `vs_0198…`."""
    return f"{kind}_{value.hex}"


def from_wire(kind: Kind, text: str) -> UUID:
    """The UUID behind a client's id, which has one spelling, so that equal ids are equal texts.

    Raises:
        NotFound: the text is not an id of this kind; such an object cannot exist.
    """
    _, _, digits = text.partition("_")
    with suppress(ValueError):
        value = UUID(hex=digits)
        if to_wire(kind, value) == text:
            return value
    raise NotFound(f"No {_NAMES[kind]} found with id '{text[:80]}'.", code="not_found")
