"""The real app behind a real socket, and the official SDK as its client."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn

from app.access.tokens import Principal
from app.main import create_app
from app.settings import Settings

MakePrincipal = Callable[[str], Awaitable[tuple[Principal, str]]]


class ListeningServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """The base URL of an API over these settings, for as long as the block lasts."""
    config = uvicorn.Config(
        create_app(settings), host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=5
    )
    server = ListeningServer(config)
    running = asyncio.create_task(server.serve())
    up = asyncio.create_task(server.is_up.wait())
    try:
        await asyncio.wait({running, up}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
            raise AssertionError("the server did not start")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        up.cancel()
        server.should_exit = True
        await running


@asynccontextmanager
async def sdk(url: str, api_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=30, _strict_response_validation=True
    ) as client:
        yield client


@dataclass(frozen=True)
class Person:
    """A user with an SDK and a bare HTTP client."""

    who: Principal
    api_key: str
    openai: openai.AsyncOpenAI
    http: httpx.AsyncClient


@asynccontextmanager
async def person(url: str, who: Principal, api_key: str) -> AsyncIterator[Person]:
    headers = {"Authorization": f"Bearer {api_key}"}
    async with sdk(url, api_key) as client, httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http:
        yield Person(who, api_key, client, http)


@pytest.fixture
async def url(settings: Settings) -> AsyncIterator[str]:
    async with serving(settings) as base_url:
        yield base_url


@pytest.fixture
async def ada(url: str, make_principal: MakePrincipal) -> AsyncIterator[Person]:
    async with person(url, *await make_principal("ada")) as made:
        yield made


@pytest.fixture
async def bob(url: str, make_principal: MakePrincipal) -> AsyncIterator[Person]:
    async with person(url, *await make_principal("bob")) as made:
        yield made


@pytest.fixture
async def stranger(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody without an API key."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def blob_names(settings: Settings) -> Callable[[], list[str]]:
    """The names of the files in the blob folder."""
    folder = settings.storage_path
    assert folder is not None

    def names() -> list[str]:
        return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())

    return names


@pytest.fixture
async def working_url(settings: Settings) -> AsyncIterator[str]:
    """An API that has no queue and works on the files itself."""
    alone = settings.model_copy(update={"enable_job_queue": False, "redis_url": None})
    async with serving(alone) as base_url:
        yield base_url


@pytest.fixture
async def eve(working_url: str, make_principal: MakePrincipal) -> AsyncIterator[Person]:
    """A user of `working_url`."""
    async with person(working_url, *await make_principal("eve")) as made:
        yield made


async def upload(somebody: Person, name: str = "a.txt", content: bytes = b"A short text about sluices.") -> str:
    """The id of a file just uploaded."""
    return (await somebody.openai.files.create(file=(name, content), purpose="assistants")).id
