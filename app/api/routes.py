"""Every route of the service."""

from fastapi import FastAPI

from app.api import (
    batches,
    embedding_keys,
    files,
    health,
    ingestions,
    jobs,
    searches,
    shares,
    store_files,
    vector_stores,
)

MODULES = (
    files,
    vector_stores,
    store_files,
    batches,
    searches,
    ingestions,
    jobs,
    embedding_keys,
    shares,
    health,
)


def include_routes(app: FastAPI) -> None:
    """Add all routers to the app."""
    for module in MODULES:
        app.include_router(module.router)
