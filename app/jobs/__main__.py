"""`python -m app.jobs`."""

from app.jobs.cli import app

app(prog_name="python -m app.jobs")
