"""Documents damaged in three ways, the same for the same seed."""

import random
from collections.abc import Callable


def truncated(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(1, max(2, len(content)))]


def flipped(content: bytes, dice: random.Random) -> bytes:
    """One byte in a thousand, at least one and at most a thousand, is another one."""
    damaged = bytearray(content)
    for _ in range(min(1000, 1 + len(content) // 1000)):
        damaged[dice.randrange(len(damaged))] = dice.randrange(256)
    return bytes(damaged)


def spliced(content: bytes, dice: random.Random) -> bytes:
    """A block stands a second time somewhere else."""
    start = dice.randrange(len(content))
    block = content[start : start + dice.randrange(1, 5000)]
    at = dice.randrange(len(content))
    return content[:at] + block + content[at:]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (truncated, flipped, spliced)
