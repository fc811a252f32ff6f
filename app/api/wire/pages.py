"""Lists as OpenAI answers them."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from app.api.wire.values import Answer

Entry = TypeVar("Entry", bound=Answer)


class ListAnswer(Answer, Generic[Entry]):
    """One page; the ids of its ends are the cursors of its neighbours, null when it is empty."""

    object: Literal["list"] = "list"
    data: Sequence[Entry]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Answer):
    """A deletion that took effect."""

    id: str
    object: str
    deleted: Literal[True] = True
