"""From parts of a request to durable blobs; what does not get a row in Postgres is deleted again."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from types import TracebackType
from typing import Self
from uuid import UUID

import anyio
import structlog

from app.api.multipart import Part
from app.db import Connection, Locked, transaction
from app.errors import BadRequest, Refused, Transient
from app.extraction import supported_media_type
from app.ids import new_id
from app.records.files import NewFile, blob_key
from app.resources import Resources

logger = structlog.stdlib.get_logger(__name__)


class EmptyFile(BadRequest):
    """The file is empty."""


class Uploads:
    """The blobs that one request stores; use as `async with`. What is not recorded in `recording` is deleted."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self._stored: list[UUID] = []
        self._may_be_recorded = False
        self.is_repeated = False  # the same request came before: its bytes count, not these
        self.stored_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._stored:
            return
        if self._may_be_recorded:
            logger.warning("blobs left behind: unknown whether they were recorded", count=len(self._stored))
            return
        with anyio.CancelScope(shield=True):
            for file_id in self._stored:
                await discard_blob(self.resources, file_id)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[Connection]:
        """The transaction that records the blobs, unless it sets `is_repeated`.

        A COMMIT that was cut off may take effect, at once or later. Then a blob too many is better than a file
        without bytes: the clean-up finds it.
        """
        self._may_be_recorded = True
        try:
            async with transaction(self.resources.pool) as conn:
                yield conn
        except (Refused, Locked):
            self._may_be_recorded = False
            raise
        self._may_be_recorded = False
        if not self.is_repeated:
            self._stored.clear()

    async def store(self, part: Part, *, purpose: str = "assistants") -> NewFile:
        """Store a part's bytes durably.

        Raises:
            EmptyFile: there is not one byte.
            TooLarge: it is longer than MAX_UPLOAD_BYTES; the rest of it has not been read.
            BadRequest, ClientGone: the request itself is broken.
            BlobsUnavailable: the blob store fails.
        """
        async with aclosing(part.pieces()) as pieces:
            first = await anext(pieces, b"")
            if not first:
                raise EmptyFile(param=part.name, code="empty_file")
            file_id = new_id()
            blob = await self.resources.blobs.put(
                blob_key(file_id), _chain(first, pieces), max_bytes=self.resources.settings.max_upload_bytes
            )
        self._stored.append(file_id)
        self.stored_bytes += blob.size_bytes
        filename = part.filename or "unnamed"
        return NewFile(
            id=file_id,
            filename=filename,
            purpose=purpose,
            media_type=supported_media_type(filename, blob.first_bytes),
            size_bytes=blob.size_bytes,
            sha256=blob.sha256,
        )


async def discard_blob(resources: Resources, file_id: UUID) -> None:
    """Delete a file's bytes; a failure is only logged, the row is gone already."""
    try:
        await resources.blobs.delete(blob_key(file_id))
    except Transient as exc:
        logger.warning("blob left behind", key=blob_key(file_id), error=str(exc))


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
