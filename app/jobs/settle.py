"""Writing down how jobs ended: in batches by one script, or, for what that does not know, by RQ's own code."""

import asyncio
import logging
import math
import pickle
import zlib
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rq.defaults import DEFAULT_FAILURE_TTL, RQ_KEY_PREFIX, UNSERIALIZABLE_RETURN_VALUE_PAYLOAD
from rq.results import Result
from rq.utils import as_text

from app.jobs.arq_log import ref_of
from app.jobs.ids import from_rq_id
from app.jobs.lua import SETTLE
from app.jobs.rq_settle import RQSettler
from app.jobs.running import AskedAgain, Ending, Errored, GivenBack, Running, Stopped, Succeeded
from app.jobs.serializers import ArqSerializer
from app.jobs.values import SerializationError

if TYPE_CHECKING:
    from app.jobs.worker import AsyncWorker

logger = logging.getLogger("rq.worker")
arqs_logger = logging.getLogger("arq.jobs")

MOST_AT_ONCE = 64
"""Larger batches hold Redis for milliseconds (JOBS.md 9)."""
_STOPPED_TEXT = "Job stopped by user, work-horse terminated."
_KINDS = {Succeeded: "finished", Errored: "failed", Stopped: "stopped", AskedAgain: "again", GivenBack: "back"}
_TYPES = {
    Succeeded: Result.Type.SUCCESSFUL.value,
    Errored: Result.Type.FAILED.value,
    Stopped: Result.Type.FAILED.value,
    AskedAgain: Result.Type.RETRIED.value,
    GivenBack: Result.Type.RETRIED.value,
}
_FOR_AGES = 10**11
"""Seconds; Redis refuses to keep a key for much longer."""
_OURS = frozenset({"status", "ended_at", "last_heartbeat"})
"""Fields of the job's hash that the script writes itself."""


@dataclass(slots=True)
class Settlement:
    """An ending on its way to Redis; `ended` in unix seconds by Redis' clock."""

    running: Running
    ending: Ending
    ended: float
    dumped: bytes | None = None  # the value, once it has been serialized


