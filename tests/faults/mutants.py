"""Sluice with one of its safeguards taken out: the harness must find that something is broken."""

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("app", "tests", "migrations", "alembic.ini", "LICENSE", "README.md", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """One replacement in one file."""

    file: str
    old: str
    new: str
    only: tuple[str, ...] = ()  # the faults that can show it


MUTANTS = {
    "no claim check at the commit": Mutant(
        "app/records/ingestions.py",
        "\"SELECT id FROM ingestions WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE\"",
        '"SELECT id FROM ingestions WHERE id = $1 AND $2::int IS NOT NULL FOR UPDATE"',
        only=("freeze_worker_and_withdraw", "cancel_some"),
    ),
    "expired leases are not taken back": Mutant(
        "app/records/ingestions.py",
        "WHERE state = 'running' AND lease_until < now() FOR UPDATE",
        "WHERE false FOR UPDATE",
    ),
    "nobody rings again": Mutant(
        "app/ingest/maintenance.py", "return has_queue and await _ring(resources)", "return has_queue"
    ),
    "text is not cleaned": Mutant(
        "app/extraction/texts.py", '_UNCLEAN = re.compile("[\\x00-', '_UNCLEAN = re.compile("[\\x01-'
    ),
}


def make(name: str, folder: Path) -> Path:
    """A copy of the project with the mutation; its root.

    Raises:
        LookupError: the code has changed so that there is nothing to mutate.
    """
    mutant = MUTANTS[name]
    root = folder / "mutant"
    root.mkdir(parents=True)
    for each in COPIED:
        if (ROOT / each).is_dir():
            shutil.copytree(ROOT / each, root / each, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / each, root / each)
    path = root / mutant.file
    text = path.read_text(encoding="utf-8")
    if mutant.old not in text:
        raise LookupError(f"mutant {name!r}: {mutant.file} has changed")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    return root
