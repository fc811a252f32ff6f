"""arq's public API over RQ's storage, and an RQ worker that runs many jobs at once in one event loop.

A package of its own: it imports nothing else of Sluice. See README, "The queue".
"""

from app.jobs.arq_worker import (
    FailedJobs,
    Worker,
    check_health,
    create_worker,
    get_kwargs,
    run_worker,
)
from app.jobs.budget import Budget, QueueUnavailable
from app.jobs.client import ArqRedis, connect_lazily, create_pool, log_redis_info
from app.jobs.cron import CronJob, cron
from app.jobs.enqueue import JobRequest
from app.jobs.functions import Function, RetryJob, func
from app.jobs.health import async_check_health
from app.jobs.job import Job
from app.jobs.settings import RedisSettings
from app.jobs.signals import ShutdownSignals
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
from app.jobs.views import jobs_status, view_job
from app.jobs.worker import AsyncWorker

__all__ = [
    "ArqRedis",
    "AsyncWorker",
    "Budget",
    "CronJob",
    "DeserializationError",
    "FailedJobs",
    "Function",
    "Job",
    "JobDef",
    "JobExecutionFailed",
    "JobRequest",
    "JobResult",
    "JobStatus",
    "JobView",
    "QueueUnavailable",
    "RedisSettings",
    "ResultNotFound",
    "Retry",
    "RetryJob",
    "SerializationError",
    "ShutdownSignals",
    "Worker",
    "async_check_health",
    "check_health",
    "connect_lazily",
    "create_pool",
    "create_worker",
    "cron",
    "func",
    "get_kwargs",
    "jobs_status",
    "log_redis_info",
    "run_worker",
    "view_job",
]
