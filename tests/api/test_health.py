import logging

import httpx
import pytest

from app.db import Pool
from app.embedded import EmbeddedRedis
from app.settings import Settings
from tests.api.conftest import MakePrincipal, Person, person, serving, upload


async def test_the_operators_routes_are_public(stranger: httpx.AsyncClient):
    assert (await stranger.get("/healthz")).json() == {"status": "ok"}
    ready = await stranger.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "postgres": "ok", "redis": "ok"})


async def test_a_database_without_tables_is_not_ready(stranger: httpx.AsyncClient, pool: Pool):
    await pool.execute("ALTER TABLE alembic_version RENAME TO elsewhere")
    ready = await stranger.get("/readyz")
    assert (ready.status_code, ready.json()["postgres"]) == (503, "not migrated")


async def test_a_database_that_takes_no_writes_is_not_ready(stranger: httpx.AsyncClient, pool: Pool):
    """As a standby, or what was the primary before a failover."""
    name = await pool.fetchval("SELECT current_database()")
    await pool.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    await pool.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    states = [(await stranger.get("/readyz")) for _ in range(12)]  # more than the pool has connections
    assert states[-1].json()["postgres"] == "read-only"
    assert {each.status_code for each in states} == {503}


async def test_metrics_count_by_route_and_name_no_ids(ada: Person):
    file_id = await upload(ada, content=b"12345")
    store = await ada.openai.vector_stores.create(name="s")
    await ada.openai.vector_stores.files.create(store.id, file_id=file_id)
    await ada.http.get("/made/up/path")
    text = (await ada.http.get("/metrics")).text
    assert 'sluice_http_request_seconds_count{method="POST",route="/v1/files",status="200"} 1.0' in text
    assert 'route="/v1/vector_stores/{vector_store_id}/files",status="200"' in text
    assert 'route="unmatched",status="404"' in text
    assert "sluice_uploaded_bytes_total 5.0" in text
    assert 'sluice_ingestions{state="queued"} 1.0' in text
    assert "sluice_queue_available 1.0" in text
    assert store.id not in text
    assert "/made/up" not in text


async def test_a_request_is_one_line_in_the_log_without_secrets(ada: Person, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    await upload(ada, name="payroll.txt", content=b"confidential")
    assert ada.api_key not in caplog.text
    assert "confidential" not in caplog.text
    assert "payroll" not in caplog.text


async def test_a_bug_is_a_bland_500_with_the_requests_id(ada: Person, pool: Pool):
    await pool.execute("ALTER TABLE files RENAME TO elsewhere")
    answer = await ada.http.get("/v1/files", headers={"X-Request-Id": "find-me"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "find-me"
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "find-me" in error["message"]
    assert "files" not in error["message"]


async def test_without_redis_uploads_are_accepted_and_become_searchable(
    settings: Settings, make_principal: MakePrincipal, own_redis: EmbeddedRedis
):
    with_own = settings.model_copy(update={"redis_url": own_redis.url})
    async with serving(with_own) as url, person(url, *await make_principal("ada")) as ada:
        own_redis.stop()
        assert (await ada.http.get("/readyz")).json() == {"status": "ready", "postgres": "ok", "redis": "down"}
        store = await ada.openai.vector_stores.create(name="s")
        batch = await ada.openai.vector_stores.file_batches.upload_and_poll(
            store.id, files=[(f"{n}.txt", b"Some text.") for n in range(3)], poll_interval_ms=50
        )
        assert batch.file_counts.completed == 3
        listed = (await ada.http.get("/v1/ingestions")).json()["data"]
        job = (await ada.http.get(f"/v1/jobs/{listed[0]['job_id']}")).json()
        assert job["rq"] is None
        assert "does not answer" in job["note"]
        assert "sluice_queue_available 0.0" in (await ada.http.get("/metrics")).text
