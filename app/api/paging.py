"""`limit`, `order`, `after` and `before` of OpenAI's lists."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar
from uuid import UUID

from fastapi import Depends, Query

from app.api.wire.pages import ListAnswer
from app.api.wire.values import Answer
from app.errors import BadRequest, NotFound
from app.ids import Kind, from_wire
from app.records.pages import Page, PageRequest

Row = TypeVar("Row")
Entry = TypeVar("Entry", bound=Answer)
Order = Literal["asc", "desc"]


def _cursor(kind: Kind, name: str, text: str | None) -> UUID | None:
    if text is None:
        return None
    try:
        return from_wire(kind, text)
    except NotFound as exc:
        raise BadRequest(f"'{name}' is not an id of this list.", param=name, code="invalid_cursor") from exc


def paged_by(kind: Kind, *, most: int = 100, usual: int = 20) -> Callable[..., PageRequest]:
    """A dependency: the part of a list of `kind` ids that the query asks for, `usual` entries unless it says."""

    def page_request(
        limit: Annotated[int, Query(ge=1, le=most)] = usual,
        order: Order = "desc",
        after: str | None = None,
        before: str | None = None,
    ) -> PageRequest:
        return PageRequest(limit, order, _cursor(kind, "after", after), _cursor(kind, "before", before))

    return page_request


FilePage = Annotated[PageRequest, Depends(paged_by("file", most=10_000, usual=10_000))]
StoreFilePage = Annotated[PageRequest, Depends(paged_by("file"))]
VectorStorePage = Annotated[PageRequest, Depends(paged_by("vs"))]
IngestionPage = Annotated[PageRequest, Depends(paged_by("ing", most=1000))]


def list_answer(
    page: Page[Row], to_answer: Callable[[Row], Entry], id_of: Callable[[Entry], str]
) -> ListAnswer[Entry]:
    """A page of rows as OpenAI's list object."""
    entries = [to_answer(row) for row in page.rows]
    return ListAnswer(
        data=entries,
        first_id=id_of(entries[0]) if entries else None,
        last_id=id_of(entries[-1]) if entries else None,
        has_more=page.has_more,
    )
