"""arq's constants and types, under arq's names (arq 0.28, `arq.constants`, `arq.typing`, `arq.version`)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from app.jobs.client import DAY_MS, DEFAULT_QUEUE
from app.jobs.cron import WEEKDAYS, CronJob, Option
from app.jobs.functions import Duration, Function
from app.jobs.health import KEY_SUFFIX
from app.jobs.serializers import DictDeserializer, DictSerializer

VERSION = "0.28.0"
"""Of the arq whose API this is."""
default_queue_name = DEFAULT_QUEUE
expires_extra_ms = DAY_MS
health_check_key_suffix = KEY_SUFFIX

Serializer = DictSerializer
Deserializer = DictDeserializer
SecondsTimedelta = Duration
OptionType = Option
WeekdayOptionType = Option | str


class WorkerCoroutine(Protocol):
    """A function that a worker runs."""

    __qualname__: str

    async def __call__(self, ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """The job's result."""


class StartupShutdown(Protocol):
    """A worker's hook."""

    __qualname__: str

    async def __call__(self, ctx: dict[Any, Any]) -> Any:
        """Nothing that anybody looks at."""


class WorkerSettingsBase(Protocol):
    """A class of a worker's settings; the names are those of `Worker`'s parameters."""

    functions: Sequence[WorkerCoroutine | Function]
    cron_jobs: Sequence[CronJob] | None = None
    on_startup: StartupShutdown | None = None
    on_shutdown: StartupShutdown | None = None


WorkerSettingsType = type | Mapping[str, Any]

__all__ = [
    "VERSION",
    "WEEKDAYS",
    "Deserializer",
    "OptionType",
    "SecondsTimedelta",
    "Serializer",
    "StartupShutdown",
    "WeekdayOptionType",
    "WorkerCoroutine",
    "WorkerSettingsBase",
    "WorkerSettingsType",
    "default_queue_name",
    "expires_extra_ms",
    "health_check_key_suffix",
]
