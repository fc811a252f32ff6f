"""The API's processes under uvicorn."""

from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

_APP = "app.main:app_from_environment"
_GRACE_SECONDS = 25
_START_SECONDS = 60
"""For a new process in a rolling restart, longer than it waits for Postgres."""


class _Supervisor(Multiprocess):
    """uvicorn's leaves the listening socket open while its children finish: callers would wait for nobody. And it
    gives a rolling restart up as a whole if a new child is not ready in 5 s, soon over on a busy machine.
    """

    def restart_all(self) -> None:
        """Replace the children one by one; whoever has not been replaced when a new one fails stays.

        That patience is for this only: a child that dies when it is asked how it is would be missed as late.
        """
        usual = self.config.timeout_worker_healthcheck
        self.config.timeout_worker_healthcheck = _START_SECONDS
        try:
            super().restart_all()
        finally:
            self.config.timeout_worker_healthcheck = usual

    def terminate_all(self) -> None:
        """Close the door, then end the children, who finish what they have begun."""
        for listening in self.sockets:
            listening.close()
        super().terminate_all()


def serve_api(*, host: str, port: int, processes: int) -> None:
    """Serve until SIGTERM or SIGINT; then requests that have begun have 25 s to finish."""
    options: dict[str, Any] = {
        "factory": True,
        "host": host,
        "port": port,
        "loop": "uvloop",
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": _GRACE_SECONDS,
        "server_header": False,
    }
    if processes == 1:
        uvicorn.run(_APP, **options)
    else:
        config = uvicorn.Config(_APP, workers=processes, **options)
        _Supervisor(config, [config.bind_socket()]).run()
