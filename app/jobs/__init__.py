"""arq's public API over RQ's storage, and an RQ worker that runs many jobs at once in one event loop.

A package of its own: it imports nothing else of Sluice. See README, "The queue".
"""

from app.jobs.client import ArqRedis, JobRequest, connect_lazily, create_pool
from app.jobs.job import Job, jobs_status, view_job
from app.jobs.settings import RedisSettings
from app.jobs.values import (
    DeserializationError,
    JobDef,
    JobExecutionFailed,
    JobResult,
    JobStatus,
    JobView,
    ResultNotFound,
    Retry,
    SerializationError,
)
from app.jobs.worker import AsyncWorker

__all__ = [
    "ArqRedis",
    "AsyncWorker",
    "DeserializationError",
    "Job",
    "JobDef",
    "JobExecutionFailed",
    "JobRequest",
    "JobResult",
    "JobStatus",
    "JobView",
    "RedisSettings",
    "ResultNotFound",
    "Retry",
    "SerializationError",
    "connect_lazily",
    "create_pool",
    "jobs_status",
    "view_job",
]
