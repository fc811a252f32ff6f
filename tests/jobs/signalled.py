"""A worker that signals itself at a moment of its life: `python -m tests.jobs.signalled MOMENT SIGNAL REDIS`."""

import asyncio
import logging
import os
import signal
import sys
from typing import Any

from app.jobs import RedisSettings, Worker, create_worker

MOMENT, NUMBER, URL = sys.argv[1], signal.Signals[sys.argv[2]], sys.argv[3]
heard = asyncio.Event()


def tell(moment: str) -> None:
    sys.stdout.write(f"{moment}\n")
    sys.stdout.flush()


def signal_at(moment: str) -> None:
    tell(moment)
    if moment == MOMENT:
        os.kill(os.getpid(), NUMBER)


class SignalAtWarnings(logging.Handler):
    """Redis is away: the warning about it is the moment."""

    def emit(self, _record: logging.LogRecord) -> None:
        signal_at("connecting")


async def start_up(ctx: dict[Any, Any]) -> None:
    signal_at("on_startup")
    if MOMENT == "on_startup":
        await asyncio.Event().wait()


async def shut_down(ctx: dict[Any, Any]) -> None:
    signal_at("on_shutdown")
    if MOMENT == "on_shutdown":
        await heard.wait()
    tell("closed")


async def nothing(ctx: dict[Any, Any]) -> None:
    pass


settings = RedisSettings.from_dsn(URL)
settings.conn_retries, settings.conn_retry_delay = 1, 20
worker: Worker = create_worker(
    {"functions": [nothing], "on_startup": start_up, "on_shutdown": shut_down, "redis_settings": settings},
    burst=MOMENT == "on_shutdown",
)
worker.on_stop = lambda _number: heard.set()
logging.getLogger().addHandler(SignalAtWarnings(logging.WARNING))
worker.run()
