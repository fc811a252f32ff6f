"""`sluice up`: every part of the service on this machine, started in order and stopped in reverse."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.access.people import create_user, find_user
from app.access.tokens import authenticate, create_token
from app.cli.place import DataFolder
from app.db import open_pool, transaction
from app.embedded import EmbeddedPostgres, EmbeddedRedis
from app.errors import Broken, NotFound, Unauthorized
from app.migrate import upgrade
from app.settings import load_settings

_FIRST_USER = "admin"
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """What to start, and with which settings; a part that `environment` names is not started."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    api_processes: int = 1
    workers: int = 1
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True, slots=True)
class RunningService:
    """A service that answers."""

    url: str
    api_key: str | None
    environment: dict[str, str]
    processes: tuple["subprocess.Popen[bytes]", ...]


@contextmanager
def running_service(plan: ServicePlan, say: Say) -> Iterator[RunningService]:
    """Start what the environment does not already name, migrate, start API and workers; stop all at the end.

    Raises:
        Broken: a part did not start; names it and says why.
    """
    data = DataFolder(plan.folder)
    data.make()
    if data.living_pids():
        raise Broken(
            f"another sluice runs on {data.path}, or was killed there; "
            f"'sluice down --data {plan.folder}' stops what is left of it"
        )
    _require_free_port(plan)
    with ExitStack() as stack:
        environment = dict(plan.environment)
        servers = _provide_servers(data, environment, stack, say)
        environment.setdefault("STORAGE_URL", f"file://{data.path / 'blobs'}")
        environment.setdefault("SLUICE_KEY_ENCRYPTION_KEY", data.key_encryption_key())
        settings = load_settings(**{name.lower(): value for name, value in environment.items()})
        upgrade(settings.database_url)
        data.keep_api_key(asyncio.run(_valid_key(settings.database_url, data.api_key())))
        url = f"http://{plan.host}:{plan.port}"
        published = ("DATABASE_URL", "REDIS_URL", "STORAGE_URL", "SLUICE_KEY_ENCRYPTION_KEY", "ENABLE_JOB_QUEUE")
        data.publish({name: environment[name] for name in published if name in environment} | {"SLUICE_URL": url})
        stack.callback(data.withdraw)
        say(f"starting the API on {url} and {plan.workers} worker(s)")
        processes = stack.enter_context(_processes(plan, data, environment))
        data.note_pids([os.getpid(), *(process.pid for process in processes), *servers])
        _wait_until_ready(url, processes, data)
        yield RunningService(url, data.api_key(), environment, tuple(processes))


def _require_free_port(plan: ServicePlan) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((plan.host, plan.port))
        except OSError as exc:
            raise Broken(
                f"cannot listen on {plan.host}:{plan.port}: {exc.strerror}; choose another --port"
            ) from exc


def _provide_servers(data: DataFolder, environment: dict[str, str], stack: ExitStack, say: Say) -> list[int]:
    """Start the servers that the environment does not name, and name them there; their process ids."""
    pids = []
    if "DATABASE_URL" not in environment:
        say("starting the embedded Postgres")
        postgres = stack.enter_context(EmbeddedPostgres(data.path))
        environment["DATABASE_URL"] = postgres.url
        pids.append(postgres.pid)
    wants_queue = environment.get("ENABLE_JOB_QUEUE", "true").lower() not in {"false", "0", "no", "off"}
    if "REDIS_URL" not in environment and wants_queue:
        say("starting the embedded Redis")
        redis = stack.enter_context(EmbeddedRedis(data.path))
        environment["REDIS_URL"] = redis.url
        pids.append(redis.pid)
    return pids


async def _valid_key(database_url: str, kept: str | None) -> str:
    """The key that is kept, if this database knows it (it may be another one than the last time), or a new one."""
    pool = await open_pool(database_url, max_size=2, application_name="sluice-up")
    try:
        async with transaction(pool) as conn:
            if kept is not None:
                with contextlib.suppress(Unauthorized):
                    await authenticate(conn, kept)
                    return kept
            try:
                user = await find_user(conn, _FIRST_USER)
            except NotFound:
                user = await create_user(conn, _FIRST_USER)
            return (await create_token(conn, user_id=user.id, name="first start")).text
    finally:
        await pool.close()


@contextmanager
def _processes(
    plan: ServicePlan, data: DataFolder, environment: dict[str, str]
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    serve = ["serve", "--host", plan.host, "--port", str(plan.port), "--processes", str(plan.api_processes)]
    commands = [("api", serve), *((f"worker-{number + 1}", ["worker"]) for number in range(plan.workers))]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands:
            with (data.path / f"{name}.log").open("ab") as log:
                started.append(
                    subprocess.Popen(  # noqa: S603 - ourselves
                        [sys.executable, "-m", "app.cli", *command],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for us; we stop the parts in order
                    )
                )
        yield started
    finally:
        _stop(started)


def stop_left_overs(data: DataFolder) -> int:
    """Stop a service that runs on this folder, or what a killed one left behind; how many processes that were."""
    pids = data.living_pids()
    deadline = time.monotonic() + _STOP_SECONDS
    for pid in pids:  # `sluice up` first, which stops the others in order; then whatever is left
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        while pid in data.living_pids() and time.monotonic() < deadline:
            time.sleep(0.05)
    if left := data.living_pids():
        raise Broken(f"these processes do not stop: {left}; kill -9 them")
    data.withdraw()
    return len(pids)


def _stop(processes: list["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(url: str, processes: list["subprocess.Popen[bytes]"], data: DataFolder) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        check_alive(processes, data)
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", timeout=2).status_code == httpx.codes.OK:
                return
        if time.monotonic() > deadline:
            raise Broken(f"the API does not answer at {url}; see {data.path / 'api.log'}")
        time.sleep(0.1)


def check_alive(processes: list["subprocess.Popen[bytes]"], data: DataFolder) -> None:
    """Pass while every process runs.

    Raises:
        Broken: one has ended; with the last error in its log.
    """
    names = ["api", *(f"worker-{number}" for number in range(1, len(processes)))]
    for name, process in zip(names, processes, strict=True):
        if process.poll() is not None:
            log = data.path / f"{name}.log"
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            errors = [line for line in lines[-20:] if '"level": "error"' in line] or lines
            raise Broken(f"{name} ended with status {process.returncode}: {errors[-1][:500]} (all of it: {log})")


def watch(service: RunningService, data: DataFolder) -> None:
    """Return at Ctrl-C or SIGTERM.

    Raises:
        Broken: a part of the service ended by itself.
    """
    stopped = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopped
        stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while not stopped:
            check_alive(list(service.processes), data)
            time.sleep(0.3)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
