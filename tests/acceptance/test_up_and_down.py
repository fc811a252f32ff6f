"""`sluice up` as a person runs it: until Ctrl-C, killed, started twice."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.cli.place import DataFolder
from tests.support.environment import clean_environment
from tests.support.ports import free_port

ENVIRONMENT = clean_environment()


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-up-"))
    yield folder
    sluice("down", "--data", str(folder))
    shutil.rmtree(folder)


def sluice(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def start(place: Path) -> "tuple[subprocess.Popen[str], str]":
    """A running `sluice up` and the base URL that it printed."""
    command = [sys.executable, "-m", "app.cli", "up", "--data", str(place), "--port", str(free_port())]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if "Ctrl-C stops it" in line:
            break
    found = re.search(r"base URL\s+(\S+)/v1", printed)
    assert found is not None, printed
    assert re.search(r"API key\s+sk-sluice-\S+", printed)
    return process, found[1]


def test_ctrl_c_stops_every_part_and_the_data_is_there_the_next_time(place: Path) -> None:
    keys = []
    for _ in range(2):
        process, url = start(place)
        with process:
            assert httpx.get(f"{url}/readyz").status_code == 200
            pids = DataFolder(place).living_pids()
            assert len(pids) == 5, "up, API, worker, Postgres, Redis"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        keys.append(DataFolder(place).api_key())
    assert keys[0] == keys[1]


def test_what_a_killed_one_left_behind_is_named_and_can_be_stopped(place: Path) -> None:
    process, url = start(place)
    with process:
        process.kill()
        process.wait()
        second = sluice("up", "--data", str(place), "--port", str(free_port()))
        assert second.returncode == 1
        assert "sluice down" in second.stderr
        assert httpx.get(f"{url}/healthz").status_code == 200, "the refusal harms nothing"
        assert "stopped 4 processes" in sluice("down", "--data", str(place)).stdout
        assert "nothing runs" in sluice("down", "--data", str(place)).stdout
    again, url = start(place)
    with again:
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert "stopped 5 processes" in sluice("down", "--data", str(place)).stdout
        assert again.wait(60) == 0


def test_a_port_that_is_taken_is_named(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ran = sluice("up", "--data", str(place), "--port", str(taken.getsockname()[1]))
    assert ran.returncode == 1
    assert "Address already in use; choose another --port" in ran.stderr
    assert DataFolder(place).living_pids() == []
