"""Sluice with one of its safeguards taken out: the harness must find that something is broken."""

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("app", "tests", "migrations", "alembic.ini", "LICENSE", "README.md", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """Replacements in one file, each wherever it fits."""

    file: str
    replacements: tuple[tuple[str, str], ...]
    only: tuple[str, ...] = ()  # the faults that can show it
    shows: str = ""  # a pattern of what the violation says


MUTANTS = {
    "no claim check at the commit": Mutant(
        "app/records/ingestions.py",
        (
            (
                "\"SELECT id FROM ingestions WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE\"",
                '"SELECT id FROM ingestions WHERE id = $1 AND $2::int IS NOT NULL FOR UPDATE"',
            ),
        ),
        only=("freeze_worker_and_withdraw", "cancel_some", "withdraw_during_writes"),
        shows="ended as completed",
    ),
    "no fence": Mutant(
        "app/records/ingestions.py",
        (
            ("AND fence = $2 AND state = 'running'", "AND $2::int IS NOT NULL AND state = 'running'"),
            ("AND i.fence = h.fence", "AND h.fence > 0"),
            (
                "SELECT i.id, i.fence FROM ingestions i JOIN held h USING (id, fence)",
                "SELECT i.id, h.fence FROM ingestions i JOIN held h USING (id)",
            ),
        ),
        only=("late_verdict",),
        shows="ended as failed parser_timeout",
    ),
    "no FOR UPDATE at the commit": Mutant(
        "app/records/ingestions.py",
        (("AND state = 'running' FOR UPDATE\"", "AND state = 'running'\""),),
        only=("withdraw_during_writes",),
        shows="ended as completed",
    ),
    "expired leases are not taken back": Mutant(
        "app/records/expired_leases.py",
        (("WHERE state = 'running' AND lease_until < now() FOR UPDATE", "WHERE false FOR UPDATE"),),
        only=("kill_worker", "freeze_worker"),
        shows="has not settled",
    ),
    "nobody rings again": Mutant(
        "app/ingest/maintenance.py",
        (("return has_queue and await _ring(resources, stop) and", "return has_queue and"),),
        shows="has not settled",
    ),
    "text is not cleaned": Mutant(
        "app/extraction/texts.py",
        (('_UNCLEAN = re.compile("[\\x00-', '_UNCLEAN = re.compile("[\\x01-'),),
        shows="has not settled|ended as failed",
    ),
    "vectors in the order of the answer": Mutant(
        "app/embedding/answers.py",
        (("return answer, [by_index[index] for index in range(texts)]", "return answer, entries"),),
        only=("answer_nonsense",),
        shows="a vector is not that of its text",
    ),
    "an upload depends on the queue": Mutant(
        "app/api/ingestions.py",
        (("    await ring(resources, hints)", "    assert await ring(resources, hints)"),),
        only=("restart_redis", "freeze_redis"),
        shows="an upload was refused",
    ),
    "leases are not extended": Mutant(
        "app/records/ingestions.py",
        (
            (
                "SET lease_until = now() + make_interval(secs => $1)\n            FROM free",
                "SET lease_until = lease_until\n            FROM free",
            ),
        ),
        only=("freeze_parsers", "slow_postgres"),
        shows="attempts",
    ),
    "claims without an answer are left to their leases": Mutant(
        "app/ingest/leases.py",
        (("self._doubts.add(began)", "pass"),),
        only=("cut_postgres", "end_backends"),
        shows="[1-9] lost",
    ),
    "a limited rate costs an attempt": Mutant(
        "app/ingest/outcomes.py",
        (("pause, message, costs_attempt=False", "pause, message"),),
        only=("limit_rate",),
        shows="attempts",
    ),
    "giving back costs an attempt": Mutant(
        "app/records/ingestions.py",
        (("attempts = attempts - 1", "attempts = attempts"),),
        only=("end_worker_at_once",),
        shows="attempts",
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
    for old, new in mutant.replacements:
        if old not in text:
            raise LookupError(f"mutant {name!r}: {mutant.file} has changed")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return root
