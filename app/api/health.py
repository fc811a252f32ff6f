"""/healthz, /readyz, /metrics: for those who run the service; the only routes without an API key."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from app.api.callers import Meters, Parts
from app.db import NotMigrated, connection
from app.errors import Transient
from app.resources import Resources

router = APIRouter()

PUBLIC_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process runs and its event loop turns."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
async def readyz(resources: Parts) -> JSONResponse:
    """Whether requests can be served: Postgres answers, takes writes and is migrated. Redis may be away."""
    postgres = await _postgres_state(resources)
    ready = postgres == "ok"
    states = {
        "status": "ready" if ready else "not_ready",
        "postgres": postgres,
        "redis": await _redis_state(resources),
    }
    return JSONResponse(states, 200 if ready else 503)


@router.get("/metrics", response_model=None)
async def metrics(resources: Parts, meters: Meters) -> Response:
    """Prometheus's text format."""
    is_available = await resources.doorbell.is_job_queue_available()
    async with connection(resources.pool) as conn:
        text = await meters.scrape(conn, queue_is_available=is_available)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def _postgres_state(resources: Resources) -> str:
    try:
        async with connection(resources.pool) as conn:
            row = await conn.fetchrow(
                "SELECT current_setting('transaction_read_only') = 'on' AS is_read_only FROM alembic_version"
            )
    except Transient:
        return "down"
    except NotMigrated:
        return "not migrated"
    if row is None:
        return "not migrated"
    return "read-only" if row["is_read_only"] else "ok"


async def _redis_state(resources: Resources) -> str:
    if not resources.doorbell.is_enabled:
        return "disabled"
    return "ok" if await resources.doorbell.is_job_queue_available() else "down"
