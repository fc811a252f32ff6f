"""Searches."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, StrictBool, StringConstraints, Tag

from app.api.wire.store_files import ContentPiece
from app.api.wire.values import Answer, Number, PairKey, PairText, RequestBody, Text

Query = Annotated[Text, StringConstraints(min_length=1, max_length=32_000)]
_Scalar = PairText | Number | StrictBool


class Comparison(RequestBody):
    """A condition on one attribute."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: PairKey
    value: _Scalar | Annotated[list[_Scalar], Field(max_length=1000)]


class Compound(RequestBody):
    """Conditions joined by `and` or `or`."""

    type: Literal["and", "or"]
    filters: Annotated[list["Filter"], Field(min_length=1, max_length=100)]


def _kind(given: object) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return "compound" if isinstance(kind, str) and kind in {"and", "or"} else "comparison"


Filter = Annotated[
    Annotated[Comparison, Tag("comparison")] | Annotated[Compound, Tag("compound")], Discriminator(_kind)
]


class HybridWeights(RequestBody):
    """How much meaning and words count against each other."""

    embedding_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0
    text_weight: Annotated[float, Field(ge=0, le=1000)] = 1.0


class RankingOptions(RequestBody):
    """`ranker` none leaves the order to the vectors alone; the others join them with full text."""

    ranker: Literal["none", "auto", "default-2024-11-15", "default-2024-08-21"] = "auto"
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    hybrid_search: HybridWeights | None = None


class SearchVectorStore(RequestBody):
    """POST /v1/vector_stores/{id}/search."""

    query: Query | Annotated[list[Query], Field(min_length=1, max_length=16)]
    filters: Filter | None = None
    max_num_results: Annotated[int, Field(ge=1, le=50)] = 10
    ranking_options: RankingOptions = RankingOptions()
    rewrite_query: bool = False  # accepted; queries are taken as they are

    @property
    def queries(self) -> list[str]:
        """The query or queries, as a list."""
        return [self.query] if isinstance(self.query, str) else self.query


class SearchHit(Answer):
    """A chunk that was found."""

    file_id: str
    filename: str
    score: float
    attributes: dict[str, str | int | float | bool]
    content: list[ContentPiece]


class SearchPage(Answer):
    """What was found, best first."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchHit]
    has_more: Literal[False] = False
    next_page: None = None