class Settler:
    """Settles endings in the order they come."""

    def __init__(self, worker: "AsyncWorker") -> None:
        self._worker = worker
        self._script = worker.redis.register_script(SETTLE)
        self._waiting: deque[Settlement] = deque()
        self._some = asyncio.Event()
        self._by_rq = RQSettler(worker)

    def put(self, running: Running, ending: Ending) -> None:
        """Have an ending written down."""
        self._waiting.append(Settlement(running, ending, self._worker.redis_time()))
        self._some.set()

    def put_failure(self, running: Running, error: Exception) -> None:
        """Have written down that an ending cannot be; by the script alone, and without what the job has changed."""
        running.is_refused = True
        running.forget_changes()
        self.put(running, Errored(error))

    async def run(self) -> None:
        """Settle until cancelled; what Redis does not take now is tried again until it does."""
        while True:
            await self._some.wait()
            await asyncio.sleep(0)  # the claim for the freed slots goes first: Redis takes one script at a time
            batch = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            if not self._waiting:
                self._some.clear()
            plain: list[Settlement] = []
            special: list[Settlement] = []
            for each in batch:
                each.ending = self._serializable(each)
                (special if self._needs_rq(each) else plain).append(each)
            for each in special:
                self._by_rq.put(each)
            if plain:
                await self._settle_all(plain)

    async def note_idle(self) -> None:
        """Have the worker's record say so if nothing runs any more."""
        worker = self._worker
        keys = [worker.key, worker.executions_key]
        await worker.until_redis_answers(partial(self._script, keys, [RQ_KEY_PREFIX]))

    def _needs_rq(self, settlement: Settlement) -> bool:
        running, ending = settlement.running, settlement.ending
        if running.needs_rq(ending):
            return True
        if isinstance(ending, Errored) and not running.is_refused and self._worker.has_own_failure_rules:
            return True
        return not running.is_arqs and _is_over(ending) and self._ttls(running, ending)[0] == 0

    async def _settle_all(self, batch: Sequence[Settlement]) -> None:
        """Settle a batch; if one of them makes that fail for good, one by one, to find out which."""
        try:
            settled, late = await self._settle_plain(batch)
        except Exception as exc:  # noqa: BLE001 - a job can put anything into its record
            if len(batch) > 1:
                for each in batch:
                    await self._settle_all([each])
                return
            await self._give_up(batch[0], exc)
        else:
            self._worker.executor.settled(settled, late)

    async def _give_up(self, settlement: Settlement, error: Exception) -> None:
        running = settlement.running
        logger.error("Worker %s: job %s cannot be settled", self._worker.name, running.job_id, exc_info=error)
        if running.is_refused:  # nor as a failure: its lease ends, and others see what they can do
            self._worker.executor.settled([settlement], {running.id})
        else:
            self.put_failure(running, error)

    async def _settle_plain(self, batch: Sequence[Settlement]) -> tuple[list[Settlement], set[str]]:
        """One round trip; what it settled, and the execution ids whose records are somebody else's by now."""
        worker = self._worker
        arguments: list[Any] = [RQ_KEY_PREFIX]
        for each in batch:
            arguments += self._record(each)
        attempts = 0

        async def settle() -> list[list[Any]]:
            nonlocal attempts
            attempts += 1
            answer: list[list[Any]] = await self._script([worker.key, worker.executions_key], arguments)
            return answer

        settled, late = list(batch), set()
        for number, verdict, *why in await worker.until_redis_answers(settle, only_while_away=True):
            settlement = batch[number - 1]
            if verdict == b"rq":
                settled.remove(settlement)
                self._by_rq.put(settlement)
            elif verdict == b"broken":
                logger.error("job %s: its ending cannot be written: %s", settlement.running.job_id, as_text(why[0]))
            elif attempts == 1:  # else it may be our own first attempt that wrote it
                late.add(settlement.running.id)
                logger.warning("job %s ended, but another run has it by now", settlement.running.job_id)
        return settled, late

    def _record(self, settlement: Settlement) -> list[Any]:
        running, ending, ended = settlement.running, settlement.ending, settlement.ended
        kind = type(ending)
        ttl, stream_ttl = self._ttls(running, ending)
        # only a run that was cancelled at work counts as a try
        tries = running.job_try if kind is not GivenBack or running.task is not None else running.job_try - 1
        result_type = Result.Type.STOPPED.value if kind is Stopped and running.is_arqs else _TYPES[kind]
        result_fields = self._result_fields(settlement)
        job_fields = self._job_fields(running)
        moment = datetime.fromtimestamp(ended, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        line = (
            f"{_KINDS[kind]} {running.job_id} {running.id} {running.started!r} {ended!r} {moment} {tries} "
            f"{(isinstance(ending, AskedAgain) and ending.delay_seconds) or 0} {result_type} {ttl} "
            f"{'-' if stream_ttl is None else stream_ttl} {int(running.is_beyond_rq)} {len(result_fields) // 2} "
            f"{len(job_fields) // 2} {running.queue_name}"
        )
        return [line, *result_fields, *job_fields]

    def _serializable(self, settlement: Settlement) -> Ending:
        """arq: a result that cannot be stored makes the job fail."""
        running, ending = settlement.running, settlement.ending
        if not isinstance(ending, Succeeded) or ending.value is None or not running.is_arqs:
            return ending
        try:
            settlement.dumped = _dumps(settlement, ending.value)
        except Exception:
            arqs_logger.warning("error serializing result of %s", ref_of(running), exc_info=True)
            return Errored(SerializationError("unable to serialize result"))
        return ending

    def _result_fields(self, settlement: Settlement) -> list[Any]:
        """RQ's, and arq's beside them: the try, and the exception itself."""
        running, ending = settlement.running, settlement.ending
        fields: list[Any] = []
        if isinstance(ending, Succeeded):
            if ending.value is not None:
                fields += ("return_value", b64encode(settlement.dumped or _dumped(running, ending.value)))
        elif isinstance(ending, Errored):
            fields += ("exc_string", _packed(ending.exc_string))
        elif isinstance(ending, Stopped):
            fields += ("exc_string", _packed(_STOPPED_TEXT))
        if not running.is_arqs:
            return fields
        fields += ("job_try", running.job_try)
        if isinstance(ending, Errored):
            stored = self._dumped_exception(settlement, ending.error)
            if stored is not None:
                fields += ("exception", b64encode(stored))
        return fields

    def _dumped_exception(self, settlement: Settlement, error: BaseException) -> bytes | None:
        """By pickle where that is trusted anyway, or by arq's `job_serializer`, if it takes it."""
        try:
            if self._worker.trusts_redis:
                return pickle.dumps(error)
            return _dumps(settlement, error) if isinstance(settlement.running.serializer, ArqSerializer) else None
        except Exception as exc:  # noqa: BLE001 - an exception may hold anything; its traceback is kept
            logger.debug("job %s: its exception cannot be serialized: %s", settlement.running.job_id, exc)
            return None

    def _job_fields(self, running: Running) -> list[Any]:
        """What the function may have changed in its job, which RQ saves too."""
        fields: list[Any] = ["crashes", 0] if b"crashes" in running.raw else []
        job = running.job
        if running.is_refused or not job.is_read:  # type: ignore[attr-defined]  # a LazyJob
            return fields
        for name, value in job.to_dict(include_meta=False, include_result=False).items():
            if not isinstance(value, bytes | str | int | float):
                raise TypeError(f"{name} is {value!r}")
            if name not in _OURS:
                fields += (name, value)
        return fields

    def _ttls(self, running: Running, ending: Ending) -> tuple[int, int | None]:
        """Seconds to keep the job and its results: -1 for ever; None leaves the results' life as it is, as RQ."""
        own = self._worker.executor.keep_seconds(running)
        if isinstance(ending, Succeeded):
            stored = own if own is not None else running.ttl_of("result_ttl")
            ttl = _whole_seconds(self._worker.default_result_ttl if stored is None else stored)
            return ttl, ttl
        stored = own if own is not None else running.ttl_of("failure_ttl")
        if stored is None:
            return DEFAULT_FAILURE_TTL, None
        return (ttl := _whole_seconds(stored)), ttl


def _whole_seconds(seconds: float) -> int:
    return math.ceil(max(-_FOR_AGES, min(_FOR_AGES, seconds)))


def _dumps(settlement: Settlement, value: Any) -> bytes:
    """Serialize a value; arq's `job_serializer` also gets what is known of the job, under arq's keys."""
    running, serializer = settlement.running, settlement.running.serializer
    if not isinstance(serializer, ArqSerializer):
        dumped: bytes = serializer.dumps(value)
        return dumped
    call, enqueued = running.call, datetime.fromisoformat(running.raw[b"created_at"].decode())
    known = {
        "t": running.job_try,
        "f": "<unknown>" if call is None else call.name,
        "a": () if call is None else tuple(call.args),
        "k": {} if call is None else call.kwargs,
        "et": round(enqueued.timestamp() * 1000),
        "s": isinstance(settlement.ending, Succeeded),
        "st": round(running.started * 1000),
        "ft": round(settlement.ended * 1000),
        "q": running.queue_name,
        "id": from_rq_id(running.job_id),
    }
    return serializer.dumps_result(value, known)


def _dumped(running: Running, value: Any) -> bytes:
    try:
        dumped: bytes = running.serializer.dumps(value)
    except Exception:  # noqa: BLE001 - as rq.results.Result.serialize
        dumped = running.serializer.dumps(UNSERIALIZABLE_RETURN_VALUE_PAYLOAD)
    return dumped


def _packed(text: str) -> bytes:
    return b64encode(zlib.compress(text.encode("utf-8", "replace")))


def _is_over(ending: Ending) -> bool:
    return not isinstance(ending, GivenBack | AskedAgain)
