"""A kind of fault: what it does, and what may come of it besides work that goes on as promised."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.harness import Harness


@dataclass(frozen=True)
class Fault:
    """`may` holds words of `tests.faults.promises`: REFUSED, REPEATED, LOST, API_LOST."""

    inject: Callable[[Harness], None]
    may: frozenset[str]

    @property
    def name(self) -> str:
        return self.inject.__name__


def faults(*injections: Callable[[Harness], None], may: tuple[str, ...] = ()) -> tuple[Fault, ...]:
    """Kinds of which the same may come."""
    return tuple(Fault(each, frozenset(may)) for each in injections)
