"""What a user gets, asked for as users do: through the official SDK, over HTTP, on real documents."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from app.cli.client import SluiceClient
from app.cli.service import RunningService
from tests.acceptance.conftest import CORPUS, Doctor

SENTENCES = (
    {
        "kz-a_brief_introduction_to_the_standard_annotation_language_sal_2006.pdf": "static analysis tools for "
        "secure software and the standard annotation language",
        "mid-test.docx": "AutoGen is an open-source framework that allows developers to build LLM applications",
    }
    if CORPUS.is_dir()
    else {
        "lighthouse-log.pdf": "what does the keeper do when fog comes in",
        "leave-policy.docx": "how many weeks of parental leave",
    }
)


def settled(client: OpenAI, store: VectorStore) -> list[VectorStoreFile]:
    return list(client.vector_stores.files.list(store.id, limit=100))


def check_files(files: Sequence[VectorStoreFile], documents: Sequence[Path]) -> None:
    assert len(files) == len(documents)
    statuses = Counter(file.status for file in files)
    assert set(statuses) <= {"completed", "failed"}, statuses
    assert statuses["completed"] >= len(documents) * 3 // 4, statuses
    for file in files:
        if file.status == "failed":
            assert file.last_error is not None
            assert file.last_error.message
            assert "internal_error" not in file.last_error.message, file.last_error
        else:
            assert file.last_error is None
            assert file.usage_bytes > 0


def check_search(client: OpenAI, store: VectorStore) -> None:
    for filename, sentence in SENTENCES.items():
        hits = client.vector_stores.search(store.id, query=sentence, max_num_results=5).data
        assert filename in [hit.filename for hit in hits], [(hit.filename, hit.score) for hit in hits]
        assert all(0 <= hit.score <= 1 for hit in hits)


def check_doctor(doctor: Doctor) -> None:
    examined = doctor()
    assert examined.returncode == 0, examined.stdout + examined.stderr


def test_the_official_sdk_uploads_and_polls_until_every_file_is_settled(
    client: OpenAI, documents: list[Path], doctor: Doctor
) -> None:
    store = client.vector_stores.create(name="by the SDK")
    with_handles = [path.open("rb") for path in documents]
    try:
        batch = client.vector_stores.file_batches.upload_and_poll(
            store.id, files=with_handles, poll_interval_ms=200, max_concurrency=8
        )
    finally:
        for handle in with_handles:
            handle.close()
    assert batch.file_counts.in_progress == 0
    assert batch.file_counts.total == len(documents)
    check_files(settled(client, store), documents)
    check_search(client, store)
    counts = client.vector_stores.retrieve(store.id).file_counts
    assert (counts.total, counts.completed) == (batch.file_counts.total, batch.file_counts.completed)
    check_doctor(doctor)


def test_one_upload_reaches_two_stores_though_a_worker_is_killed_in_the_middle(
    client: OpenAI, service: RunningService, documents: list[Path], doctor: Doctor
) -> None:
    stores = [client.vector_stores.create(name=f"by one request {number}") for number in range(2)]
    headers = {"Authorization": f"Bearer {service.api_key}"}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as http:
        answer = http.post(
            "/v1/ingestions",
            data={"vector_store_ids": [store.id for store in stores]},
            files=[("files", (path.name, path.read_bytes())) for path in documents],
        )
        assert answer.status_code == 202, answer.text
        body = answer.json()
        rejected = len(body["rejected"])
        assert len(body["data"]) + rejected == len(documents)
        victim = service.processes[1]
        _wait_until_some_are_completed(http, body["id"])
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        counts = _wait_until_settled(http, body["id"])
        assert counts["total"] == len(body["data"])
    per_store = [settled(client, store) for store in stores]
    for files in per_store:
        check_files(files, documents[rejected:])
    assert {file.id: file.status for file in per_store[0]} == {file.id: file.status for file in per_store[1]}
    for store in stores:
        check_search(client, store)
    check_doctor(doctor)


def _counts(http: httpx.Client, batch_id: str) -> dict[str, int]:
    counts: dict[str, int] = http.get("/v1/ingestions", params={"batch_id": batch_id}).json()["file_counts"]
    return counts


def _wait_until_some_are_completed(http: httpx.Client, batch_id: str) -> None:
    while _counts(http, batch_id)["completed"] < 1:
        pass


def _wait_until_settled(http: httpx.Client, batch_id: str) -> dict[str, int]:
    while (counts := _counts(http, batch_id))["in_progress"]:
        pass
    return counts


def test_the_command_line_ingests_and_reports_what_failed(
    service: RunningService, tmp_path: Path, folder: Path
) -> None:
    assert service.api_key is not None
    (tmp_path / "good.txt").write_text("The quick brown fox jumps over the lazy dog.")
    (tmp_path / "bad.bin").write_bytes(b"\x00\x01\x02" * 100)
    command = [sys.executable, "-m", "app.cli"]
    options = ["--store", "cli", "--data", str(folder)]
    ran = subprocess.run(
        [*command, "ingest", str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
        env=service.environment,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "1 of 2 files are searchable" in ran.stdout
    assert "bad.bin: unsupported_file" in ran.stdout
    found = subprocess.run(
        [*command, "search", "quick brown fox", *options],
        capture_output=True,
        text=True,
        check=False,
        env=service.environment,
    )
    assert found.returncode == 0, found.stderr
    assert "good.txt" in found.stdout
    with SluiceClient(service.url, service.api_key) as client:
        assert client.find_store("cli") is not None
        assert client.find_store("no such store") is None


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/metrics"])
def test_operators_see_that_it_lives(service: RunningService, route: str) -> None:
    assert httpx.get(f"{service.url}{route}").status_code == 200
