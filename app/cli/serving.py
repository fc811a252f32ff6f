"""The API's processes under uvicorn."""

from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

_APP = "app.main:app_from_environment"
_GRACE_SECONDS = 25
_START_SECONDS = 60
"""For a new process to be ready, longer than it waits for Postgres. After uvicorn's 5 s, which are soon over on a
busy machine, a rolling restart is given up as a whole, and the old processes stay."""


class _Supervisor(Multiprocess):
    """uvicorn's leaves the listening socket open while its children finish: callers would wait for nobody."""

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
        "timeout_worker_healthcheck": _START_SECONDS,
        "server_header": False,
    }
    if processes == 1:
        uvicorn.run(_APP, **options)
    else:
        config = uvicorn.Config(_APP, workers=processes, **options)
        _Supervisor(config, [config.bind_socket()]).run()
