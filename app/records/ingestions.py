"""Ingestions: one row a file's journey into its vector stores, and the only place that holds its status.

    queued ──claim──▶ running ──complete──▶ completed
      ▲                 │ ├──fail─────────▶ failed
      └──give back──────┘ └──(either)─────▶ cancelled
         retry later, lease expired

Each claim raises `fence`; every later write of that attempt names its fence, so an attempt that lost its lease
(frozen, cut off) changes nothing when it wakes up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.db import Connection
from app.errors import FailureCode, NotFound, Transient
from app.ids import to_wire
from app.records.pages import Page, PageRequest, make_page, page_clause

_COLUMNS = """
    i.id, i.user_id, i.file_id, f.filename, i.batch_id, i.state, i.stage, i.fence, i.attempts, i.crashes,
    i.next_run_at, i.embedding_key_id, i.max_chunk_size_tokens, i.chunk_overlap_tokens, i.chunks_total,
    i.chunks_embedded, i.billed_tokens, i.error_code, i.error_message, i.created_at, i.started_at, i.finished_at,
    ARRAY(SELECT v.vector_store_id FROM vector_store_files v WHERE v.ingestion_id = i.id ORDER BY 1) AS store_ids
"""


_DUE = "state = 'queued' AND next_run_at <= now()"


class BeingChanged(Transient):
    """Somebody is attaching, detaching or deleting this file at the moment."""

    costs_attempt = False


@dataclass(frozen=True, slots=True)
class Ingestion:
    """The status of one file's journey."""

    id: UUID
    user_id: UUID
    file_id: UUID
    filename: str
    batch_id: UUID | None
    state: str
    stage: str
    fence: int
    attempts: int
    crashes: int
    next_run_at: datetime
    embedding_key_id: UUID | None
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int
    chunks_total: int
    chunks_embedded: int
    billed_tokens: int
    error_code: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    store_ids: Sequence[UUID]


@dataclass(frozen=True, slots=True)
class NewIngestion:
    """A file to bring into vector stores."""

    id: UUID
    file_id: UUID
    attributes: dict[str, str | float | bool]
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on an ingestion until the lease ends; `fence` proves it."""

    ingestion_id: UUID
    fence: int
    attempts: int  # this one included, but for those that a lost worker did not end
    user_id: UUID
    file_id: UUID
    filename: str
    media_type: str | None
    embedding_key_id: UUID | None
    max_chunk_size_tokens: int
    chunk_overlap_tokens: int


@dataclass(frozen=True, slots=True)
class Hint:
    """What the queue is told of an ingestion: ids only, and the fence that the next claim will take."""

    ingestion_id: UUID
    user_id: UUID
    embedding_key_id: UUID | None
    next_fence: int
    delay_seconds: float = 0.0


async def insert_ingestions(
    conn: Connection,
    news: Sequence[NewIngestion],
    *,
    user_id: UUID,
    batch_id: UUID | None,
    embedding_key_id: UUID | None,
    most_hints: int,
) -> list[Hint]:
    """Queue files; the hints that the queue is to hear right after the commit, marked as heard.

    As many as the user has less than `most_hints` due files; the others' turn comes later, see `app.records.hints`.
    """
    rows = await conn.fetch(
        """
        INSERT INTO ingestions (id, user_id, file_id, batch_id, embedding_key_id, hinted_at,
                                max_chunk_size_tokens, chunk_overlap_tokens)
        SELECT n.id, $1, n.file_id, $2, $3, CASE WHEN waiting.files + row_number() OVER (ORDER BY n.id) <= $8
                                            THEN now() END, n.max_tokens, n.overlap
        FROM unnest($4::uuid[], $5::uuid[], $6::int[], $7::int[]) AS n (id, file_id, max_tokens, overlap), (
            SELECT count(*) AS files FROM (
                SELECT FROM ingestions WHERE state = 'queued' AND user_id = $1 AND next_run_at <= now() LIMIT $8
            ) line
        ) waiting
        RETURNING id, hinted_at
        """,
        user_id,
        batch_id,
        embedding_key_id,
        [new.id for new in news],
        [new.file_id for new in news],
        [new.max_chunk_size_tokens for new in news],
        [new.chunk_overlap_tokens for new in news],
        most_hints,
    )
    return [Hint(row["id"], user_id, embedding_key_id, next_fence=1) for row in rows if row["hinted_at"]]


async def get_ingestion(conn: Connection, ingestion_id: UUID, *, user_id: UUID | None) -> Ingestion:
    """An ingestion; `user_id` None asks as the service itself.

    Raises:
        NotFound: there is none, or it is somebody else's.
    """
    row = await conn.fetchrow(
        f"""
        SELECT {_COLUMNS} FROM ingestions i JOIN files f ON f.id = i.file_id
        WHERE i.id = $1 AND ($2::uuid IS NULL OR i.user_id = $2)
        """,
        ingestion_id,
        user_id,
    )
    if row is None:
        raise NotFound(f"No ingestion found with id '{to_wire('ing', ingestion_id)}'.", code="not_found")
    return Ingestion(**dict(row))


async def list_ingestions(
    conn: Connection, *, user_id: UUID, batch_id: UUID | None, states: Sequence[str] | None, page: PageRequest
) -> Page[Ingestion]:
    """A user's ingestions, of one batch or all."""
    clause, parameters = page_clause(page, "i.id", 4)
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM ingestions i JOIN files f ON f.id = i.file_id
        WHERE i.user_id = $1 AND ($2::uuid IS NULL OR i.batch_id = $2)
          AND ($3::text[] IS NULL OR i.state = ANY($3)) {clause}
        """,
        user_id,
        batch_id,
        states,
        *parameters,
    )
    return make_page(page, [Ingestion(**dict(row)) for row in rows])


CANCEL = """
    UPDATE ingestions SET state = 'cancelled', stage = 'done', fence = fence + 1, lease_until = NULL,
        finished_at = now(), hinted_at = CASE WHEN state = 'queued' THEN now() ELSE hinted_at END
