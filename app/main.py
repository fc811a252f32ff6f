"""The API's root: `create_app` builds it, `app_from_environment` is what uvicorn calls."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import structlog
from fastapi import FastAPI

from app.api.metrics import Metrics
from app.api.observe import Observer
from app.api.refusals import answer_errors
from app.api.routes import include_routes
from app.ingest.maintenance import run_maintenance
from app.logging import configure_logging
from app.resources import Resources, open_resources
from app.settings import Settings, load_settings

_RESTART_SECONDS = 5.0
_MOST_LOCKED_SECONDS = 5.0
"""A user who waits for a row that is locked for long (a large vector store is being deleted) holds a connection
meanwhile, and ten such users, or one ten times, would take the process away from all others."""

logger = structlog.stdlib.get_logger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The API over these settings; everything is opened when its lifespan begins and closed when it ends."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        patience = settings.database_patience_seconds
        async with (
            open_resources(
                settings, role="api", patience_seconds=patience, most_locked_seconds=_MOST_LOCKED_SECONDS
            ) as resources,
            anyio.create_task_group() as group,
        ):
            app.state.resources = resources
            group.start_soon(_keep_maintaining, resources)
            yield
            group.cancel_scope.cancel()

    app = FastAPI(
        title="Sluice",
        summary="Files in, searchable vectors out: OpenAI's Files and Vector Stores API.",
        lifespan=lifespan,
        openapi_url=None,  # every route but the three for operators asks for a key
    )
    app.state.metrics = metrics
    app.add_middleware(Observer, metrics=metrics)
    answer_errors(app)
    include_routes(app)
    return app


def app_from_environment() -> FastAPI:
    """The API over the environment's settings, logging to stderr.

    Raises:
        Broken: a setting is missing or wrong; says which.
    """
    settings = load_settings()
    configure_logging(level=settings.log_level)
    return create_app(settings)


async def _keep_maintaining(resources: Resources) -> None:
    """Sweep until cancelled; a bug in the sweep must not end the API, nor end the sweep for ever."""
    name = f"api_{socket.gethostname()}_{os.getpid()}"
    while True:
        try:
            await run_maintenance(resources, name=name)
        except Exception:  # the background task's boundary
            logger.exception("maintenance failed and starts again")
            await anyio.sleep(_RESTART_SECONDS)
