"""What README and docs say is checked against the program."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
import typer
from typer.testing import CliRunner

from app.cli.commands import app
from app.cli.service import ServicePlan, running_service
from app.errors import FailureCode
from app.settings import Settings
from tests.support.environment import clean_environment
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    path.name: path.read_text()
    for path in (
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
    )
}


def rows_after(heading: str) -> list[list[str]]:
    """The body rows of the first table behind a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def command_tree() -> dict[str, set[str]]:
    """Each command's path below `sluice` ("" itself) and its options."""
    tree: dict[str, set[str]] = {}

    def visit(command: click.Command, path: str) -> None:
        tree[path] = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, below in getattr(command, "commands", {}).items():
            visit(below, f"{path} {name}".strip())

    visit(typer.main.get_command(app), "")
    return tree


COMMANDS = command_tree()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def unknown_part(line: str) -> str | None:
    """What a mention of `sluice …` names that does not exist: a command, a subcommand or an option."""
    words = line.split()
    path = ""
    for word in words:
        deeper = f"{path} {word}".strip()
        if deeper not in COMMANDS:
            break
        path = deeper
    is_group = any(other.startswith(f"{path} ") for other in COMMANDS)
    if not path or (is_group and len(words) > len(path.split()) and words[len(path.split())].isalpha()):
        return line
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    return next((option for option in options if option not in COMMANDS[path]), None)


def unknown_targets(text: str) -> list[str]:
    """What `make …` is told to make, and cannot."""
    return [
        target for target in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE) if target not in TARGETS
    ]


def unknown_modules(text: str) -> list[str]:
    """Modules of ours that `python -m …` is told to run, or that stand alone in backticks, and are not there."""
    named = re.findall(r"(?:python -m\s+|`)((?:app|benchmarks|tests)(?:\.[a-z_]+)+)(?=[\s`]|$)", text)
    paths = {name: ROOT / name.replace(".", "/") for name in named}
    return [
        name
        for name, path in paths.items()
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists())
    ]


def shown(name: str) -> str:
    field = Settings.model_fields[name]
    if field.is_required():
        return "required"
    if field.default is None or field.default == "":
        return "none"
    return str(field.default).lower() if isinstance(field.default, bool) else f"`{field.default}`"


def test_the_settings_table_is_the_settings() -> None:
    expected = [
        [f"`{name.upper()}`", shown(name), field.description] for name, field in Settings.model_fields.items()
    ]
    assert rows_after("Settings") == expected


def test_every_failure_code_is_explained_and_no_other() -> None:
    assert [row[0].strip("`") for row in rows_after("Why a file failed")] == list(get_args(FailureCode))


def test_every_place_that_is_named_exists() -> None:
    for row in rows_after("Where to change what"):
        for place in re.findall(r"`(app/[^`]*|migrations/)`", row[0]):
            assert (ROOT / place).exists(), place


@pytest.mark.parametrize("page", PAGES)
def test_every_command_target_and_module_that_is_mentioned_exists(page: str) -> None:
    assert unknown_targets(PAGES[page]) == []
    assert unknown_modules(PAGES[page]) == []
    for mention in re.findall(r"(?:^    |\|\s*|exec api |`)sluice ([a-z][^`#|\n]*)", PAGES[page], re.MULTILINE):
        assert unknown_part(mention) is None, mention


@pytest.mark.parametrize("page", PAGES)
def test_defaults_of_make_are_the_ones_that_are_mentioned(page: str) -> None:
    defaults = dict(re.findall(r"^([A-Z]+) +\?= ([0-9]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, value in re.findall(r"\[([A-Z]+)=([0-9]+)\]", PAGES[page]):
        assert defaults[name] == value


@pytest.mark.parametrize("mention", ["fly", "users fly", "doctor --alive", "ingest FILES… --stores notes"])
def test_a_mention_of_what_does_not_exist_is_noticed(mention: str) -> None:
    assert unknown_part(mention) is not None


def test_a_target_or_module_that_does_not_exist_is_noticed() -> None:
    text = "    make test-fautls COUNT=3\n`python -m\n  benchmarks.recovry --runs 5`, `tests.fault`, `tests.faults`"
    assert unknown_targets(text) == ["test-fautls"]
    assert unknown_modules(text) == ["benchmarks.recovry", "tests.fault"]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_inside_the_project_leads_somewhere(page: str) -> None:
    folder = ROOT / "docs" if (ROOT / "docs" / page).exists() else ROOT
    for target in re.findall(r"\]\((?!http)([^)#]+)", PAGES[page]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str) -> None:
    ran = CliRunner().invoke(app, [*command.split(), "--help"])
    assert ran.exit_code == 0
    assert "Usage" in ran.output


def test_the_readmes_example_runs_as_it_stands(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    environment = clean_environment()
    with running_service(
        ServicePlan(tmp_path / "data", port=free_port(), environment=environment), print
    ) as service:
        assert service.api_key is not None
        ran = subprocess.run(
            [sys.executable, "-c", example],
            env={**environment, "SLUICE_URL": service.url, "SLUICE_API_KEY": service.api_key},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "completed" in ran.stdout
    assert "lamp.txt In fog the keeper sounds two blasts every minute." in ran.stdout


def test_pgbouncer_is_told_to_ignore_each_start_parameter_that_it_does_not_know() -> None:
    (sent,) = (
        node.value
        for node in ast.walk(ast.parse((ROOT / "app" / "db.py").read_text()))
        if isinstance(node, ast.keyword) and node.arg == "server_settings"
    )
    names = set(ast.literal_eval(ast.unparse(ast.List(sent.keys)))) - {"application_name"}
    (told,) = re.findall(r"ignore_startup_parameters = (\S+)", README)
    assert set(told.split(",")) == names
