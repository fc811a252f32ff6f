"""`sluice doctor` and `sluice ready`."""

from rich.console import Console
from rich.markup import escape

from app.db import connection
from app.doctor import examine
from app.errors import Broken
from app.resources import open_resources
from app.settings import Settings


async def print_findings(console: Console, settings: Settings) -> int:
    """Examine the database and print what is broken; how much that is."""
    async with open_resources(settings, role="doctor") as resources:
        findings = await examine(resources)
    for finding in findings:
        console.print(f"[red]broken[/red] {escape(finding.promise)}: {escape(finding.where)}", soft_wrap=True)
    console.print("no broken invariant" if not findings else f"{len(findings)} broken")
    return len(findings)


async def check_ready(settings: Settings) -> None:
    """Pass if Postgres answers, and the queue too where one is enabled.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
        Broken: the queue does not answer.
    """
    async with open_resources(settings, role="ready") as resources:
        async with connection(resources.pool) as conn:
            await conn.execute("SELECT 1")
        if resources.doorbell.is_enabled and not await resources.doorbell.is_job_queue_available():
            raise Broken(
                "the job queue (REDIS_URL) does not answer; files are taken straight from Postgres meanwhile"
            )
