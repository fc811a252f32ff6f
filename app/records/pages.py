"""Cursor pages as OpenAI's lists have them: `limit`, `order`, `after`, `before`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar
from uuid import UUID

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list: up to `limit` rows beyond the cursor; ids are UUIDv7, so they sort by creation."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: UUID | None = None
    before: UUID | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, in the order asked for."""

    rows: Sequence[T]
    has_more: bool


def page_clause(request: PageRequest, column: str, first_parameter: int) -> tuple[str, list[object]]:
    """SQL that narrows, orders and limits by `column`, with its parameters from `$first_parameter` on.

    `column` is ours, never a client's. With `before` the rows next to the cursor are wanted, so the scan runs
    backwards; `make_page` turns them round.
    """
    ascending = (request.order == "asc") != _runs_backwards(request)
    conditions, parameters = "", list[object]()
    for cursor, beyond in (
        (request.after, request.order == "asc"),
        (request.before, request.order == "desc"),
    ):
        if cursor is not None:
            parameters.append(cursor)
            position = first_parameter + len(parameters) - 1
            conditions += f" AND {column} {'>' if beyond else '<'} ${position}"
    parameters.append(request.limit + 1)
    limit = f"LIMIT ${first_parameter + len(parameters) - 1}"
    return f"{conditions} ORDER BY {column} {'ASC' if ascending else 'DESC'} {limit}", parameters


def make_page(request: PageRequest, rows: Sequence[T]) -> Page[T]:
    """The page from up to `limit + 1` fetched rows."""
    kept = list(rows[: request.limit])
    if _runs_backwards(request):
        kept.reverse()
    return Page(kept, len(rows) > request.limit)


def _runs_backwards(request: PageRequest) -> bool:
    return request.before is not None and request.after is None
