"""The commands themselves: each parses its options, calls one function and prints what a person wants to know."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import anyio
import typer
from rich.console import Console

from app.cli import admin
from app.cli.client import SluiceClient, find_files
from app.cli.demo import run_demo
from app.cli.doctor import check_ready, print_findings
from app.cli.place import DEFAULT_FOLDER, DataFolder, api_access, command_settings
from app.cli.screen import ingest_with_progress, print_failures, print_hits, print_welcome
from app.cli.service import ServicePlan, running_service, stop_left_overs, watch
from app.cli.serving import serve_api
from app.errors import SluiceError
from app.logging import configure_logging
from app.settings import Settings, load_settings
from app.worker import run_worker

app = typer.Typer(
    help="Sluice turns uploaded files into searchable vectors.", no_args_is_help=True, add_completion=False
)
app.add_typer(admin.keys, name="keys")
app.add_typer(admin.embedding_keys, name="embedding-keys")
app.add_typer(admin.users, name="users")
app.add_typer(admin.groups, name="groups")

Folder = Annotated[Path, typer.Option("--data", help="Where 'sluice up' keeps its data.", show_default=True)]
Url = Annotated[str | None, typer.Option("--url", help="The API's base URL. [env: SLUICE_URL]")]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="The API key. [env: SLUICE_API_KEY]")]
StoreName = Annotated[str, typer.Option("--store", help="The vector store's name or id.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.")]
Processes = Annotated[int, typer.Option(min=1, max=64, help="API processes.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")]


@app.command()
def up(
    *,
    folder: Folder = DEFAULT_FOLDER,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    processes: Processes = 1,
    workers: Workers = 1,
) -> None:
    """Start the whole service and keep it running until Ctrl-C.

    Postgres, Redis, the embedder and the blob store are built in; each gives way to a real one as soon as
    DATABASE_URL, REDIS_URL, RAG_OPENAI_API_KEY or STORAGE_URL is set.
    """
    _end_on_signals()
    console = Console()
    plan = ServicePlan(folder, host, port, processes, workers)
    with running_service(plan, _say(console)) as service:
        print_welcome(console, service, folder)
        watch(service, DataFolder(folder))
    console.print("stopped")


@app.command()
def down(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the service that runs on this folder, or what a killed one has left behind."""
    stopped = stop_left_overs(DataFolder(folder))
    typer.echo(f"stopped {stopped} processes" if stopped else "nothing runs")


@app.command()
def demo(*, folder: Folder = DEFAULT_FOLDER / "demo", port: Port = 8765) -> None:
    """Start everything, ingest the sample documents, run three searches, stop everything."""
    _end_on_signals()
    run_demo(folder, port, Console())


@app.command()
def serve(*, host: Host = "127.0.0.1", port: Port = 8000, processes: Processes = 1) -> None:
    """Run the HTTP API until SIGTERM."""
    settings = load_settings()
    configure_logging(level=settings.log_level)
    serve_api(host=host, port=port, processes=processes)


@app.command()
def worker() -> None:
    """Run a worker until SIGTERM."""
    settings = load_settings()
    configure_logging(level=settings.log_level)
    anyio.run(_work, settings, backend_options={"use_uvloop": True})


async def _work(settings: Settings) -> None:
    await run_worker(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # all is given back: another one must not spoil the exit code
        signal.signal(number, signal.SIG_IGN)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    *,
    store: StoreName,
    folder: Folder = DEFAULT_FOLDER,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Upload files and folders into a vector store and wait until they are searchable.

    The store is made if there is none of this name. Exits with 1 if any file failed, and says why.
    """
    console = Console()
    files = find_files(paths)
    with SluiceClient(*api_access(folder, url=url, api_key=api_key)) as client:
        failures = ingest_with_progress(console, client, files, store)
    print_failures(console, failures, total=len(files))
    if failures:
        raise typer.Exit(1)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    *,
    store: StoreName,
    limit: Annotated[int, typer.Option(min=1, max=50, help="Most hits.")] = 5,
    folder: Folder = DEFAULT_FOLDER,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Search a vector store and print the hits."""
    console = Console()
    with SluiceClient(*api_access(folder, url=url, api_key=api_key)) as client:
        store_id = client.find_store(store)
        if store_id is None:
            raise typer.BadParameter(f"there is no vector store named '{store}'", param_hint="--store")
        print_hits(console, query, client.search(store_id, query, limit=limit))


@app.command()
def doctor(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """Check the whole database for broken invariants; exits with 1 and a list if there are any."""
    findings = anyio.run(print_findings, Console(), command_settings(folder))
    if findings:
        raise typer.Exit(1)


@app.command()
def ready(*, folder: Folder = DEFAULT_FOLDER) -> None:
    """Ask whether a worker could work: Postgres and the queue answer. Exits with 1 and says what does not."""
    anyio.run(check_ready, command_settings(folder))


def _say(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(f"[dim]· {text}[/dim]")


def _end_on_signals() -> None:
    """Have SIGTERM, and the end of the terminal, end the command as an exception does: everything is stopped."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))


def main() -> None:
    """Run the command; an error that we know is one line, not a traceback."""
    os.umask(0o077)  # what the command writes (keys, databases, uploads) is its user's own
    try:
        app()
    except SluiceError as exc:
        Console(stderr=True).print(f"sluice: {exc}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
