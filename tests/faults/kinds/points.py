"""Faults at named points on the way of a file: who passes next is killed, or sleeps for longer than a lease.

While half of those sleep, files are cancelled, deleted, detached or attached again.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, Timer

from tests.faults.harness import LARGE, Harness
from tests.faults.inside.fail_points import POINTS, FailPoint, arm, disarm, is_armed
from tests.faults.kinds import provider, servers, users
from tests.faults.kinds.processes import LONGER_THAN_THE_LEASE, kill_worker

_MEET_SECONDS = 5.0
_WITHDRAWN_MEANWHILE = 0.5
_WITHDRAW = (users.cancel_some, users.delete_some, users.detach_some, users.attach_again)
_PAUSE_SECONDS = 1.2  # a second signal within the first second is taken for the first one's echo


def _upload_to_the_provider(harness: Harness) -> None:
    harness.upload(stores=harness.stores[2:])


def _upload_and_kill(harness: Harness) -> None:
    harness.upload(LARGE)
    kill_worker(harness)


def _upload_and_break_connections(harness: Harness) -> None:
    harness.upload(LARGE)
    servers.end_backends(harness)


def _upload_and_end(harness: Harness) -> None:
    """Two SIGTERMs: what is in hand is given back."""
    harness.upload(LARGE)
    worker = harness.replace_worker(signal.SIGTERM)
    time.sleep(_PAUSE_SECONDS)
    worker.terminate()


def _upload_and(act: Callable[[Harness], None]) -> Callable[[Harness], None]:
    def both(harness: Harness) -> None:
        harness.upload(LARGE)
        act(harness)

    return both


_LEADS_TO: dict[str, Callable[[Harness], None]] = {
    "drained": servers.restart_redis,
    "billed": _upload_to_the_provider,
    "kept": _upload_to_the_provider,
    "failing": provider.answer_another_width,
    "failed": provider.answer_another_width,
    "put_off": _upload_and_break_connections,
    "giving_back": _upload_and_end,
    "given_back": _upload_and_end,
    "taken_back": _upload_and_kill,
    "epoch_noted": _upload_and(servers.flush_redis),
    "unheard": servers.restart_redis,
    "overtaken": _upload_and(users.cancel_some),
    "withdrawn": _upload_and(users.cancel_some),
    "cancelling": _upload_and(users.cancel_some),
    "deleting": _upload_and(users.delete_some),
    "row_deleted": _upload_and(users.delete_some),
}
"""What brings somebody to the point; to the others any upload does."""


def _wake(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _fault_at(name: str, point: FailPoint) -> Callable[[Harness], None]:
    def fault(harness: Harness) -> None:
        number = harness.dice.choice([signal.SIGKILL, signal.SIGSTOP])
        arm(harness.points, name, number)
        lead = Thread(target=_LEADS_TO.get(name, Harness.upload), args=[harness])
        lead.start()  # in a thread: it may be the one that is not answered
        until = time.monotonic() + _MEET_SECONDS
        while is_armed(harness.points, name) and time.monotonic() < until:
            time.sleep(0.01)
        pid = disarm(harness.points, name)
        harness.done[f"points met by {number.name}" if pid else f"point not met: {name}"] += 1
        if pid and number == signal.SIGKILL:
            harness.succeed_worker(pid)
        elif pid:
            waking = Timer(LONGER_THAN_THE_LEASE, _wake, [pid])
            waking.start()
            if harness.dice.random() < _WITHDRAWN_MEANWHILE:
                harness.dice.choice(_WITHDRAW)(harness)
            waking.join()
        lead.join()

    fault.__name__ = f"at_{name}"
    fault.__doc__ = f"A process is killed or frozen there: {point.situation}"
    return fault


FAULTS = tuple(_fault_at(name, point) for name, point in POINTS.items())
