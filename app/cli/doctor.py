"""`sluice doctor`."""

from rich.console import Console
from rich.markup import escape

from app.doctor import examine
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
