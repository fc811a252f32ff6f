"""`make demo`: the main job from upload to search, on the project's own sample documents."""

import tempfile
from pathlib import Path

from rich.console import Console

from app.cli.client import SluiceClient
from app.cli.screen import ingest_with_progress, print_failures, print_hits
from app.cli.service import ServicePlan, running_service
from app.errors import Broken
from app.samples import SEARCHES, write_samples


def run_demo(folder: Path, port: int, console: Console) -> None:
    """Start everything, ingest the samples, search, stop everything.

    Raises:
        Broken: a step failed; says which and why.
    """
    with running_service(
        ServicePlan(folder, port=port), lambda text: console.print(f"[dim]· {text}[/dim]")
    ) as service:
        if service.api_key is None:
            raise Broken(f"no API key in {folder}; remove that folder and run the demo again")
        with tempfile.TemporaryDirectory(prefix="sluice-samples-") as samples:
            files = write_samples(Path(samples))
            with SluiceClient(service.url, service.api_key) as client:
                failures = ingest_with_progress(console, client, files, "demo")
                print_failures(console, failures, total=len(files))
                if failures:
                    raise Broken("the demo's own samples did not all become searchable")
                store_id = client.find_or_create_store("demo")
                for query in SEARCHES:
                    print_hits(console, query, client.search(store_id, query, limit=2))
    console.print("\n[dim]everything is stopped; 'make up' keeps it running[/dim]")
