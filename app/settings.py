"""Every setting, read once from the environment; a wrong one stops the start with a line that names it."""

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import Broken

LOCAL_MODEL = "wordllama-256"
LOCAL_DIMENSIONS = 256
QUEUE_NAME = "file_processing"
_FEWEST_HINTS_A_USER = 4
KEK_BYTES = 32
USUAL_DIMENSIONS = {
    LOCAL_MODEL: LOCAL_DIMENSIONS,
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}


def _database_url(url: str) -> str:
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("expected postgresql://user:password@host:port/database")
    return url


def _redis_url(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected redis://, rediss:// or unix://")
    try:
        urlsplit(url).port  # noqa: B018 - reads it, and says if it cannot
    except ValueError:  # its text quotes what it could not read, which may be a part of the password
        raise ValueError("cannot be read; percent-encode special characters in the password") from None
    return url


def _base_url(url: str) -> str:
    """The address of an API. It is shown to whoever adds a key, and kept as it is: it must hold no secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its text quotes a part of the URL
        usable = False
    if not usable:
        raise ValueError("expected http(s)://host/path")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("no user, password, query or fragment can stand in it: users see it; use an API key")
    return url


def _base_urls(urls: str) -> str:
    for url in filter(None, map(str.strip, urls.split(","))):
        _base_url(url)
    return urls


class KeyEncryptionKey:
    """A 32-byte AES key that seals embedding keys, named by the first 8 hex digits of its SHA-256."""

    def __init__(self, encoded: str) -> None:
        try:
            self.material = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            self.material = b""
        if len(self.material) != KEK_BYTES:
            raise ValueError("expected 32 random bytes in base64: head -c 32 /dev/urandom | base64")
        self.id = hashlib.sha256(self.material).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"KeyEncryptionKey(id={self.id!r})"


class Settings(BaseSettings):
    """One attribute per environment variable of the same name in capitals; README lists them from here."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True, allow_inf_nan=False)

    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        repr=False, description="Postgres with pgvector: postgresql://user:password@host:port/database."
    )
    redis_url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        None, repr=False, description="Redis for the job queue; required unless ENABLE_JOB_QUEUE is false."
    )
    storage_url: str = Field(
        repr=False, description="Where uploads are kept: file:///folder, s3://bucket/prefix, gs://… or az://…."
    )
    enable_job_queue: bool = Field(
        default=True, description="false: no Redis; files are claimed straight from Postgres."
    )

    rag_embedding_engine: Literal["local", "openai"] = Field(
        "local",
        description="`local` (built in, 256 dimensions) or `openai` (any OpenAI-compatible API). "
        "Left out, it is `openai` as soon as RAG_OPENAI_API_BASE_URL or RAG_OPENAI_API_KEY is set.",
    )
    rag_embedding_model: str = Field(
        LOCAL_MODEL,
        description="Model of new vector stores; `text-embedding-3-small` with the openai engine.",
    )
    rag_embedding_dimensions: int = Field(
        LOCAL_DIMENSIONS,
        ge=1,
        le=16_000,
        description="Dimensions of new vector stores; known for OpenAI's own models, else to be given.",
    )
    rag_embedding_batch_size: int = Field(256, ge=1, le=2048, description="Most texts in one embeddings request.")
    rag_openai_api_base_url: Annotated[str, AfterValidator(_base_url)] = Field(
        "https://api.openai.com/v1", description="Base URL of the embeddings API; users see it."
    )
    rag_openai_allowed_base_urls: Annotated[str, AfterValidator(_base_urls)] = Field(
        "",
        description="Other base URLs, separated by commas, that users may give with keys of their own; any other "
        "is refused, so that nobody aims this server at internal addresses.",
    )
    rag_openai_api_key: SecretStr | None = Field(
        None, description="Server default embedding key, for users who have none of their own."
    )
    embedding_concurrency: int = Field(
        8, ge=1, le=1000, description="Embeddings requests under way at once, per key and process."
    )
    embedding_timeout_seconds: float = Field(60, gt=0, description="Time limit of one embeddings request.")
    sluice_key_encryption_key: SecretStr | None = Field(
        None, description="32 random bytes in base64 that seal users' embedding keys at rest."
    )

    job_timeout: int = Field(3600, ge=1, description="Seconds that one attempt at a file may take.")
    job_max_retries: int = Field(3, ge=0, description="Attempts after the first, for faults that may heal.")
    job_retry_delay: float = Field(60, ge=0.05, description="Seconds before the first retry; doubles each time.")
    job_result_ttl: int = Field(3600, ge=0, description="Seconds that Redis keeps a finished job.")
    job_failure_ttl: int = Field(86400, ge=0, description="Seconds that Redis keeps a failed job.")

    worker_concurrency: int = Field(16, ge=1, le=1000, description="Files in work at once, per worker.")
    lease_seconds: float = Field(30, gt=0, description="A worker not heard of for so long loses its files.")
    sweep_interval_seconds: float = Field(5, gt=0, description="Seconds between two repairs of the state.")

    max_upload_bytes: int = Field(512 * 1024**2, ge=1, description="Largest file accepted.")
    max_files_per_batch: int = Field(2000, ge=1, description="Most files in one batch or batch upload.")
    extraction_concurrency: int = Field(2, ge=1, description="Parser child processes at once, per worker.")
    extraction_timeout_seconds: float = Field(120, gt=0, description="Wall time a parser may take per file.")
    extraction_memory_bytes: int = Field(1024**3, ge=64 * 1024**2, description="Memory a parser may take.")
    extraction_max_pages: int = Field(10_000, ge=1, description="Most pages of a PDF.")
    extraction_max_tokens: int = Field(
        10_000_000,
        ge=1,
        description="Most tokens that one file may cost, overlaps included, before they are paid for.",
    )
    extraction_max_characters: int = Field(20_000_000, ge=1, description="Longest text taken from a file.")
    large_file_bytes: int = Field(
        64 * 1024**2,
        ge=0,
        description="Of files whose vectors take more than this, a worker has four in hand at most, one a "
        "user's: it holds them in memory.",
    )
    database_patience_seconds: float = Field(
        30, ge=0, description="How long API and workers wait at their start for a Postgres that is away."
    )
    database_pool_size: int = Field(10, ge=2, description="Postgres connections per process.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    @model_validator(mode="before")
    @classmethod
    def _openai_defaults(cls, given: dict[str, object]) -> dict[str, object]:
        """Naming an embeddings API chooses the openai engine, and with it OpenAI's usual model."""
        named = given.get("rag_openai_api_base_url") or given.get("rag_openai_api_key")
        if named and not given.get("rag_embedding_engine"):
            given["rag_embedding_engine"] = "openai"
        if given.get("rag_embedding_engine") == "openai" and not given.get("rag_embedding_model"):
            given["rag_embedding_model"] = "text-embedding-3-small"
        model = str(given.get("rag_embedding_model"))
        if given.get("rag_embedding_engine") == "openai" and not given.get("rag_embedding_dimensions"):
            if model not in USUAL_DIMENSIONS:
                raise ValueError(f"RAG_EMBEDDING_DIMENSIONS is missing: how many has {model}?")
            given["rag_embedding_dimensions"] = USUAL_DIMENSIONS[model]
        return given

    @field_validator("sluice_key_encryption_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            KeyEncryptionKey(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        if self.enable_job_queue and self.redis_url is None:
            raise ValueError("REDIS_URL is missing; set it, or ENABLE_JOB_QUEUE=false to run without Redis")
        local = self.rag_embedding_engine == "local"
        if local and (self.rag_embedding_model, self.rag_embedding_dimensions) != (
            LOCAL_MODEL,
            LOCAL_DIMENSIONS,
        ):
            raise ValueError(
                f"RAG_EMBEDDING_ENGINE=local has one model, {LOCAL_MODEL} with {LOCAL_DIMENSIONS} dimensions; "
                "unset RAG_EMBEDDING_MODEL and RAG_EMBEDDING_DIMENSIONS, or set RAG_EMBEDDING_ENGINE=openai"
            )
        return self

    @property
    def key_encryption_key(self) -> KeyEncryptionKey | None:
        """The key that seals embedding keys, if one is set."""
        secret = self.sluice_key_encryption_key
        return KeyEncryptionKey(secret.get_secret_value()) if secret else None

    @property
    def allowed_base_urls(self) -> frozenset[str]:
        """The base URLs that a user's embedding key may be for."""
        others = (url.strip() for url in self.rag_openai_allowed_base_urls.split(","))
        return frozenset(url.rstrip("/") for url in (self.rag_openai_api_base_url, *others) if url)

    @property
    def hints_a_user(self) -> int:
        """Of how many files of one user the queue hears at a time: as many as a worker takes at once."""
        return max(_FEWEST_HINTS_A_USER, self.worker_concurrency)

    @property
    def storage_path(self) -> Path | None:
        """The local folder behind STORAGE_URL, or None when uploads live in an object store."""
        return Path(self.storage_url.removeprefix("file://")) if self.storage_url.startswith("file://") else None


def load_settings(**overrides: object) -> Settings:
    """The settings of this process, `overrides` first, then the environment.

    Raises:
        Broken: one line for each setting that is missing or wrong; never its value, it may be a secret.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic validates what the types cannot say
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in problem["loc"]).upper()
            what = "is missing" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
            problems.append(f"{name} {what}" if problem["type"] == "missing" else f"{name}: {what}".lstrip(": "))
        raise Broken("; ".join(problems)) from None
