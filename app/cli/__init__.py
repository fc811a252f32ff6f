"""The `sluice` command."""

from app.cli.commands import main

__all__ = ["main"]
