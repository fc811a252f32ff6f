"""arq's command (arq 0.28, `arq.cli`): `python -m app.jobs module.WorkerSettings`."""

import importlib.metadata
import logging.config
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.jobs.arq_log import default_log_config
from app.jobs.arq_worker import check_health, run_worker
from app.jobs.trampoline import import_by_name

try:
    from watchfiles import run_process
except ImportError:  # only `--watch` needs it
    run_process = None  # type: ignore[assignment]

_RELOADING = "\nfiles changed, reloading arq worker..."

app = typer.Typer(add_completion=False)


def _tell_version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(f"sluice {importlib.metadata.version('sluice')}, the API of arq 0.28")
        raise typer.Exit


@app.command()
def command(
    worker_settings: Annotated[str, typer.Argument(help="The dotted path of a class or dict of settings.")],
    *,
    burst: Annotated[
        bool | None,
        typer.Option("--burst/--no-burst", help="Batch mode: exit once no jobs are found in any queue."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Health Check: run a health check and exit.")] = False,
    watch: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Watch a directory and reload the worker upon changes."),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Enable verbose output.")] = False,
    custom_log_dict: Annotated[
        str | None, typer.Option(help="Dotted path of a logging configuration in the form of a dict.")
    ] = None,
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Job queues in python with asyncio and redis: run a worker."""
    del version
    sys.path.append(str(Path.cwd()))
    settings = _imported(worker_settings)
    logging.config.dictConfig(
        _imported(custom_log_dict) if custom_log_dict else default_log_config(verbose=verbose)
    )
    if check:
        raise typer.Exit(check_health(settings))
    if watch is not None:
        _run_again_on_changes(watch, worker_settings, verbose=verbose, custom_log_dict=custom_log_dict)
        return
    run_worker(settings, **({} if burst is None else {"burst": burst}))


def _imported(path: str) -> Any:
    try:
        return import_by_name(path)
    except Exception as exc:
        text = f"{path!r} cannot be imported: {exc.__cause__ or exc}. Give it as package.module.Name."
        raise typer.BadParameter(text) from exc


def _run_again_on_changes(path: Path, settings: str, *, verbose: bool, custom_log_dict: str | None) -> None:
    """A process for each state of the files; arq goes on in the same one, with the functions that it had."""
    if run_process is None:
        raise typer.BadParameter("watchfiles not installed, use `pip install watchfiles`", param_hint="--watch")
    words = [sys.executable, "-m", "app.jobs", settings]
    if verbose:
        words.append("--verbose")
    if custom_log_dict:
        words += ("--custom-log-dict", custom_log_dict)
    run_process(
        path, target=shlex.join(words), target_type="command", callback=lambda _changes: typer.echo(_RELOADING)
    )
