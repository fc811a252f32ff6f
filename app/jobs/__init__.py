"""arq's public API over RQ's storage, and an RQ worker that runs many jobs at once in one event loop.

A package of its own: it imports nothing else of Sluice. See README, "The queue".
"""

from app.jobs.arq_log import default_log_config
from app.jobs.arq_names import (
    VERSION,
    WEEKDAYS,
    Deserializer,
    OptionType,
    SecondsTimedelta,
    Serializer,
    StartupShutdown,
    WeekdayOptionType,
    WorkerCoroutine,
    WorkerSettingsBase,
    WorkerSettingsType,
    default_queue_name,
    expires_extra_ms,
    health_check_key_suffix,
)
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
from app.jobs.cron import CronJob, cron, next_cron
from app.jobs.enqueue import JobRequest
from app.jobs.functions import Function, RetryJob, func
from app.jobs.health import async_check_health
from app.jobs.job import Job
from app.jobs.settings import RedisSettings
from app.jobs.signals import ShutdownSignals
from app.jobs.trampoline import import_string
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
    "VERSION",
    "WEEKDAYS",
    "ArqRedis",
    "AsyncWorker",
    "Budget",
    "CronJob",
    "DeserializationError",
    "Deserializer",
    "FailedJobs",
    "Function",
    "Job",
    "JobDef",
    "JobExecutionFailed",
    "JobRequest",
    "JobResult",
    "JobStatus",
    "JobView",
    "OptionType",
    "QueueUnavailable",
    "RedisSettings",
    "ResultNotFound",
    "Retry",
    "RetryJob",
    "SecondsTimedelta",
    "SerializationError",
    "Serializer",
    "ShutdownSignals",
    "StartupShutdown",
    "WeekdayOptionType",
    "Worker",
    "WorkerCoroutine",
    "WorkerSettingsBase",
    "WorkerSettingsType",
    "async_check_health",
    "check_health",
    "connect_lazily",
    "create_pool",
    "create_worker",
    "cron",
    "default_log_config",
    "default_queue_name",
    "expires_extra_ms",
    "func",
    "get_kwargs",
    "health_check_key_suffix",
    "import_string",
    "jobs_status",
    "log_redis_info",
    "next_cron",
    "run_worker",
    "view_job",
]
