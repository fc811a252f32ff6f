"""/v1/vector_stores/{id}/search."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from fastapi import APIRouter

from app.access.grants import require_stores
from app.access.tokens import Principal
from app.api.attaching import paying_key
from app.api.callers import Caller, Parts, VectorStoreId
from app.api.wire.searches import RankingOptions, SearchHit, SearchPage, SearchVectorStore
from app.api.wire.store_files import ContentPiece
from app.credentials import credential_for
from app.db import connection
from app.embedding import EmbeddingCredential, EmbeddingModel
from app.errors import BadRequest
from app.ids import to_wire
from app.records.vector_stores import EmbeddingSpace, note_activity, read_space
from app.resources import Resources
from app.vector.filters import FilterSql
from app.vector.search import Hit, SearchTarget, SearchWeights, search_store

router = APIRouter()


@router.post("/v1/vector_stores/{vector_store_id}/search")
async def search_vector_store(
    caller: Caller, resources: Parts, vector_store_id: VectorStoreId, body: SearchVectorStore
) -> SearchPage:
    """The chunks of a vector store that fit the query best; of several queries, a chunk's best score counts."""
    weights = weights_of(body.ranking_options)
    filters = None if body.filters is None else body.filters.model_dump()
    if filters is not None:
        FilterSql(first_parameter=1).condition(filters)  # refused before the query's embedding is paid for
    space, credential = await _prepare(resources, caller, vector_store_id)
    model = EmbeddingModel(space.model, space.dimensions)
    embedded = await resources.embedder.embed(body.queries, model=model, credential=credential)
    found: list[Hit] = []
    async with connection(resources.pool) as conn:
        for query, vector in zip(body.queries, embedded.vectors, strict=True):
            found += await search_store(
                conn,
                SearchTarget(vector_store_id, space.shard, space.dimensions),
                vector=vector,
                query=query,
                weights=weights,
                filters=filters,
                limit=body.max_num_results,
                least_score=body.ranking_options.score_threshold,
            )
        await note_activity(conn, [vector_store_id])
    hits = best_of(found, limit=body.max_num_results)
    return SearchPage(search_query=body.queries, data=[_answer(hit) for hit in hits])


async def _prepare(
    resources: Resources, caller: Principal, store_id: UUID
) -> tuple[EmbeddingSpace, EmbeddingCredential | None]:
    """What the store holds, and what embedding the query is paid with; no connection is held meanwhile."""
    async with connection(resources.pool) as conn:
        await require_stores(conn, caller, [store_id], write=False)
        space = await read_space(conn, store_id)
        model = EmbeddingModel(space.model, space.dimensions)
        key_id = await paying_key(conn, resources.settings, caller, {model})
        return space, await credential_for(conn, model, key_id, resources.settings)


def weights_of(options: RankingOptions) -> SearchWeights:
    """How much vectors and words count.

    Raises:
        BadRequest: neither is to count.
    """
    if options.hybrid_search is not None:
        weights = SearchWeights(options.hybrid_search.embedding_weight, options.hybrid_search.text_weight)
        if weights.embedding + weights.text == 0:
            raise BadRequest(
                "One of 'embedding_weight' and 'text_weight' must be greater than 0.",
                param="ranking_options.hybrid_search",
            )
        return weights
    return SearchWeights(text=0.0) if options.ranker == "none" else SearchWeights()


def best_of(hits: Iterable[Hit], *, limit: int) -> Sequence[Hit]:
    """Each chunk once with its best score, best first, at most `limit`."""
    best: dict[tuple[UUID, int], Hit] = {}
    for hit in hits:
        place = (hit.file_id, hit.ordinal)
        if place not in best or hit.score > best[place].score:
            best[place] = hit
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.file_id, hit.ordinal))[:limit]


def _answer(hit: Hit) -> SearchHit:
    return SearchHit(
        file_id=to_wire("file", hit.file_id),
        filename=hit.filename,
        score=min(hit.score, 1.0),
        attributes=hit.attributes,
        content=[ContentPiece(text=hit.content)],
    )
