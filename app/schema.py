"""Every table, described once; alembic compares the database with this and `sluice doctor` checks its rules.

Times are Postgres's (`now()`), so the clocks of API, workers and Redis do not matter.
"""

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

SHARD_TABLE_PREFIX = "chunks_shard_"
"""Partitions of `chunks` are made at run time, one per shard; alembic does not manage them."""


def _id() -> Column[object]:
    return Column("id", Uuid, primary_key=True)


def _moment(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _created_at() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()"))


def _reference(name: str, target: str, *, required: bool = True, cascade: bool = False) -> Column[object]:
    return Column(name, Uuid, ForeignKey(target, ondelete="CASCADE" if cascade else None), nullable=not required)


def _count(name: str, *, big: bool = False) -> Column[object]:
    return Column(name, BigInteger if big else Integer, nullable=False, server_default=text("0"))


users = Table("users", metadata, _id(), Column("name", Text, nullable=False, unique=True), _created_at())

groups = Table(
    "groups",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    _reference("creator_id", "users.id"),
    _created_at(),
)

group_members = Table(
    "group_members",
    metadata,
    _reference("group_id", "groups.id", cascade=True),
    _reference("user_id", "users.id", cascade=True),
    PrimaryKeyConstraint("group_id", "user_id"),
    Index(None, "user_id"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    _id(),
    _reference("user_id", "users.id", cascade=True),
    Column("name", Text, nullable=False),
    Column("token_sha256", LargeBinary, nullable=False, unique=True),
    Column("hint", Text, nullable=False),  # the last four characters, to tell keys apart
    _created_at(),
    _moment("revoked_at"),
    Index(None, "user_id"),
)

embedding_keys = Table(
    "embedding_keys",
    metadata,
    _id(),
    _reference("owner_id", "users.id", cascade=True),
    Column("name", Text, nullable=False),
    Column("base_url", Text, nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    _created_at(),
    _moment("revoked_at"),
    Index(None, "owner_id"),
)

files = Table(
    "files",
    metadata,
    _id(),
    _reference("owner_id", "users.id"),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("media_type", Text),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    _created_at(),
    _moment("expires_at"),
    Index(None, "owner_id", "id"),
    Index("ix_files_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)

shards = Table(
    "shards",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("dimensions", Integer, nullable=False, unique=True),
)

vector_stores = Table(
    "vector_stores",
    metadata,
    _id(),
    _reference("owner_id", "users.id"),
    Column("name", Text),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("model", Text, nullable=False),
    Column("dimensions", Integer, nullable=False),
    Column("shard", Integer, ForeignKey("shards.id"), nullable=False),
    _created_at(),
    Column("last_active_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("expires_after_days", Integer),
    Index(None, "owner_id", "id"),
)

vector_store_grants = Table(
    "vector_store_grants",
    metadata,
    _reference("vector_store_id", "vector_stores.id", cascade=True),
    _reference("group_id", "groups.id", cascade=True),
    Column("may_write", Boolean, nullable=False),
    PrimaryKeyConstraint("vector_store_id", "group_id"),
    Index(None, "group_id"),
)

batches = Table(
    "batches",
    metadata,
    _id(),
    _reference("owner_id", "users.id"),
    # null: a batch upload into several vector stores at once
    _reference("vector_store_id", "vector_stores.id", required=False, cascade=True),
    _created_at(),
    Index(None, "vector_store_id"),
    Index(None, "owner_id"),
)

ingestions = Table(
    "ingestions",
    metadata,
    _id(),
    _reference("user_id", "users.id"),
    _reference("file_id", "files.id", cascade=True),
    _reference("batch_id", "batches.id", required=False, cascade=True),
    Column("state", Text, nullable=False, server_default="queued"),
    Column("stage", Text, nullable=False, server_default="queued"),
    Column("fence", Integer, nullable=False, server_default=text("0")),
    _count("attempts"),
    _count("crashes"),
    Column("next_run_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    _moment("lease_until"),
    Column("leased_by", Text),
    _moment("hinted_at"),  # see app.records.hints
    _reference("embedding_key_id", "embedding_keys.id", required=False),
    Column("max_chunk_size_tokens", Integer, nullable=False),
    Column("chunk_overlap_tokens", Integer, nullable=False),
    _count("chunks_total"),
    _count("chunks_embedded"),
    _count("billed_tokens", big=True),
    Column("error_code", Text),
    Column("error_message", Text),
    _created_at(),
    _moment("started_at"),
    _moment("finished_at"),
    CheckConstraint("state IN ('queued', 'running', 'completed', 'failed', 'cancelled')", name="state"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("(state = 'failed') <= (error_code IS NOT NULL)", name="failed_has_reason"),
    CheckConstraint("(state IN ('completed', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
    Index("ix_ingestions_due", "next_run_at", postgresql_where=text("state = 'queued'")),
    Index("ix_ingestions_turns", "user_id", "next_run_at", "id", postgresql_where=text("state = 'queued'")),
    Index(  # for the version before only; to be dropped by the next release
        "ix_ingestions_unheard",
        text("coalesce(hinted_at, '-infinity'::timestamptz)"),
        "next_run_at",
        postgresql_where=text("state = 'queued'"),
    ),
    Index(
        "ix_ingestions_overtaken",
        "id",
        postgresql_where=text("state IN ('completed', 'failed', 'cancelled') AND hinted_at IS NOT NULL"),
    ),
    Index("ix_ingestions_leases", "lease_until", postgresql_where=text("state = 'running'")),
    Index(None, "batch_id", "id"),
    Index(None, "file_id"),
    Index(None, "user_id", "id"),
)

queue_epochs = Table(
    "queue_epochs",
    metadata,
    Column("is_only_row", Boolean, primary_key=True, server_default=text("true")),
    Column("epoch", Uuid, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    CheckConstraint("is_only_row", name="one_row"),
)

accepted_requests = Table(
    "accepted_requests",
    metadata,
    _reference("user_id", "users.id", cascade=True),
    # SHA-256 of what makes two requests the same: the Idempotency-Key, or else the content
    Column("fingerprint", LargeBinary, nullable=False),
    Column("content_sha256", LargeBinary, nullable=False),
    Column("created_id", Uuid, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("user_id", "fingerprint"),
    Index(None, "expires_at"),
)

vector_store_files = Table(
    "vector_store_files",
    metadata,
    _reference("vector_store_id", "vector_stores.id", cascade=True),
    _reference("file_id", "files.id", cascade=True),
    # the newest ingestion decides the status: there is no second copy of it here
    _reference("ingestion_id", "ingestions.id"),
    Column("attributes", JSONB, nullable=False, server_default=text("'{}'")),
    _count("chunk_count"),
    _count("usage_bytes", big=True),
    _created_at(),
    PrimaryKeyConstraint("vector_store_id", "file_id"),
    Index(None, "ingestion_id"),
    Index(None, "file_id"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("shard", Integer, nullable=False),
    Column("vector_store_id", Uuid, nullable=False),
    Column("file_id", Uuid, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("content", Text, nullable=False),
    Column("embedding", HALFVEC, nullable=False),  # untyped: each shard's CHECK holds its dimensions
    Column("words", TSVECTOR, Computed("to_tsvector('simple'::regconfig, content)", persisted=True)),
    PrimaryKeyConstraint("shard", "vector_store_id", "file_id", "ordinal"),
    postgresql_partition_by="LIST (shard)",
)

embedded_texts = Table(
    "embedded_texts",
    metadata,
    _reference("owner_id", "users.id", cascade=True),
    Column("model", Text, nullable=False),
    Column("dimensions", Integer, nullable=False),
    Column("text_sha256", LargeBinary, nullable=False),
    Column("embedding", LargeBinary, nullable=False),  # little-endian float16, 2 * dimensions bytes
    _created_at(),
    PrimaryKeyConstraint("owner_id", "model", "dimensions", "text_sha256"),
    Index(None, "created_at"),
)
