"""Writes whose process stands still in the middle of its COPY: they hold their rows until somebody ends them.

Postgres does not: for it such a backend is at work, so neither `idle_in_transaction_session_timeout` nor
`statement_timeout` applies, and the kernel of a stopped process answers keepalives all the same.
"""

import anyio
import structlog

from app.db import Pool, connection
from app.vector.chunks import WaitingCopy, end_copies, waiting_copies

logger = structlog.stdlib.get_logger(__name__)


class StalledWrites:
    """Watches the COPYs under way, whosever they are, and ends those that get no byte for `patience_seconds`."""

    def __init__(self, *, patience_seconds: float) -> None:
        self._patience_seconds = patience_seconds
        self._since: dict[WaitingCopy, float] = {}

    async def end(self, pool: Pool) -> None:
        """Look once; it takes two looks to see that nothing has moved.

        Raises:
            DatabaseUnavailable: Postgres is away.
        """
        now = anyio.current_time()
        async with connection(pool) as conn:
            self._since = {copy: self._since.get(copy, now) for copy in await waiting_copies(conn)}
            stalled = [copy for copy, since in self._since.items() if now - since > self._patience_seconds]
            if stalled:
                await end_copies(conn, stalled)
                logger.warning("writes that stood still were ended", backends=[copy.pid for copy in stalled])
