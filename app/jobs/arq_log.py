"""The lines that arq logs of its jobs (arq 0.28, `arq.worker`), under its logger's name."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.jobs.functions import CronFunction
from app.jobs.ids import from_rq_id
from app.jobs.running import AskedAgain, Ending, Errored, GivenBack, Running, Stopped, Succeeded
from app.jobs.values import DeserializationError

logger = logging.getLogger("arq.worker")

_MOST_SHOWN = 80
_LATE_SECONDS = 1.2


def default_log_config(verbose: bool) -> dict[str, Any]:  # noqa: FBT001 - arq's signature
    """For `logging.config.dictConfig`: what workers say, to stderr, with `verbose` in detail."""
    level = "DEBUG" if verbose else "INFO"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {
            "arq.standard": {"level": level, "class": "logging.StreamHandler", "formatter": "arq.standard"}
        },
        "formatters": {"arq.standard": {"format": "%(asctime)s: %(message)s", "datefmt": "%H:%M:%S"}},
        "loggers": {name: {"handlers": ["arq.standard"], "level": level} for name in ("arq", "rq", "app.jobs")},
    }


def log_start(running: Running, now: float) -> None:
    """A job begins; `now` is Redis' time in unix seconds."""
    call, ctx = running.call, running.ctx
    if call is None or ctx is None or not logger.isEnabledFor(logging.INFO):
        return
    late = now - ctx["score"] / 1000
    extra = f" try={running.job_try}" if running.job_try > 1 else ""
    if late > _LATE_SECONDS:
        extra += f" delayed={late:0.2f}s"
    waited = now - ctx["enqueue_time"].timestamp()
    logger.info("%6.2fs → %s(%s)%s", waited, ref_of(running), shown_arguments(call.args, call.kwargs), extra)


def log_end(running: Running, ending: Ending, now: float, *, with_results: bool) -> None:
    """A job has ended, or run for nothing."""
    if running.task is None:
        _log_no_start(running, ending, now)
        return
    took, ref = now - running.started, ref_of(running)
    if isinstance(ending, Succeeded):
        if logger.isEnabledFor(logging.INFO):
            shown = _cut(_shown(ending.value)) if with_results and ending.value is not None else ""
            logger.info("%6.2fs ← %s ● %s", took, ref, shown)
    elif isinstance(ending, AskedAgain):
        if ending.delay_seconds is None:
            logger.info("%6.2fs ↻ %s cancelled, will be run again", took, ref)
        else:
            logger.info("%6.2fs ↻ %s retrying job in %0.2fs", took, ref, ending.delay_seconds)
    elif isinstance(ending, GivenBack):
        logger.info("%6.2fs ↻ %s cancelled, will be run again", took, ref)
    elif isinstance(ending, Stopped):
        logger.info("%6.2fs ⊘ %s aborted", took, ref)
    else:
        _log_failure(ending, took, ref)


def _log_no_start(running: Running, ending: Ending, now: float) -> None:
    job_id, waited = from_rq_id(running.job_id), _waited(running, now)
    if not isinstance(ending, Errored):
        logger.info("%6.2fs ⊘ %s aborted before start", waited, _id_and_name(running))
        return
    error = ending.error
    if isinstance(error, DeserializationError):
        logger.error("deserializing job %s failed", job_id, exc_info=(type(error), error, error.__traceback__))
    elif ending.is_expired:
        logger.warning("job %s expired", job_id)
    elif ending.most_tries is not None:
        logger.warning("%6.2fs ! %s max retries %d exceeded", waited, ref_of(running), ending.most_tries)
    else:
        logger.warning("job %s, %s", job_id, error)


def _waited(running: Running, now: float) -> float:
    """Seconds since it was enqueued, as far as its record tells."""
    try:
        return now - datetime.fromisoformat(running.raw[b"created_at"].decode()).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _log_failure(ending: Errored, took: float, ref: str) -> None:
    error = ending.error
    extra = getattr(error, "extra", None)
    logger.error(
        "%6.2fs ! %s failed, %s: %s",
        took,
        ref,
        type(error).__name__,
        error,
        exc_info=(type(error), error, error.__traceback__),
        extra={"extra": extra() if callable(extra) else extra},
    )


def shown_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Arguments as they would be written in a call, at most 80 characters of them."""
    return _cut(
        ", ".join([*map(_shown, args), *(f"{name}={_shown(value)}" for name, value in sorted(kwargs.items()))])
    )


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a line in a log must not fail a job
        return f"<{type(value).__name__} that cannot be shown>"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"


def ref_of(running: Running) -> str:
    """How arq names a run: a cron job by its name, any other by its id and its function's."""
    if running.call is not None and isinstance(running.call.limits, CronFunction):
        return running.call.name
    return _id_and_name(running)


def _id_and_name(running: Running) -> str:
    job_id = from_rq_id(running.job_id)
    return job_id if running.call is None else f"{job_id}:{running.call.name}"
