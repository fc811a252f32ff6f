"""`python -m app.cli` is `sluice`."""

from app.cli.commands import main

main()
