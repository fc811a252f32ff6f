from collections.abc import Awaitable, Callable
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.access.tokens import Principal
from app.db import Connection, Pool, transaction
from app.errors import BadRequest, Unprocessable
from app.ids import new_id
from app.records.files import NewFile, insert_file
from app.records.ingestions import NewIngestion, insert_ingestions
from app.records.store_files import Placement, attach
from app.records.vector_stores import NewVectorStore, insert_store
from app.vector.chunks import copy_chunks, delete_chunks, read_texts
from app.vector.codec import encode_chunks
from app.vector.filters import FilterSql
from app.vector.search import SearchTarget, SearchWeights, search_store
from app.vector.shards import ensure_shard

MakePrincipal = Callable[[str], Awaitable[tuple[Principal, str]]]
DIMENSIONS = 8
VECTORS_ONLY = SearchWeights(1, 0)


class Bench:
    """A store with files whose chunks are put in directly."""

    def __init__(self, conn: Connection, owner: Principal, target: SearchTarget) -> None:
        self.conn, self.owner, self.target = conn, owner, target

    @classmethod
    async def make(cls, conn: Connection, owner: Principal, dimensions: int = DIMENSIONS) -> "Bench":
        shard = await ensure_shard(conn, dimensions)
        store = NewVectorStore(new_id(), None, {}, "m", dimensions, shard, None)
        await insert_store(conn, store, owner_id=owner.user_id)
        return cls(conn, owner, SearchTarget(store.id, shard, dimensions))

    async def add(self, texts: list[str], vectors: NDArray[np.float32], **attributes: object) -> UUID:
        file_id = new_id()
        new_file = NewFile(file_id, f"{texts[0][:20]}.txt", "assistants", None, 1, b"")
        await insert_file(self.conn, new_file, owner_id=self.owner.user_id)
        new = NewIngestion(new_id(), file_id, attributes, 800, 400)
        await insert_ingestions(
            self.conn, [new], user_id=self.owner.user_id, batch_id=None, embedding_key_id=None, most_hints=16
        )
        await attach(self.conn, [new], [self.target.vector_store_id])
        encoded = encode_chunks(file_id, texts, vectors)
        await copy_chunks(self.conn, [(self.target.shard, self.target.vector_store_id, encoded)])
        return file_id

    async def search(self, vector: NDArray[np.float32], query: str = "", **options: object):
        defaults = {"weights": VECTORS_ONLY, "filters": None, "limit": 10, "least_score": 0.0}
        return await search_store(self.conn, self.target, vector=vector, query=query, **(defaults | options))


