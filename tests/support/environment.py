import os

UNSET = ("DATABASE_URL", "REDIS_URL", "STORAGE_URL", "RAG_OPENAI_API_KEY", "RAG_OPENAI_API_BASE_URL")
"""Whoever sets these for work of their own must not have it used by tests and benchmarks."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead to somebody's own database, queue, files or provider."""
    return {name: value for name, value in os.environ.items() if name not in UNSET}
