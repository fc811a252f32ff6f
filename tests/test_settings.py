"""Settings: defaults that follow from each other, and one line for what is wrong."""

import pytest

from app.errors import Broken
from app.settings import load_settings

BASE = {"database_url": "postgresql://h/d", "redis_url": "redis://h", "storage_url": "file:///tmp/x"}


@pytest.mark.parametrize(
    ("given", "engine", "model", "dimensions"),
    [
        ({}, "local", "wordllama-256", 256),
        ({"rag_openai_api_key": "sk"}, "openai", "text-embedding-3-small", 1536),
        ({"rag_openai_api_base_url": "http://h/v1"}, "openai", "text-embedding-3-small", 1536),
        (
            {"rag_openai_api_key": "sk", "rag_embedding_model": "text-embedding-3-large"},
            "openai",
            "text-embedding-3-large",
            3072,
        ),
        ({"rag_openai_api_key": "sk", "rag_embedding_model": "m", "rag_embedding_dimensions": 7}, "openai", "m", 7),
        ({"rag_openai_api_key": "sk", "rag_embedding_engine": "local"}, "local", "wordllama-256", 256),
    ],
)
def test_naming_an_embeddings_api_chooses_it_with_the_models_own_dimensions(
    given: dict[str, object], engine: str, model: str, dimensions: int
) -> None:
    settings = load_settings(**(BASE | given))
    found = (settings.rag_embedding_engine, settings.rag_embedding_model, settings.rag_embedding_dimensions)
    assert found == (engine, model, dimensions)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"database_url": "mysql://h"}, "DATABASE_URL: expected postgresql://"),
        ({"redis_url": None}, "REDIS_URL is missing"),
        ({"redis_url": "redis://:to#p@h"}, "REDIS_URL: cannot be read"),
        ({"rag_openai_api_key": "sk", "rag_embedding_model": "unknown"}, "RAG_EMBEDDING_DIMENSIONS is missing"),
        ({"rag_embedding_model": "text-embedding-3-small"}, "RAG_EMBEDDING_ENGINE=local has one model"),
        ({"sluice_key_encryption_key": "short"}, "SLUICE_KEY_ENCRYPTION_KEY: expected 32 random bytes"),
        ({"lease_seconds": 0}, "LEASE_SECONDS"),
        ({"lease_seconds": "inf"}, "LEASE_SECONDS"),
        ({"embedding_timeout_seconds": "nan"}, "EMBEDDING_TIMEOUT_SECONDS"),
        ({"rag_openai_api_base_url": "short"}, "RAG_OPENAI_API_BASE_URL: expected http(s)://host/path"),
        ({"rag_openai_api_base_url": "https://:99999/v1"}, "RAG_OPENAI_API_BASE_URL: expected"),
        ({"rag_openai_api_base_url": "https://h:short/v1"}, "RAG_OPENAI_API_BASE_URL: expected"),
        ({"rag_openai_api_base_url": "https://svc:short@h/v1"}, "RAG_OPENAI_API_BASE_URL: no user"),
        ({"rag_openai_api_base_url": "https://h/v1?key=short"}, "RAG_OPENAI_API_BASE_URL: no user"),
        ({"rag_openai_allowed_base_urls": "http://a, http://b:short@c"}, "RAG_OPENAI_ALLOWED_BASE_URLS: no user"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_a_line_that_names_it(given: dict[str, object], message: str) -> None:
    with pytest.raises(Broken) as refused:
        load_settings(**(BASE | given))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "short" not in str(refused.value), "never the value: it may be a secret"


def test_no_password_stands_in_the_repr_of_the_settings() -> None:
    urls = {
        "database_url": "postgresql://me:hunter2@h/d",
        "redis_url": "redis://:hunter2@h",
        "storage_url": "s3://b?secret=hunter2",
    }
    assert "hunter2" not in repr(load_settings(**urls))
