"""Who calls, and what the process runs on: the first arguments of every handler."""

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from app.access.tokens import Principal, authenticate
from app.api.metrics import Metrics
from app.db import connection
from app.errors import Unauthorized
from app.ids import from_wire
from app.resources import Resources


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


Parts = Annotated[Resources, Depends(_resources)]


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


Meters = Annotated[Metrics, Depends(_metrics)]


async def identify(http: HTTPConnection) -> Principal:
    """The caller of a request, asked for once a request: a revoked key must stop working at once.

    Raises:
        Unauthorized: no key, nobody's, or revoked.
    """
    known: Principal | None = getattr(http.state, "caller", None)
    if known is not None:
        return known
    scheme, _, text = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthorized
    resources: Resources = http.app.state.resources
    async with connection(resources.pool) as conn:
        caller = await authenticate(conn, text.strip())
    http.state.caller = caller
    return caller


async def _authenticate(request: Request) -> Principal:
    return await identify(request)


Caller = Annotated[Principal, Depends(_authenticate)]


def _file_id(file_id: str) -> UUID:
    return from_wire("file", file_id)


def _vector_store_id(vector_store_id: str) -> UUID:
    return from_wire("vs", vector_store_id)


def _batch_id(batch_id: str) -> UUID:
    return from_wire("vsfb", batch_id)


def _ingestion_id(ingestion_id: str) -> UUID:
    return from_wire("ing", ingestion_id)


FileId = Annotated[UUID, Depends(_file_id)]
VectorStoreId = Annotated[UUID, Depends(_vector_store_id)]
BatchId = Annotated[UUID, Depends(_batch_id)]
IngestionId = Annotated[UUID, Depends(_ingestion_id)]
