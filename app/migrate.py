"""`alembic upgrade head` from Python, for `sluice up`, the demo and the tests."""

from pathlib import Path

from alembic import command
from alembic.config import Config

_PROJECT = Path(__file__).resolve().parent.parent


def alembic_config(database_url: str) -> Config:
    """Alembic's configuration for a database other than the environment's DATABASE_URL."""
    config = Config(_PROJECT / "alembic.ini")
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str) -> None:
    """Bring a database to the newest schema. Not from inside a running event loop."""
    command.upgrade(alembic_config(database_url), "head")
