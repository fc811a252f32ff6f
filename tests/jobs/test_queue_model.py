"""The queue's scripts against a small model: whatever happens, in any order, no job is lost, doubled or torn."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from rq.serializers import JSONSerializer

from app.jobs.enqueue import JobRequest, pack
from app.jobs.job import ABORT_FIELD
from app.jobs.lua import CLAIM, SETTLE
from app.jobs.lua_client import ABORT, ENQUEUE, WITHDRAW
from app.jobs.lua_upkeep import BEAT, MOVE_DUE, TAKE_BACK

QUEUE = "m"
WORKER = "rq:worker:w"
EXECUTIONS = "rq:worker:w:executions"
WIP = f"rq:wip:{QUEUE}"
LEASE = 1000
MOST_CRASHES = 3
IDS = st.sampled_from("abcdefg")


@dataclass
class ModelJob:
    """What is expected of a job."""

    status: str
    execution: str = ""
    tries: int = 0
    crashes: int = 0
    is_aborted: bool = False


@dataclass
class Model:
    """What is expected of the queue."""

    jobs: dict[str, ModelJob] = field(default_factory=dict)
    line: list[str] = field(default_factory=list)
    scheduled: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)  # not to be used again

    def waits(self, job_id: str) -> bool:
        return job_id in self.jobs and self.jobs[job_id].status in {"queued", "scheduled"}

    def run_again(self, job_id: str) -> None:
        self.jobs[job_id].status = "queued"
        self.line.insert(0, job_id)

    def run_later(self, job_id: str) -> None:
        self.jobs[job_id].status = "scheduled"
        self.scheduled.add(job_id)

    def claim(self, most: int) -> tuple[list[str], list[str], int]:
        """What is to be started, suspects beyond the first, which wait, and how many ids are passed over."""
        start: list[str] = []
        wait: list[str] = []
        gone = 0
        while self.line and len(start) < most:
            job_id = self.line.pop(0)
            job = self.jobs.get(job_id)
            if job is None:
                gone += 1
            elif job.crashes >= MOST_CRASHES - 1 and self.has_suspect:
                wait.append(job_id)
            else:
                job.status = "started"
                start.append(job_id)
        return start, wait, gone

    @property
    def has_suspect(self) -> bool:
        return any(job.status == "started" and job.crashes >= MOST_CRASHES - 1 for job in self.jobs.values())


class Queue(RuleBasedStateMachine):
    """Every rule does one thing with the real Redis and with the model."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.model = Model()
        self.executions: list[tuple[str, str]] = []  # every (job, execution) there ever was
        self.claims = 0
        scripts = {"claim": CLAIM, "settle": SETTLE, "enqueue": ENQUEUE, "abort": ABORT, "beat": BEAT}
        scripts |= {"take_back": TAKE_BACK, "move_due": MOVE_DUE, "withdraw": WITHDRAW}
        self.scripts = {name: self.client.register_script(text) for name, text in scripts.items()}

    @rule(
        job_ids=st.lists(IDS, min_size=1, max_size=4), delay=st.sampled_from([None, 0, 500]), replace=st.booleans()
    )
    def enqueue(self, job_ids: list[str], delay: int | None, *, replace: bool) -> None:
        job_ids = [each for each in job_ids if each not in self.model.withdrawn]
        requests = [JobRequest("f", job_id=each, defer_by=delay, replace_settled=replace) for each in job_ids]
        arguments = [part for each in requests for part in pack(each, JSONSerializer, QUEUE, 3600).arguments]
        made = self.scripts["enqueue"](["rq:queues"], ["rq", *arguments])
        for job_id, is_new in zip(job_ids, made, strict=True):
            known = self.model.jobs.get(job_id)
            over = known is not None and known.status in {"finished", "failed", "stopped"}
            assert bool(is_new) == (known is None or (replace and over))
            if not is_new:
                continue
            self.model.jobs[job_id] = ModelJob("scheduled" if delay else "queued")
            if delay:
                self.model.scheduled.add(job_id)
            else:
                self.model.line.append(job_id)

    @rule(most=st.integers(1, 4))
    def claim(self, most: int) -> None:
        self.claims += 1
        keys = ["rq:suspended", WORKER, EXECUTIONS, f"rq:queue:{QUEUE}", WIP]
        start = f"{self.claims:024x}"
        arguments = ["rq", most, LEASE, "w", "now", "order", start, int(self.model.has_suspect), 0]
        _, lost, started, gone, broken = self.scripts["claim"](keys, arguments)
        assert (lost, broken) == ([], [])
        expected, delayed, passed_over = self.model.claim(most)
        assert gone == passed_over
        assert [job_id.decode() for _, job_id, _, _ in started] == expected
        for job_id in delayed:
            self.is_delayed(job_id, 1, 2)
        for _, job_id, execution, flat in started:
            raw = dict(zip(flat[::2], flat[1::2], strict=True))
            job = self.model.jobs[job_id.decode()]
            assert int(raw.get(b"job_try", 0)) == job.tries
            assert (ABORT_FIELD.encode() in raw) == job.is_aborted
            job.execution = execution.decode()
            self.executions.append((job_id.decode(), job.execution))

    def is_delayed(self, job_id: str, least: float, most: float) -> None:
        """By seconds, which are then made to last: here nothing becomes due by itself."""
        self.model.run_later(job_id)
        score = self.client.zscore(f"rq:scheduled:{QUEUE}", job_id)
        assert isinstance(score, float)
        seconds, micros = self.client.time()
        assert least - 1 <= score - seconds - micros / 1e6 <= most
        self.client.zadd(f"rq:scheduled:{QUEUE}", {job_id: seconds + 500})

    @precondition(lambda self: self.executions)
    @rule(data=st.data(), kind=st.sampled_from(["finished", "failed", "stopped", "again", "later", "back"]))
    def settle(self, data: st.DataObject, kind: str) -> None:
        """Also by workers that have lost the job long ago."""
        job_id, execution = data.draw(st.sampled_from(self.executions))
        job = self.model.jobs.get(job_id, ModelJob("withdrawn"))
        is_mine = job.status == "started" and job.execution == execution
        tries = job.tries + (kind != "back")
        delay = 500 if kind == "later" else 0
        word = "again" if kind == "later" else kind
        line = f"{word} {job_id} {execution} 1 2 now {tries} {delay} 1 99 99 0 0 0 {QUEUE}"
        answer = self.scripts["settle"]([WORKER, EXECUTIONS], ["rq", line])
        assert answer == ([] if is_mine else [[1, b"late"]])
        if not is_mine:
            return
        if kind in {"again", "later", "back"}:
            job.tries = tries
        if kind == "later":
            self.model.run_later(job_id)
        elif kind in {"again", "back"}:
            self.model.run_again(job_id)
        else:
            job.status = kind

    @rule(job_ids=st.lists(IDS, max_size=3, unique=True))
    def withdraw(self, job_ids: list[str]) -> None:
        """What has not started; its id may stay in the line."""
        waiting = [each for each in job_ids if self.model.waits(each)]
        assert self.scripts["withdraw"]([], ["rq", *job_ids]) == len(waiting)
        for each in waiting:
            del self.model.jobs[each]
            self.model.scheduled.discard(each)
            self.model.withdrawn.add(each)

    @precondition(lambda self: any(job.status == "started" for job in self.model.jobs.values()))
    @rule(data=st.data())
    def worker_is_lost(self, data: st.DataObject) -> None:
        """Its lease runs out, and the upkeep of another worker finds that."""
        started = sorted(name for name, job in self.model.jobs.items() if job.status == "started")
        job_id = data.draw(st.sampled_from(started))
        job = self.model.jobs[job_id]
        member = f"{job_id}:{job.execution}"
        self.client.zadd(WIP, {member: 1}, xx=True)
        back, poison, broken = self.scripts["take_back"]([WIP], ["rq", QUEUE, MOST_CRASHES])
        assert broken == []
        job.crashes += 1
        if job.crashes >= MOST_CRASHES:
            assert (back, poison) == ([], [member.encode()])
        else:
            assert (back, poison) == ([job_id.encode()], [])
            job.tries += 1
            self.is_delayed(job_id, 0, job.crashes)

    @precondition(lambda self: self.executions)
    @rule()
    def beat(self) -> None:
        """All that ever ran here claim to be running: only those that do are refreshed."""
        arguments: list[object] = ["rq", LEASE, 400, "w", "now", ABORT_FIELD]
        for job_id, execution in self.executions:
            arguments += (QUEUE, job_id, execution, 1)
        _, lost, aborted = self.scripts["beat"]([WORKER, EXECUTIONS], arguments)
        here = {job.execution for job in self.model.jobs.values() if job.status == "started"}
        assert {each.decode() for each in aborted} == {
            job.execution for job in self.model.jobs.values() if job.status == "started" and job.is_aborted
        }
        assert {each.decode() for each in lost} == {
            execution for job_id, execution in self.executions if job_id in self.model.jobs
        } - here

    @precondition(lambda self: self.model.scheduled)
    @rule(data=st.data())
    def job_becomes_due(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.model.scheduled)))
        self.client.zadd(f"rq:scheduled:{QUEUE}", {job_id: 1}, xx=True)
        keys = ["rq:queues", f"rq:scheduled:{QUEUE}", f"rq:queue:{QUEUE}", "rq:scheduler-lock:m"]
        soonest, moved = self.scripts["move_due"](keys, ["rq", 100, "now", "mark", 60])
        assert moved == 1
        self.model.scheduled.remove(job_id)
        assert (soonest == b"") == (not self.model.scheduled)
        if self.model.jobs[job_id].crashes:
            self.model.run_again(job_id)
        else:
            self.model.jobs[job_id].status = "queued"
            self.model.line.append(job_id)

    @rule(job_id=IDS)
    def abort(self, job_id: str) -> None:
        answer = self.scripts["abort"]((), ["rq", job_id, ABORT_FIELD, "rq:pubsub:", "{}"])
        job = self.model.jobs.get(job_id)
        can_be = job is not None and job.status in {"queued", "scheduled", "started"}
        assert bool(answer) == can_be
        if job is None or not can_be:
            return
        job.is_aborted = True
        if job.status == "started":
            return
        if job_id in self.model.line:
            self.model.line.remove(job_id)
        self.model.scheduled.discard(job_id)
        self.model.run_again(job_id)

    @invariant()
    def redis_is_as_the_model(self) -> None:
        client, model = self.client, self.model
        assert [each.decode() for each in client.lrange(f"rq:queue:{QUEUE}", 0, -1)] == model.line
        assert {each.decode() for each in client.zrange(f"rq:scheduled:{QUEUE}", 0, -1)} == model.scheduled
        started = {f"{name}:{job.execution}" for name, job in model.jobs.items() if job.status == "started"}
        assert {each.decode() for each in client.zrange(WIP, 0, -1)} == started
        for name, job in model.jobs.items():
            assert client.hget(f"rq:job:{name}", "status") == job.status.encode()
            executions = {each.decode() for each in client.zrange(f"rq:executions:{name}", 0, -1)}
            assert executions == ({job.execution} if job.status == "started" else set())
            assert all(client.exists(f"rq:execution:{name}:{each}") for each in executions)
        finished = {name for name, job in model.jobs.items() if job.status == "finished"}
        failed = {name for name, job in model.jobs.items() if job.status in {"failed", "stopped"}}
        assert {each.decode() for each in client.zrange(f"rq:finished:{QUEUE}", 0, -1)} == finished
        assert {each.decode() for each in client.zrange(f"rq:failed:{QUEUE}", 0, -1)} == failed


@pytest.fixture
def machine(redis_url: str) -> Iterator[type[Queue]]:
    client = redis.Redis.from_url(redis_url)
    yield type("QueueOnRedis", (Queue,), {"client": client})
    client.close()


def test_the_queue_agrees_with_the_model(machine: type[Queue]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
