"""rq-dashboard shows, requeues and deletes what arq's API enqueued."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
import rq_dashboard
from flask import Flask
from flask.testing import FlaskClient

from app.jobs import ArqRedis, JobStatus, RedisSettings, create_pool
from tests.jobs.conftest import RunWorker

pytestmark = pytest.mark.filterwarnings(
    "default::DeprecationWarning", "default::ResourceWarning"
)  # the dashboard's


@pytest.fixture
def dashboard(redis_url: str) -> FlaskClient:
    app = Flask("dashboard")
    app.config.from_object(rq_dashboard.default_settings)
    app.config["RQ_DASHBOARD_REDIS_URL"] = redis_url
    rq_dashboard.web.setup_rq_connection(app)
    app.register_blueprint(rq_dashboard.blueprint, url_prefix="/rq")
    return app.test_client()


@pytest.fixture
async def pool(redis_url: str) -> AsyncIterator[ArqRedis]:
    """With pickle: the dashboard reads results with RQ's default serializer only."""
    pool = await create_pool(RedisSettings.from_dsn(redis_url), default_queue_name="q")
    yield pool
    await pool.aclose()


def seen(dashboard: FlaskClient, path: str) -> Any:
    answer = dashboard.get(f"/rq/0/data/{path}.json")
    assert answer.status_code == 200, answer.text
    return answer.json


async def test_the_dashboard_knows_our_queue_its_jobs_and_workers(
    pool: ArqRedis, dashboard: FlaskClient, run_worker: RunWorker, sync_redis: redis.Redis
) -> None:
    bad = await pool.enqueue_job("fail_async")
    good = await pool.enqueue_job("multiply", 6, 7)
    later = await pool.enqueue_job("multiply", 1, 1, _defer_by=3600)
    assert bad is not None
    assert good is not None
    assert later is not None
    [queue] = seen(dashboard, "queues")["queues"]
    assert (queue["name"], queue["count"]) == ("q", 2)
    async with run_worker(serializer=None) as worker:
        assert await good.result(10) == 42
        with pytest.raises(ValueError, match="canary"):
            await bad.result(10)
        [shown] = seen(dashboard, "workers")["workers"]
        assert (shown["name"], shown["queues"]) == (worker.name, ["q"])
    [finished] = seen(dashboard, "jobs/q/finished/10/desc/1")["jobs"]
    assert finished["id"] == good.job_id
    [failed] = seen(dashboard, "jobs/q/failed/10/desc/1")["jobs"]
    assert failed["id"] == bad.job_id
    assert seen(dashboard, "jobs/q/scheduled/10/desc/1")["jobs"][0]["id"] == later.job_id
    assert seen(dashboard, f"job/{good.job_id}")["description"] == "multiply(6, 7)"

    assert dashboard.post(f"/rq/job/{bad.job_id}/requeue").status_code == 200
    assert await bad.status() is JobStatus.queued
    assert sync_redis.lrange("rq:queue:q", 0, -1) == [bad.job_id.encode()]
    assert dashboard.post(f"/rq/job/{bad.job_id}/delete").status_code == 200
    assert await bad.status() is JobStatus.not_found
