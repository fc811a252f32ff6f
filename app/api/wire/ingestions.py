"""Sluice's own: ingestions, the batch upload, and jobs."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.wire.pages import ListAnswer
from app.api.wire.values import (
    Answer,
    Attributes,
    ChunkingStrategy,
    FileCountsAnswer,
    RequestBody,
    Text,
    maybe_unix_seconds,
    unix_seconds,
)
from app.doorbell import job_id_of
from app.ids import to_wire
from app.records.ingestions import Ingestion
from app.records.store_files import STATE_STATUS

MOST_STORES_A_REQUEST = 100


class BatchUploadFields(RequestBody):
    """What comes beside the files of a batch upload."""

    vector_store_ids: Annotated[list[Text], Field(min_length=1, max_length=MOST_STORES_A_REQUEST)]
    attributes: Attributes | None = None
    chunking_strategy: ChunkingStrategy | None = None


class IngestionError(Answer):
    """Why an ingestion failed, in our own codes; README explains each."""

    code: str
    message: str


class Progress(Answer):
    """Chunks that the file has (0 until it is chunked), and how many are embedded."""

    chunks_total: int
    chunks_embedded: int


class IngestionAnswer(Answer):
    """One file's journey into its vector stores."""

    id: str
    object: Literal["ingestion"] = "ingestion"
    created_at: int
    file_id: str
    filename: str
    vector_store_ids: list[str]
    batch_id: str | None
    status: str
    state: str
    stage: str
    progress: Progress
    attempts: int
    error: IngestionError | None
    last_attempt_error: str | None
    billed_tokens: int
    job_id: str
    started_at: int | None
    finished_at: int | None

    @classmethod
    def of(cls, ingestion: Ingestion) -> "IngestionAnswer":
        """The answer for an ingestion."""
        failure = ingestion.error_code if ingestion.state == "failed" else None
        is_queued = ingestion.state == "queued"
        return cls(
            id=to_wire("ing", ingestion.id),
            created_at=unix_seconds(ingestion.created_at),
            file_id=to_wire("file", ingestion.file_id),
            filename=ingestion.filename,
            vector_store_ids=[to_wire("vs", store_id) for store_id in ingestion.store_ids],
            batch_id=None if ingestion.batch_id is None else to_wire("vsfb", ingestion.batch_id),
            status=STATE_STATUS[ingestion.state],
            state=ingestion.state,
            stage=ingestion.stage,
            progress=Progress(chunks_total=ingestion.chunks_total, chunks_embedded=ingestion.chunks_embedded),
            attempts=ingestion.attempts,
            error=None if failure is None else IngestionError(code=failure, message=ingestion.error_message or ""),
            last_attempt_error=ingestion.error_message if is_queued else None,
            billed_tokens=ingestion.billed_tokens,
            job_id=job_id_of(ingestion.id, ingestion.fence + is_queued),
            started_at=maybe_unix_seconds(ingestion.started_at),
            finished_at=maybe_unix_seconds(ingestion.finished_at),
        )


class IngestionList(ListAnswer[IngestionAnswer]):
    """A page of ingestions, with the counts of the whole batch if one was asked for."""

    file_counts: FileCountsAnswer | None = None


class RefusedFile(Answer):
    """A file of a batch upload that was not accepted, and the error it would have met alone."""

    filename: str
    error: dict[str, str | None]


class BatchUploadAnswer(Answer):
    """A batch upload whose bytes are durable and whose files are queued."""

    id: str
    object: Literal["ingestion.batch"] = "ingestion.batch"
    created_at: int
    vector_store_ids: list[str]
    file_counts: FileCountsAnswer
    data: list[IngestionAnswer]
    rejected: list[RefusedFile]


class CancelledBatch(Answer):
    """A batch of which nothing is on its way any more."""

    id: str
    object: Literal["ingestion.batch"] = "ingestion.batch"
    file_counts: FileCountsAnswer


class JobAnswer(Answer):
    """RQ's view of a job beside the row's; `rq` is null when RQ has no such job or cannot be asked (see `note`)."""

    id: str
    object: Literal["job"] = "job"
    rq: dict[str, Any] | None
    note: str | None
    ingestion: IngestionAnswer
