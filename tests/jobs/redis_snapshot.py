"""Everything that a Redis holds, made comparable: moments, execution ids and the runner's frames taken out."""

import base64
import re
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from rq import get_current_job


@dataclass(frozen=True)
class About:
    """Seconds from now; equal within what a busy machine takes between two snapshots."""

    seconds: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, About) and abs(self.seconds - other.seconds) <= 15

    __hash__ = None  # type: ignore[assignment]


def snapshot(client: redis.Redis) -> dict[str, Any]:
    """Every key with its kind, its life and what it holds, made comparable."""
    seen: dict[str, Any] = {}
    for raw_key in client.scan_iter():
        key = raw_key.decode()
        ttl = client.ttl(key)
        kind = client.type(key).decode()
        if kind == "none":  # somebody's lock, let go of just now
            continue
        content = READERS[kind](client, key)
        seen[_without_ids(key)] = {"ttl": About(ttl) if ttl >= 0 else "forever", **content}
    return dict(sorted(seen.items()))


_looks: list[dict[str, Any]] = []


def look() -> None:
    """A job's function: takes a snapshot while the job runs."""
    job = get_current_job()
    assert job is not None
    _looks.append(snapshot(job.connection))


async def look_async() -> None:
    look()


def taken_look() -> dict[str, Any]:
    """The snapshot that a job in this process has just taken."""
    return _looks.pop()


def _hash(client: redis.Redis, key: str) -> dict[str, Any]:
    return {name.decode(): _plain(name.decode(), value) for name, value in client.hgetall(key).items()}


def _zset(client: redis.Redis, key: str) -> dict[str, Any]:
    return {
        _without_ids(member.decode()): _score(score) for member, score in client.zrange(key, 0, -1, withscores=True)
    }


def _score(score: float) -> object:
    return score if score in {-1, float("inf")} else About(score - time.time())


def _stream(client: redis.Redis, key: str) -> dict[str, Any]:
    return {
        f"{name.decode()}#{number}": _plain(name.decode(), value)
        for number, (_, fields) in enumerate(client.xrange(key))
        for name, value in fields.items()
    }


def _set(client: redis.Redis, key: str) -> dict[str, Any]:
    return {"members": sorted(_without_ids(member.decode()) for member in client.smembers(key))}


def _list(client: redis.Redis, key: str) -> dict[str, Any]:
    return {"elements": client.lrange(key, 0, -1)}


def _string(client: redis.Redis, key: str) -> dict[str, Any]:
    return {"value": client.get(key)}


READERS = {"hash": _hash, "zset": _zset, "stream": _stream, "set": _set, "list": _list, "string": _string}
_UNIX_SECONDS = re.compile(r"[0-9]{10}\.[0-9]+")
_EXECUTION_ID = re.compile(r"[0-9a-f]{32}")


def _without_ids(text: str) -> str:
    return _EXECUTION_ID.sub("EXECUTION", text)


def _plain(name: str, value: bytes) -> object:
    """A field's value without what differs from run to run."""
    text = value.decode(errors="replace")
    match name:
        case "exc_string":
            return _without_frames(zlib.decompress(base64.b64decode(value)).decode())
        case "execution_id" | "id":
            return bool(_EXECUTION_ID.fullmatch(text))
        case "total_working_time":
            return About(float(text))
    if _UNIX_SECONDS.fullmatch(text):
        return "unix seconds", About(float(text) - time.time())
    with suppress(ValueError):
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z")
        return "a moment", About(moment.timestamp() - time.time())
    return value


def _without_frames(traceback: str) -> list[str]:
    """A traceback without the frames of whoever called the function; lines of Python 3.11 that point, neither."""
    kept, is_ours = [], True
    for line in traceback.splitlines():
        if line.startswith('  File "'):
            is_ours = "rq_functions.py" in line
        elif not line.startswith("    "):
            is_ours = True
        if is_ours and line.strip("~^ "):
            kept.append(line)
    return kept


REGISTRIES = ("wip", "finished", "failed", "scheduled", "deferred", "canceled", "ready")


def place_of(client: redis.Redis, job_id: str) -> list[str]:
    """A job's status, then every structure of its queue that names it."""
    status = client.hget(f"rq:job:{job_id}", "status")
    places = [
        name
        for name in REGISTRIES
        if any(member.decode().partition(":")[0] == job_id for member in client.zrange(f"rq:{name}:q", 0, -1))
    ]
    for name in ("queue", "intermediate"):
        key = "rq:queue:q" + (":intermediate" if name == "intermediate" else "")
        places += [name] * client.lrange(key, 0, -1).count(job_id.encode())
    return [status.decode() if status else "no job", *places]


def assert_no_run_is_recorded(client: redis.Redis) -> None:
    assert list(client.scan_iter("rq:execution*")) == []
    assert list(client.scan_iter("rq:worker:*:executions")) == []
    assert client.zcard("rq:wip:q") == 0
