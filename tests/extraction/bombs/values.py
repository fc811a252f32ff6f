from collections.abc import Callable, Mapping, Sequence

Make = Callable[[], bytes]
Bombs = Mapping[str, Sequence[Make]]
"""By suffix."""
