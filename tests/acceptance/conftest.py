"""The real service, as `sluice up` starts it: 2 API processes, 2 workers, embedded Postgres and Redis."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from app.cli.service import RunningService, ServicePlan, running_service
from app.samples import write_samples
from tests.support.environment import UNSET, clean_environment  # noqa: F401 - UNSET for tests/faults/harness.py
from tests.support.ports import free_port

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "files"
QUICK = {"LEASE_SECONDS": "4", "SWEEP_INTERVAL_SECONDS": "0.5", "JOB_RETRY_DELAY": "0.5", "LOG_LEVEL": "info"}
Doctor = Callable[[], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sluice-acceptance-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RunningService]:
    environment = clean_environment() | QUICK
    plan = ServicePlan(folder, port=free_port(), api_processes=2, workers=2, environment=environment)
    with running_service(plan, print) as service:
        yield service


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key=service.api_key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The founders' corpus where it is there, else our own samples."""
    if CORPUS.is_dir():
        return sorted(CORPUS.iterdir())
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture
def doctor(service: RunningService, folder: Path) -> Doctor:
    """`sluice doctor`, the real command."""

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "app.cli", "doctor", "--data", str(folder)],
            capture_output=True, text=True, check=False, env=service.environment,
        )  # fmt: skip

    return run