def unit(rng: np.random.Generator, count: int, dimensions: int = DIMENSIONS) -> NDArray[np.float32]:
    vectors = rng.normal(size=(count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


async def test_what_the_codec_writes_is_what_postgres_reads(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    texts = ["plain", "ümlaut 漢字 🦆", "", "a\nb\tc 'quoted' \\N", "x" * 100_000]
    vectors = unit(np.random.default_rng(1), len(texts))
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        file_id = await bench.add(texts, vectors)
        placement = Placement(bench.target.shard, bench.target.vector_store_id, file_id)
        assert (
            await read_texts(conn, shard=placement.shard, store_id=placement.vector_store_id, file_id=file_id)
            == texts
        )
        rows = await conn.fetch("SELECT embedding::text FROM chunks ORDER BY ordinal")
        read = np.array([[float(part) for part in row[0][1:-1].split(",")] for row in rows])
        np.testing.assert_allclose(read, vectors.astype(np.float16), rtol=1e-3)
        await delete_chunks(conn, [placement])
        assert await conn.fetchval("SELECT count(*) FROM chunks") == 0


async def test_there_are_only_so_many_different_dimensions(pool: Pool) -> None:
    async with transaction(pool) as conn:
        first = await ensure_shard(conn, 3)
        await conn.execute("INSERT INTO shards (dimensions) SELECT n FROM generate_series(100, 162) AS n")
        with pytest.raises(BadRequest, match="none of them 999"):
            await ensure_shard(conn, 999)
        assert await ensure_shard(conn, 3) == first


def test_the_size_counted_is_text_and_vector_bytes() -> None:
    encoded = encode_chunks(new_id(), ["ab", "ü"], np.ones((2, 3), np.float32))
    assert encoded.size_bytes == 2 + 2 + 2 * 3 * 2


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e6])
def test_a_component_beyond_half_precision_is_refused_before_postgres_sees_it(bad: float) -> None:
    with pytest.raises(Unprocessable) as refused:
        encode_chunks(new_id(), ["x"], np.array([[bad, 0]], np.float32))
    assert refused.value.failure == "embedding_refused"


async def test_search_is_exact_and_sorted_by_similarity(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    rng = np.random.default_rng(2)
    async with transaction(pool) as conn:
        bench, other = await Bench.make(conn, owner), await Bench.make(conn, owner)
        vectors = unit(rng, 200)
        await bench.add([f"text {n}" for n in range(200)], vectors)
        query = unit(rng, 1)[0]
        await other.add(["of another store"], query[None])  # the nearest of all, in another store
        hits = await bench.search(query)
        similarity = vectors.astype(np.float16).astype(np.float32) @ query
        best = np.argsort(-similarity)[:10]
        assert [hit.ordinal for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit.score for hit in hits], similarity[best].clip(0), atol=2e-3)


async def test_a_vector_of_zeros_is_like_nothing_at_all(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    vectors = np.eye(3, DIMENSIONS, dtype=np.float32)
    vectors[1] = 1e-9  # too small for half precision
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        await bench.add(["a", "b", "c"], vectors)
        hits = await bench.search(vectors[2])
        assert [hit.score for hit in hits] == [1, 0, 0]
        assert hits[0].ordinal == 2
        assert [hit.ordinal for hit in await bench.search(vectors[2], least_score=0.1)] == [2]
        nowhere = await bench.search(np.zeros(DIMENSIONS, np.float32))
        assert [hit.score for hit in nowhere] == [0, 0, 0]


async def test_a_query_beyond_half_precision_is_refused(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        await bench.add(["a"], unit(np.random.default_rng(1), 1))
        with pytest.raises(Unprocessable, match="half precision"):
            await bench.search(np.full(DIMENSIONS, 1e6, np.float32))


async def test_words_lift_a_chunk_that_meaning_alone_would_miss(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    rng = np.random.default_rng(3)
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        texts = [f"filler number {n}" for n in range(100)] + ["the zanzibar clause of the contract"]
        vectors = unit(rng, 101)
        query = -vectors[100]
        await bench.add(texts, vectors)
        by_meaning = await bench.search(query)
        assert 100 not in [hit.ordinal for hit in by_meaning]
        hits = await bench.search(query, "what says the zanzibar clause?", weights=SearchWeights(1, 1))
        assert 100 in [hit.ordinal for hit in hits]
        assert all(0 <= hit.score <= 1 for hit in hits)
        words_only = await bench.search(query, "zanzibar clause", weights=SearchWeights(0, 1))
        assert words_only[0].ordinal == 100


@pytest.mark.parametrize("query", ["", "  ", "!!!", "a & b | !c", "'; DROP TABLE chunks; --", "the " * 2000])
async def test_no_query_text_breaks_the_search(pool: Pool, make_principal: MakePrincipal, query: str) -> None:
    owner, _ = await make_principal("ada")
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        await bench.add(["some text"], unit(np.random.default_rng(4), 1))
        assert len(await bench.search(np.ones(DIMENSIONS, np.float32), query, weights=SearchWeights(1, 1))) == 1


async def test_least_score_and_limit_cut_the_answer(pool: Pool, make_principal: MakePrincipal) -> None:
    owner, _ = await make_principal("ada")
    vectors = np.eye(DIMENSIONS, dtype=np.float32)
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        await bench.add([str(n) for n in range(DIMENSIONS)], vectors)
        assert [hit.ordinal for hit in await bench.search(vectors[3], least_score=0.5)] == [3]
        assert len(await bench.search(vectors[3], limit=2)) == 2


FILTERS = [
    ({"type": "eq", "key": "lang", "value": "de"}, {"a"}),
    ({"type": "ne", "key": "lang", "value": "de"}, {"b", "c"}),
    ({"type": "gt", "key": "year", "value": 2020}, {"b"}),
    ({"type": "gte", "key": "year", "value": 2020}, {"a", "b"}),
    ({"type": "lt", "key": "year", "value": 2021}, {"a"}),
    ({"type": "lte", "key": "lang", "value": "en"}, {"a", "b"}),
    ({"type": "in", "key": "lang", "value": ["de", "en"]}, {"a", "b"}),
    ({"type": "nin", "key": "lang", "value": ["de"]}, {"b", "c"}),
    ({"type": "in", "key": "lang", "value": []}, set()),
    ({"type": "eq", "key": "draft", "value": True}, {"b"}),
    ({"type": "gt", "key": "lang", "value": 5}, set()),
    ({"type": "eq", "key": 'it\'s "odd"', "value": "x'; --"}, {"c"}),
    (
        {
            "type": "or",
            "filters": [
                {"type": "eq", "key": "lang", "value": "de"},
                {
                    "type": "and",
                    "filters": [
                        {"type": "eq", "key": "draft", "value": True},
                        {"type": "gt", "key": "year", "value": 2000.5},
                    ],
                },
            ],
        },
        {"a", "b"},
    ),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS)
async def test_filters_mean_what_openai_says(
    pool: Pool, make_principal: MakePrincipal, filters: dict[str, object], expected: set[str]
) -> None:
    owner, _ = await make_principal("ada")
    rng = np.random.default_rng(5)
    async with transaction(pool) as conn:
        bench = await Bench.make(conn, owner)
        await bench.add(["a"], unit(rng, 1), lang="de", year=2020)
        await bench.add(["b"], unit(rng, 1), lang="en", year=2024, draft=True)
        await bench.add(["c"], unit(rng, 1), **{'it\'s "odd"': "x'; --"})
        for weights in (VECTORS_ONLY, SearchWeights(1, 1)):
            hits = await bench.search(unit(rng, 1)[0], "a b c", filters=filters, weights=weights)
            assert {hit.content for hit in hits} == expected


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({"type": "like", "key": "a", "value": "b"}, "like"),
        ({"type": "eq", "value": "b"}, "key"),
        ({"type": "eq", "key": "a", "value": {"b": 1}}, "strings, numbers or booleans"),
        ({"type": "and", "filters": []}, "filters"),
        ({"type": "and", "filters": "abc"}, "filters"),
        ({"type": "and", "filters": [1]}, "filters"),
        ({"type": "in", "key": "a", "value": "abc"}, "list"),
        ({"type": "gt", "key": "a", "value": True}, "number or a string"),
        ({}, "key"),
        ({"type": "eq", "key": "a", "value": float("nan")}, "finite"),
        ({"type": "gt", "key": "a", "value": float("inf")}, "finite"),
        ({"type": "eq", "key": "a", "value": "nul \x00"}, "NUL"),
        ({"type": "eq", "key": "nul \x00", "value": "a"}, "NUL"),
        ({"type": "in", "key": "a", "value": ["\ud800"]}, "surrogates"),
    ],
)
def test_a_wrong_filter_is_refused_with_what_is_wrong(filters: dict[str, object], names: str) -> None:
    with pytest.raises(BadRequest, match=names):
        FilterSql(1).condition(filters)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["type", "key", "value", "filters"]), inner)
        ),
    )
)
def test_no_json_at_all_breaks_the_filter_parser(value: object) -> None:
    if isinstance(value, dict):
        sql = FilterSql(1)
        try:
            condition = sql.condition(value)
        except BadRequest:
            return
        assert condition.count("$") >= len(sql.parameters)
