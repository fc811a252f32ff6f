"""What both roots run on: pools, Redis, blob store, embedder, extractor; opened in order, closed in reverse."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from app.blobs import BlobStore
from app.db import Pool, close_pool, open_pool_patiently
from app.doorbell import Doorbell
from app.embedding import Embedder, LargeFiles
from app.extraction import ExtractionLimits, Extractor
from app.jobs import ArqRedis, Budget, RedisSettings, connect_lazily
from app.settings import QUEUE_NAME, Settings


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that a request or a job may use."""

    settings: Settings
    pool: Pool
    blobs: BlobStore
    doorbell: Doorbell
    embedder: Embedder
    extractor: Extractor
    large_files: LargeFiles = field(default_factory=LargeFiles)


def _redis(settings: Settings) -> ArqRedis | None:
    if not settings.enable_job_queue or settings.redis_url is None:
        return None
    return connect_lazily(
        RedisSettings.from_dsn(settings.redis_url),
        default_queue_name=QUEUE_NAME,
        serializer="json",
        expires_extra_ms=0,  # the row says how long a file may wait: for ever
        budget=Budget(),  # an upload must not wait for a Redis that is away
    )


@asynccontextmanager
async def open_resources(
    settings: Settings, *, role: str, patience_seconds: float = 0.0, most_locked_seconds: float = 0.0
) -> AsyncIterator[Resources]:
    """Open everything; `role` (api, worker, …) names the connections in Postgres; locks as in `open_pool`.

    A Redis that is down does not stop the start: uploads are taken and processed without it. For a Postgres that is
    away we wait up to `patience_seconds`.

    Raises:
        Broken, DatabaseUnavailable: a part that cannot do without does not open; says which.
    """
    stack = AsyncExitStack()
    try:
        pool = await open_pool_patiently(
            settings.database_url,
            max_size=settings.database_pool_size,
            application_name=f"sluice-{role}",
            patience_seconds=patience_seconds,
            most_idle_seconds=settings.lease_seconds / 2,  # locks are gone before the lease is
            most_locked_seconds=most_locked_seconds,
        )
        stack.push_async_callback(close_pool, pool)
        redis = _redis(settings)
        if redis is not None:
            stack.push_async_callback(redis.aclose)
        embedder = await stack.enter_async_context(
            Embedder(
                batch_size=settings.rag_embedding_batch_size,
                concurrency=settings.embedding_concurrency,
                timeout_seconds=settings.embedding_timeout_seconds,
                slots=settings.worker_concurrency,
            )
        )
        extractor = await stack.enter_async_context(
            Extractor(
                ExtractionLimits(
                    timeout_seconds=settings.extraction_timeout_seconds,
                    memory_bytes=settings.extraction_memory_bytes,
                    max_characters=settings.extraction_max_characters,
                    max_pages=settings.extraction_max_pages,
                    max_tokens=settings.extraction_max_tokens,
                    concurrency=settings.extraction_concurrency,
                )
            )
        )
        yield Resources(
            settings=settings,
            pool=pool,
            blobs=BlobStore.open(settings.storage_url),
            doorbell=Doorbell(redis, settings),
            embedder=embedder,
            extractor=extractor,
        )
    finally:
        with anyio.CancelScope(shield=True):  # also when the caller's task group is being cancelled
            await stack.aclose()