"""
"""A cancelled row keeps `hinted_at` until its job has been withdrawn, see `app.records.hints`."""


async def cancel(conn: Connection, ingestion_id: UUID) -> None:
    """Cancel what is not settled. A running attempt notices at its next beat; its commit is refused."""
    await conn.execute(f"{CANCEL} WHERE id = $1 AND state IN ('queued', 'running')", ingestion_id)


CLAIM = """
    UPDATE ingestions i
    SET state = 'running', stage = 'reading', fence = i.fence + 1, attempts = i.attempts + 1,
        lease_until = now() + make_interval(secs => $1), leased_by = $2, started_at = now(),
        chunks_total = 0, chunks_embedded = 0, hinted_at = {hinted_at}
    FROM files f
    WHERE f.id = i.file_id AND i.state = 'queued' AND i.next_run_at <= now()
"""
CLAIMED = """
    RETURNING i.id AS ingestion_id, i.fence, i.attempts - i.crashes AS attempts, i.user_id, i.file_id, f.filename,
              f.media_type, i.embedding_key_id, i.max_chunk_size_tokens, i.chunk_overlap_tokens
"""


async def claim(conn: Connection, ingestion_id: UUID, *, lease_seconds: float, worker: str) -> Claim | None:
    """Take the ingestion that a hint names; None when a rival was first, it is settled, gone, or not yet due.

    Raises:
        BeingChanged: it is locked, by somebody who attaches, detaches or deletes, which may take as long as the
            deletion of old chunks does; nobody waits for that with a connection in hand.
    """
    claim_it = CLAIM.format(hinted_at="NULL")  # its job runs, so there will be none to withdraw
    row = await conn.fetchrow(
        f"""
        {claim_it} AND i.id = (
            SELECT id FROM ingestions WHERE id = $3 AND {_DUE} FOR UPDATE SKIP LOCKED
        ) {CLAIMED}
        """,
        lease_seconds,
        worker,
        ingestion_id,
    )
    if row is None and await conn.fetchval(f"SELECT true FROM ingestions WHERE id = $1 AND {_DUE}", ingestion_id):
        raise BeingChanged
    return Claim(**dict(row)) if row else None


async def extend_leases(
    conn: Connection, held: Sequence[tuple[UUID, int]], *, lease_seconds: float, timeout_seconds: float
) -> dict[tuple[UUID, int], bool]:
    """Extend the leases of (ingestion id, fence) pairs; of those that are still ours, whether it was extended.

    The others are lost. A row that is locked, by its own commit as a rule, is left alone (no sweep takes a locked
    row), so one large write does not keep the beat from all others; it is to be tried again soon.
    """
    rows = await conn.fetch(
        """
        WITH held AS (SELECT * FROM unnest($2::uuid[], $3::int[]) AS h (id, fence)),
        ours AS (
            SELECT i.id, i.fence FROM ingestions i JOIN held h USING (id, fence) WHERE i.state = 'running'
        ),
        free AS (SELECT id FROM ingestions WHERE id IN (SELECT id FROM ours) FOR UPDATE SKIP LOCKED),
        extended AS (
            UPDATE ingestions i SET lease_until = now() + make_interval(secs => $1)
            FROM free, held h WHERE i.id = free.id AND i.id = h.id AND i.fence = h.fence AND i.state = 'running'
        )
        SELECT id, fence, id IN (SELECT id FROM free) AS is_extended FROM ours
        """,
        lease_seconds,
        [ingestion_id for ingestion_id, _ in held],
        [fence for _, fence in held],
        timeout=timeout_seconds,  # a connection that has gone silent must not stop all beats
    )
    return {(row["id"], row["fence"]): row["is_extended"] for row in rows}


async def note_progress(
    conn: Connection, held: Claim, *, stage: str, chunks_total: int = 0, chunks_embedded: int = 0
) -> None:
    """Show how far an attempt has come; without effect once the claim is lost."""
    await conn.execute(
        """
        UPDATE ingestions SET stage = $3, chunks_total = $4, chunks_embedded = $5
        WHERE id = $1 AND fence = $2 AND state = 'running'
        """,
        held.ingestion_id,
        held.fence,
        stage,
        chunks_total,
        chunks_embedded,
    )


async def note_billed(conn: Connection, held: Claim, tokens: int) -> None:
    """Add what a provider billed, at once: it is owed even if the attempt fails later."""
    await conn.execute(
        "UPDATE ingestions SET billed_tokens = billed_tokens + $2 WHERE id = $1", held.ingestion_id, tokens
    )


async def lock_claim(conn: Connection, held: Claim) -> bool:
    """Lock the row if the claim still holds. The write transaction begins with this.

    Rivals: a sweep that took the lease back or a cancel; whoever locks first wins, the other sees it.
    """
    row = await conn.fetchrow(
        "SELECT id FROM ingestions WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE",
        held.ingestion_id,
        held.fence,
    )
    return row is not None


async def complete(conn: Connection, held: Claim, *, chunks: int) -> None:
    """Mark a locked ingestion completed, in the transaction that writes its chunks."""
    await conn.execute(
        """
        UPDATE ingestions SET state = 'completed', stage = 'done', finished_at = now(), lease_until = NULL,
            chunks_total = $2, chunks_embedded = $2, error_code = NULL, error_message = NULL
        WHERE id = $1
        """,
        held.ingestion_id,
        chunks,
    )


async def fail(conn: Connection, held: Claim, *, code: FailureCode, message: str) -> bool:
    """End an attempt as `failed`; False when the claim was lost meanwhile, or the attempt had completed.

    May be called again when it is not known whether it took effect.
    """
    return bool(
        await conn.fetchval(
            """
            WITH ended AS (
                UPDATE ingestions SET state = 'failed', stage = 'done', finished_at = now(), lease_until = NULL,
                    error_code = $3, error_message = $4
                WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING id
            )
            SELECT EXISTS (SELECT FROM ended)
                OR EXISTS (SELECT FROM ingestions WHERE id = $1 AND fence = $2 AND state = 'failed')
            """,
            held.ingestion_id,
            held.fence,
            code,
            message,
        )
    )


async def retry_later(
    conn: Connection, held: Claim, *, delay_seconds: float, message: str, costs_attempt: bool
) -> Hint | None:
    """Put an attempt back for later, keeping its last error; None when the claim was lost meanwhile.

    The row counts as unhinted, so that nothing depends on the caller's ring: once due, the sweep rings too.
    """
    row = await conn.fetchrow(
        """
        UPDATE ingestions SET state = 'queued', stage = 'queued', lease_until = NULL, hinted_at = NULL,
            next_run_at = now() + make_interval(secs => $3), error_message = $4, attempts = attempts - $5
        WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING fence
        """,
        held.ingestion_id,
        held.fence,
        delay_seconds,
        message,
        0 if costs_attempt else 1,
    )
    if row is None:
        return None
    return Hint(held.ingestion_id, held.user_id, held.embedding_key_id, held.fence + 1, delay_seconds)


GIVE_BACK = """
    UPDATE ingestions SET state = 'queued', stage = 'queued', lease_until = NULL, hinted_at = NULL,
        attempts = attempts - 1
"""
"""It costs neither an attempt nor a crash; the sweep rings for it."""


async def give_back(conn: Connection, held: Claim) -> bool:
    """Return an attempt that a shutdown interrupted; it does not count. False when the claim was lost.

    The sweep rings for it: a drained file has no job in the queue, and a job that was given back rings twice.
    """
    given_back = await conn.fetchval(
        f"{GIVE_BACK} WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING id",
        held.ingestion_id,
        held.fence,
    )
    return given_back is not None
