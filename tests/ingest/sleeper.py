"""A worker that falls asleep inside its write; a program of its own, for `test_frozen.py`.

    python -m tests.ingest.sleeper INGESTION_ID

It claims the ingestion, writes all of it, and stops itself before the COMMIT, the row locked. When it is woken up
it goes on, and prints what became of its COMMIT.
"""

import asyncio
import os
import signal
import sys
from uuid import UUID

from app.db import DatabaseUnavailable, connection, transaction
from app.ingest.commit import save_docs_to_multiple_collections
from app.ingest.prepare import prepared
from app.records.ingestions import claim
from app.resources import open_resources
from app.settings import load_settings


async def sleep_in_the_write(ingestion: UUID) -> str:
    settings = load_settings()
    async with open_resources(settings, role="sleeper") as resources:
        async with connection(resources.pool) as conn:
            held = await claim(conn, ingestion, lease_seconds=settings.lease_seconds, worker="sleeper")
        assert held is not None
        try:
            async with prepared(resources, held) as file, transaction(resources.pool) as conn:
                assert await save_docs_to_multiple_collections(conn, held, file)
                os.kill(os.getpid(), signal.SIGSTOP)
        except DatabaseUnavailable:
            return "refused"
    return "committed"


if __name__ == "__main__":
    print(asyncio.run(sleep_in_the_write(UUID(sys.argv[1]))))  # noqa: T201 - its answer
