import asyncio
from pathlib import Path

import numpy as np
import pytest
import wordllama

from app.embedding import Embedder, EmbeddingModel
from app.errors import Unprocessable
from app.settings import LOCAL_DIMENSIONS, LOCAL_MODEL

LOCAL = EmbeddingModel(LOCAL_MODEL, LOCAL_DIMENSIONS)


async def _embed(embedder: Embedder, *texts: str):
    return (await embedder.embed(texts, model=LOCAL, credential=None)).vectors


async def test_the_built_in_model_needs_no_key_and_bills_nothing(embedder):
    embedded = await embedder.embed(["hello"], model=LOCAL, credential=None)

    assert embedded.vectors.shape == (1, 256)
    assert embedded.vectors.dtype == np.float16
    assert embedded.billed_tokens == 0


async def test_vectors_are_those_of_wordllama(embedder):
    texts = [
        "a",
        "The quick brown fox.",
        "Füße, 中文 and 🧪",
        " ",
        "two\nlines\twith\x00odd characters",
        "long " * 5000,
    ]
    original = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)

    np.testing.assert_allclose(await _embed(embedder, *texts), original.embed(texts, norm=True), atol=5e-4)


async def test_a_text_has_one_vector_whatever_stands_beside_it(embedder):
    alone = await _embed(embedder, "the quick brown fox")
    crowd = await _embed(embedder, "x" * 200_000, "the quick brown fox", *["word " * 100] * 500)

    np.testing.assert_array_equal(alone[0], crowd[1])


async def test_similar_texts_are_nearer_than_others(embedder):
    cat, kitten, tax = await _embed(
        embedder, "the cat sleeps on the sofa", "a kitten naps on a couch", "corporate tax is due in April"
    )

    assert cat @ kitten > cat @ tax + 0.2


async def test_a_very_long_text_is_embedded_whole(embedder):
    only_beginning, whole = await _embed(embedder, "alpha " * 20_000, "alpha " * 20_000 + "omega " * 20_000)

    assert only_beginning @ whole < 0.95
    assert np.linalg.norm(whole) == pytest.approx(1)


async def test_many_calls_at_once_each_get_their_own(embedder):
    texts = [[f"call {n}", f"other words of {n}"] for n in range(40)]

    together = await asyncio.gather(*(_embed(embedder, *pair) for pair in texts))

    for pair, vectors in zip(texts, together, strict=True):
        np.testing.assert_array_equal(vectors, await _embed(embedder, *pair))


async def test_a_cancelled_call_does_not_break_the_next(embedder):
    call = asyncio.create_task(_embed(embedder, *["word " * 1000] * 1000))
    await _embed(embedder, "loaded")
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await _embed(embedder, "still here")).shape == (1, 256)


async def test_another_width_than_its_own_is_refused(embedder):
    with pytest.raises(Unprocessable) as refused:
        await embedder.embed(["a"], model=EmbeddingModel(LOCAL_MODEL, 128), credential=None)

    assert refused.value.failure == "dimension_mismatch"


async def test_an_empty_text_is_refused(embedder):
    with pytest.raises(Unprocessable):
        await _embed(embedder, "a", "")
