"""The rows of the design: imports go down only, and each foreign library enters at one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"
ROWS = [
    {"errors", "settings", "logging", "ids"},
    {"db", "schema", "blobs", "migrate"},
    {"records", "access", "vector", "embedding", "extraction", "jobs", "embedded", "samples"},
    {"credentials", "doorbell", "resources", "ringing"},
    {"api", "ingest", "doctor"},
    {"main", "worker", "cli"},
]
SAME_ROW_ALLOWED = {
    ("settings", "errors"),
    ("ids", "errors"),
    ("resources", "doorbell"),
    ("ringing", "resources"),
    ("cli", "worker"),  # `sluice worker` runs the worker's root
}
HOMES = {
    "fastapi": {"api", "main"},
    "rq": {"jobs"},
    "redis": {"jobs", "embedding", "resources", "doorbell"},
    "openai": {"embedding"},
    "pgvector": {"vector", "schema"},
    "obstore": {"blobs"},
    "arq": set(),
}
MODULES = sorted(APP.rglob("*.py"))
SMALL = sorted(path for folder in ("app", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py"))
LONG = {
    "tests/jobs/test_arq_examples.py": "a test for each example of arq's documentation",
}


def part_of(path: Path) -> str:
    return path.relative_to(APP).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "app":
                yield from ((node.lineno, f"app.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"


def row_of(part: str) -> int:
    return next(number for number, row in enumerate(ROWS) if part in row)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_imports_go_down_only(path: Path) -> None:
    mine = part_of(path)
    if mine == "__init__":
        return
    for line, module in imports(path):
        assert module != "a relative import", f"{path}:{line}: write imports out: from app.…"
        if not module.startswith("app."):
            continue
        theirs = module.split(".")[1]
        allowed = theirs == mine or row_of(theirs) < row_of(mine) or (mine, theirs) in SAME_ROW_ALLOWED
        assert allowed, f"{path}:{line}: {mine} (row {row_of(mine) + 1}) may not import {theirs}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_foreign_libraries_enter_at_one_place(path: Path) -> None:
    for line, module in imports(path):
        homes = HOMES.get(module.split(".")[0])
        assert homes is None or part_of(path) in homes, f"{path}:{line}: {module} belongs to {sorted(homes)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_no_import_hides_inside_a_function(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            hidden = [inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
            assert not hidden, f"{path}:{hidden}"


WALL_CLOCKS = {
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("date", "today"),
    ("time", "time"),
    ("time", "time_ns"),
}


@pytest.mark.parametrize("path", [path for path in MODULES if part_of(path) in {"ingest", "records", "vector"}])
def test_rows_and_blobs_are_judged_by_postgres_clock(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_clock = (node.value.id, node.attr) in WALL_CLOCKS
            assert not is_clock, f"{path}:{node.lineno}: this machine's clock may be a day ahead; ask Postgres"


@pytest.mark.parametrize("path", SMALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400 or str(path.relative_to(ROOT)) in LONG, f"{path} has more than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if len(node.body) > 1 and ast.get_docstring(node) else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 50, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_the_queue_package_knows_nothing_of_the_rest() -> None:
    for path in (APP / "jobs").rglob("*.py"):
        for line, module in imports(path):
            assert not module.startswith("app.") or module.startswith("app.jobs"), f"{path}:{line}: {module}"
