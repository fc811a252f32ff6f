"""What a person sees: progress, hits, failures, the welcome."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.client import Failure, SluiceClient, portions
from app.cli.service import RunningService

_POLL_SECONDS = 0.25
_SNIPPET_CHARACTERS = 160


def ingest_with_progress(
    console: Console, client: SluiceClient, files: Sequence[Path], store: str
) -> list[Failure]:
    """Upload `files` into a store, show how far they are until all are settled; what failed, and why."""
    failures: list[Failure] = []
    batches: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        uploading = progress.add_task("uploading ", total=len(files))
        settling = progress.add_task("searchable", total=len(files))
        store_id = client.find_or_create_store(store)
        for portion in portions(files):
            batch_id, rejected = client.upload(portion, store_id)
            failures += rejected
            batches += [batch_id] if batch_id else []
            progress.advance(uploading, len(portion))
        while True:
            states = [client.progress(batch_id) for batch_id in batches]
            progress.update(settling, completed=sum(state.completed for state in states))
            if not any(state.in_progress for state in states):
                break
            time.sleep(_POLL_SECONDS)
    for batch_id in batches:
        failures += client.failures(batch_id)
    return failures


def print_failures(console: Console, failures: Sequence[Failure], *, total: int) -> None:
    """How many files made it, and why the others did not."""
    console.print(f"{total - len(failures)} of {total} files are searchable")
    for failure in failures:
        console.print(f"[red]failed[/red] {escape(failure.filename)}: {escape(failure.reason)}", soft_wrap=True)


def print_hits(console: Console, query: str, hits: Sequence[dict[str, Any]]) -> None:
    """File name, score and snippet of each hit."""
    console.print(f"\n[bold]{escape(query)}[/bold]")
    if not hits:
        console.print("  nothing found")
    for hit in hits:
        text = " ".join(part["text"] for part in hit["content"])
        console.print(
            f"  [green]{hit['score']:.3f}[/green] [cyan]{escape(hit['filename'])}[/cyan] "
            f"[dim]{escape(_snippet(text, query))}[/dim]",
            soft_wrap=True,
            highlight=False,
        )


def _snippet(text: str, query: str) -> str:
    """The part of a text around the query's words."""
    flat = " ".join(text.split())
    words = [word.lower() for word in query.split() if len(word) > 3]  # noqa: PLR2004 - skips "the", "may"
    places = sorted(place for word in words if (place := flat.lower().find(word)) >= 0)
    middle = places[len(places) // 2] if places else 0
    start = max(0, middle - _SNIPPET_CHARACTERS // 2)
    piece = flat[start : start + _SNIPPET_CHARACTERS]
    return ("…" if start else "") + piece + ("…" if start + _SNIPPET_CHARACTERS < len(flat) else "")


def print_welcome(console: Console, service: RunningService, folder: Path) -> None:
    """Where the service is and how to use it."""
    key = service.api_key or "(sluice keys create --user admin makes one)"
    lines = (
        "[bold green]Sluice is up[/bold green]\n",
        f"  base URL   {service.url}/v1",
        f"  API key    {key}",
        f"  data       {folder.resolve()}\n",
        "  [dim]from openai import OpenAI",
        f'  client = OpenAI(base_url="{service.url}/v1", api_key="{key}")\n',
        "  sluice ingest FILES… --store notes",
        '  sluice search "…" --store notes[/dim]\n',
        "Ctrl-C stops it.",
    )
    # as it is, however narrow the terminal: these lines are there to be copied
    console.print("\n".join(lines), soft_wrap=True, highlight=False)
