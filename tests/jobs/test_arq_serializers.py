"""arq's `job_serializer` and `job_deserializer`, of every kind that users bring (arq 0.28)."""

import json
import pickle
import re
from typing import Any

import pytest

from app.jobs import Job, JobExecutionFailed, RedisSettings, SerializationError, create_pool, func
from tests.jobs.conftest import run_all


class Refused(Exception):
    """A job's own."""


async def multiply(ctx: dict[str, Any], left: int, right: int) -> int:
    return left * right


def pickled(fields: dict[str, Any]) -> bytes:
    """Pickle in all but name: nothing here knows that it trusts what it reads."""
    return b"ours" + pickle.dumps(fields)


def unpickled(stored: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = pickle.loads(stored.removeprefix(b"ours"))  # noqa: S301 - the test's own
    return fields


async def test_a_serializer_may_make_text(redis_url: str) -> None:
    pool = await create_pool(
        RedisSettings.from_dsn(redis_url), job_serializer=json.dumps, job_deserializer=json.loads
    )
    job = await pool.enqueue_job("multiply", 6, 7)
    assert job is not None
    await run_all(redis_url, multiply, job_serializer=json.dumps, job_deserializer=json.loads)
    assert await job.result(5) == 42
    await pool.aclose()


async def test_ones_own_serializer_takes_exceptions_and_large_arguments(redis_url: str) -> None:
    async def refuse(ctx: dict[str, Any], body: bytes) -> None:
        raise Refused(len(body))

    settings, most = RedisSettings.from_dsn(redis_url), 17 * 1024 * 1024
    pool = await create_pool(settings, job_serializer=pickled, job_deserializer=unpickled)
    job = await pool.enqueue_job("refuse", bytes(most))
    assert job is not None
    await run_all(redis_url, func(refuse, name="refuse"), job_serializer=pickled, job_deserializer=unpickled)
    with pytest.raises(Refused) as caught:
        await job.result(5)
    assert caught.value.args == (most,)
    with pytest.raises(JobExecutionFailed, match=f"Refused: {most}"):  # pickle makes nothing of it
        await Job(job.job_id, pool, _deserializer=pickle.loads).result(5)
    with pytest.raises(JobExecutionFailed, match=f"Refused: {most}"):  # and RQ's JSON does not look at it
        await Job(job.job_id, pool, _deserializer="json").result(5)
    await pool.aclose()


async def test_what_a_serializer_makes_of_an_exception_is_what_is_read(redis_url: str) -> None:
    def described(fields: dict[str, Any]) -> str:
        return json.dumps(fields, default=repr)

    async def refuse(ctx: dict[str, Any]) -> None:
        raise Refused("no")

    settings = RedisSettings.from_dsn(redis_url)
    pool = await create_pool(settings, job_serializer=described, job_deserializer=json.loads)
    job = await pool.enqueue_job("refuse")
    assert job is not None
    await run_all(redis_url, func(refuse, name="refuse"), job_serializer=described, job_deserializer=json.loads)
    with pytest.raises(SerializationError, match=re.escape("Refused('no')")):
        await job.result(5)
    found = await job.result_info()
    assert found is not None
    assert (found.success, found.result) == (False, "Refused('no')")
    await pool.aclose()


async def test_a_serializer_is_told_whose_result_it_is(redis_url: str) -> None:
    results: list[dict[str, Any]] = []

    def noted(fields: dict[str, Any]) -> bytes:
        if "r" in fields:
            results.append(fields)
        return pickle.dumps(fields)

    pool = await create_pool(RedisSettings.from_dsn(redis_url), job_serializer=noted)
    await pool.enqueue_job("multiply", 6, right=7, _job_id="of:mine", _job_try=2)
    await run_all(redis_url, multiply, job_serializer=noted)
    (found,) = results
    started, ended = found.pop("st"), found.pop("ft")
    assert found.pop("et") <= started <= ended
    assert found == {
        "t": 2, "f": "multiply", "a": (6,), "k": {"right": 7}, "s": True, "r": 42, "q": "arq:queue", "id": "of:mine"
    }  # fmt: skip
    await pool.aclose()
