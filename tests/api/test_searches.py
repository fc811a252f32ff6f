from uuid import UUID

import openai
import pytest
from pydantic import SecretStr

from app.api.searches import best_of, weights_of
from app.api.wire.searches import HybridWeights, RankingOptions
from app.errors import BadRequest
from app.settings import Settings
from app.vector.search import Hit, SearchWeights
from tests.api.conftest import MakePrincipal, Person, person, serving
from tests.support.fake_openai import FakeOpenAI

TEXTS = {
    "water.txt": "A sluice is a gate that controls the flow of water in a canal.",
    "bread.txt": "Bake the bread for forty minutes until the crust is brown.",
    "stars.txt": "Astronomers measured the distance to a faraway galaxy.",
}


@pytest.fixture
async def store_id(eve: Person) -> str:
    store = await eve.openai.vector_stores.create(name="s")
    for number, (name, text) in enumerate(TEXTS.items()):
        file = await eve.openai.files.create(file=(name, text.encode()), purpose="assistants")
        await eve.openai.vector_stores.files.create_and_poll(
            file.id, vector_store_id=store.id, attributes={"n": number, "name": name}, poll_interval_ms=20
        )
    return store.id


async def test_a_search_finds_the_text_and_says_where(eve: Person, store_id: str):
    page = await eve.openai.vector_stores.search(store_id, query="how do canals control water?", max_num_results=2)
    assert page.object == "vector_store.search_results.page"
    best = page.data[0]
    assert (best.filename, best.content[0].text) == ("water.txt", TEXTS["water.txt"])
    assert best.attributes == {"n": 0, "name": "water.txt"}
    assert 0 <= page.data[1].score <= best.score <= 1
    assert len(page.data) == 2


async def test_several_queries_find_the_best_of_each(eve: Person, store_id: str):
    page = await eve.openai.vector_stores.search(
        store_id, query=["canal gate", "galaxy distance"], max_num_results=2
    )
    assert {hit.filename for hit in page.data} == {"water.txt", "stars.txt"}


async def test_filters_narrow_a_search(eve: Person, store_id: str):
    page = await eve.openai.vector_stores.search(
        store_id,
        query="water",
        filters={
            "type": "or",
            "filters": [
                {"type": "eq", "key": "name", "value": "bread.txt"},
                {
                    "type": "and",
                    "filters": [
                        {"type": "gte", "key": "n", "value": 2},
                        {"type": "in", "key": "n", "value": [2, 3]},
                    ],
                },
            ],
        },
    )
    assert {hit.filename for hit in page.data} == {"bread.txt", "stars.txt"}


async def test_a_threshold_leaves_out_what_fits_badly(eve: Person, store_id: str):
    options = {"ranker": "none", "score_threshold": 0.99}
    answer = await eve.http.post(
        f"/v1/vector_stores/{store_id}/search", json={"query": "bread", "ranking_options": options}
    )
    assert answer.json() == {
        "object": "vector_store.search_results.page",
        "search_query": ["bread"],
        "data": [],
        "has_more": False,
        "next_page": None,
    }


async def test_filters_nested_too_deep_are_refused(eve: Person, store_id: str):
    nested: dict[str, object] = {"type": "eq", "key": "k", "value": "v"}
    for _ in range(40):
        nested = {"type": "and", "filters": [nested]}
    answer = await eve.http.post(f"/v1/vector_stores/{store_id}/search", json={"query": "x", "filters": nested})
    assert answer.status_code == 400


@pytest.mark.parametrize(("lists", "status"), [(1, 200), (3, 400), (40, 400)])
async def test_filters_of_too_many_values_are_refused(eve: Person, store_id: str, lists: int, status: int):
    one = {"type": "in", "key": "n", "value": list(range(1000))}
    answer = await eve.http.post(
        f"/v1/vector_stores/{store_id}/search",
        json={"query": "water", "filters": {"type": "or", "filters": [one] * lists}},
    )
    assert answer.status_code == status
    if status == 200:
        assert len(answer.json()["data"]) == 3
    else:
        assert answer.json()["error"]["param"] == "filters"


async def test_a_search_that_is_refused_costs_no_embedding(settings: Settings, make_principal: MakePrincipal):
    async with FakeOpenAI() as api:
        paying = {
            "rag_embedding_engine": "openai",
            "rag_openai_api_base_url": api.base_url,
            "rag_openai_api_key": SecretStr("sk-test"),
            "rag_embedding_model": "m",
            "rag_embedding_dimensions": 8,
        }
        async with (
            serving(settings.model_copy(update=paying)) as url,
            person(url, *await make_principal("zoe")) as zoe,
        ):
            store = await zoe.openai.vector_stores.create()
            for filters, paid in (({"type": "gt", "key": "n", "value": True}, 0), (None, 1)):
                await zoe.http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "a", "filters": filters})
                assert len(api.requests) == paid


@pytest.mark.parametrize(
    "query", ["&|!():*<->", "'; DROP TABLE files; --", "http://a.b/c?d=e&f=g", "\u0301", "   "]
)
async def test_no_query_is_an_error_of_ours(eve: Person, store_id: str, query: str):
    assert (await eve.http.post(f"/v1/vector_stores/{store_id}/search", json={"query": query})).status_code == 200


async def test_an_empty_store_has_no_hits(eve: Person):
    store = await eve.openai.vector_stores.create(name="empty")
    assert (await eve.openai.vector_stores.search(store.id, query="anything")).data == []


async def test_a_query_that_no_model_takes_is_a_400(eve: Person, store_id: str):
    with pytest.raises(openai.BadRequestError):
        await eve.openai.vector_stores.search(store_id, query="x" * 40_000)


def test_the_ranker_decides_what_counts():
    assert weights_of(RankingOptions()) == SearchWeights(1.0, 1.0)
    assert weights_of(RankingOptions(ranker="none")) == SearchWeights(1.0, 0.0)
    chosen = RankingOptions(hybrid_search=HybridWeights(embedding_weight=0.2, text_weight=0.8))
    assert weights_of(chosen) == SearchWeights(0.2, 0.8)
    with pytest.raises(BadRequest):
        weights_of(RankingOptions(hybrid_search=HybridWeights(embedding_weight=0, text_weight=0)))


def hit(file: int, ordinal: int, score: float) -> Hit:
    return Hit(UUID(int=file), "f", {}, ordinal, "text", score)


def test_a_chunk_that_two_queries_find_counts_once_with_its_better_score():
    hits = [hit(1, 0, 0.3), hit(2, 0, 0.5), hit(1, 0, 0.9), hit(1, 1, 0.1)]
    assert best_of(hits, limit=2) == [hit(1, 0, 0.9), hit(2, 0, 0.5)]
