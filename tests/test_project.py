"""The project's own files: locks, compose, Dockerfile, alembic, and what must not be committed."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from app.cli.commands import app
from app.embedded import EmbeddedPostgres

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0].lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_hashes_and_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links|/opt/", text)
    for requirement in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9-]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_every_dependency_is_locked() -> None:
    locked = {name_of(line) for line in (ROOT / LOCKS[0]).read_text().splitlines() if line and line[0].isalnum()}
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} <= locked
    dev = {name_of(line) for line in (ROOT / LOCKS[1]).read_text().splitlines() if line and line[0].isalnum()}
    assert {name_of(requirement) for requirement in PROJECT["optional-dependencies"]["dev"]} | locked <= dev


def test_compose_has_every_part_with_a_health_check_and_commands_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())["services"]
    for part in ("postgres", "redis", "api", "worker"):
        assert services[part]["healthcheck"]["test"], part
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for part in ("api", "worker"):
        assert services[part]["command"][:1] == ["sluice"]
        assert services[part]["command"][1] in known
    assert services["worker"]["healthcheck"]["test"][1:] == ["sluice", "ready"]
    assert services["migrate"]["command"] == ["alembic", "upgrade", "head"]


def test_the_image_is_built_from_the_lock() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert "--require-hashes -r requirements.lock" in text
    for source in re.findall(r"^COPY ((?!--).+) \S+$", text, re.MULTILINE):
        for part in source.split():
            assert (ROOT / part).exists(), part


def test_nothing_that_is_committed_names_this_machine_or_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    forbidden = re.compile("|".join(["/work" + "/main", "/opt" + "/pypi", "pypi" + r"\.org", "python" + "hosted"]))
    for name in listed.stdout.split():
        if (ROOT / name).exists():
            assert not forbidden.search((ROOT / name).read_text(errors="replace")), name


def test_alembic_needs_nothing_but_the_database_url(postgres: EmbeddedPostgres) -> None:
    def alembic(*arguments: str, url: str | None) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=ROOT, env=environment | ({"DATABASE_URL": url} if url else {}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    url = postgres.url_of("fresh_for_alembic")
    subprocess.run(
        [sys.executable, "-c", "import asyncio, asyncpg, sys\nasync def main():\n conn = await asyncpg.connect("
         "sys.argv[1])\n await conn.execute('CREATE DATABASE fresh_for_alembic')\n await conn.close()\n"
         "asyncio.run(main())", postgres.url_of("postgres")],
        check=True,
    )  # fmt: skip
    for arguments in (("upgrade", "head"), ("check",), ("downgrade", "base"), ("upgrade", "head")):
        ran = alembic(*arguments, url=url)
        assert ran.returncode == 0, ran.stderr
    without = alembic("upgrade", "head", url=None)
    assert without.returncode == 1
    assert "DATABASE_URL is missing" in without.stderr
