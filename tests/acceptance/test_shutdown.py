"""SIGTERM of the API: nobody new is let in, and who is inside may finish."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from app.access.tokens import Principal
from app.settings import Settings
from tests.conftest import KEK
from tests.support.ports import free_port

FIRST_HALF = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--b\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nThe lamp '
)
SECOND_HALF = b"is lit.\r\n--b--\r\n"


@contextmanager
def serving(settings: Settings, processes: int) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url or "",
        "STORAGE_URL": settings.storage_url,
        "SLUICE_KEY_ENCRYPTION_KEY": KEK,
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port), "--processes", str(processes)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}"))
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("processes", [1, 2])
async def test_open_uploads_finish_and_new_ones_find_the_door_closed(
    settings: Settings, make_principal: Callable[[str], Awaitable[tuple[Principal, str]]], processes: int
) -> None:
    _, api_key = await make_principal("ada")
    may_go_on = threading.Event()
    has_begun = threading.Event()
    answer: list[httpx.Response] = []

    def body() -> Iterator[bytes]:
        yield FIRST_HALF
        has_begun.set()
        assert may_go_on.wait(30)
        yield SECOND_HALF

    with serving(settings, processes) as (process, url):
        headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "multipart/form-data; boundary=b"}
        upload = threading.Thread(
            target=lambda: answer.append(httpx.post(f"{url}/v1/files", content=body(), headers=headers, timeout=60))
        )
        upload.start()
        assert has_begun.wait(30)
        process.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                httpx.get(f"{url}/readyz", timeout=1)
            except httpx.ConnectError:
                return True
            except httpx.TransportError:
                pass
            return False

        until(is_refused)
        assert process.poll() is None
        may_go_on.set()
        upload.join()
        process.wait(30)
    assert answer[0].status_code == 200
    assert answer[0].json()["bytes"] == len("The lamp is lit.")


def test_a_worker_that_waits_for_postgres_ends_well_at_a_signal(settings: Settings):
    environment = os.environ | {
        "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/nothing",
        "ENABLE_JOB_QUEUE": "false",
        "STORAGE_URL": settings.storage_url,
        "SLUICE_KEY_ENCRYPTION_KEY": KEK,
    }
    command = [sys.executable, "-m", "app.cli", "worker"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"waiting for Postgres" in process.stderr.readline()
        process.terminate()
        assert process.wait(10) == 0
