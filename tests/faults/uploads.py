"""The load: batch uploads of texts of many sizes, some documents, and one text that needs cleaning."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = Path(__file__).resolve().parents[2].joinpath("LICENSE").read_text().split()
SIZES = (20, 500, 3000)
LARGE = (6_000,)
"""Words; such a file is on its way for long enough to be met there."""
FILES_AN_UPLOAD = 16
NUL = "nul.txt"
"""A file of each upload: its text, always the same, needs cleaning."""


def draw_upload(
    dice: random.Random, sizes: Sequence[int], *, documents: Sequence[tuple[str, bytes]], stores: list[str]
) -> dict[str, Any]:
    """An upload as httpx takes it: texts of so many words, no two alike, and these documents."""
    files: list[tuple[str, tuple[str, str | bytes]]] = [
        ("files", (f"{number}.txt", " ".join(dice.choices(WORDS, k=dice.choice(sizes)))))
        for number in range(FILES_AN_UPLOAD - 1 - len(documents))
    ]
    files += [("files", each) for each in documents]
    files.append(("files", (NUL, "words and more words. " * 4000 + "\x00 far behind.")))
    return {"data": {"vector_store_ids": stores}, "files": files}


def texts_of(upload: dict[str, Any]) -> dict[str, str]:
    """Its texts that are in no other upload, by their names."""
    return {name: text for _, (name, text) in upload["files"] if isinstance(text, str) and name != NUL}
