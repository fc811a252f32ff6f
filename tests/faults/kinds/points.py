"""Faults at named points on the way of a file: who passes next is killed, or sleeps for longer than a lease.

While half of those sleep, files are cancelled, deleted, detached or attached again. Uploads may be refused, and API
processes end, only if it was one of them that has met the point.
"""

import signal
import time
from collections.abc import Callable
from threading import Thread

from tests.faults.fault import Fault
from tests.faults.harness import Harness
from tests.faults.inside.fail_points import POINTS, FailPoint, arm, disarm, is_armed
from tests.faults.kinds import provider, servers, users
from tests.faults.kinds.processes import LONGER_THAN_THE_LEASE, end_worker_at_once, kill_worker
from tests.faults.promises import API_LOST, LOST, REFUSED, REPEATED
from tests.faults.uploads import LARGE

_MEET_SECONDS = 8.0
"""A worker is met at work, killed, its lease ends, and a sweep comes; longer while what leads there goes on."""
_HELD = 30
_WITHDRAWN_MEANWHILE = 0.5
_WITHDRAW = (users.cancel_some, users.delete_some, users.detach_some, users.attach_again)


def _upload_to_the_provider(harness: Harness) -> None:
    harness.upload(stores=harness.stores[2:])


def _upload_and_break_connections(harness: Harness) -> None:
    harness.upload(LARGE)
    servers.end_backends(harness)


def _upload_when_idle(harness: Harness) -> None:
    harness.settled_pages()  # of a user who has many waiting, the queue is to hear nothing
    harness.upload()


def _restart_redis_when_idle(harness: Harness) -> None:
    harness.settled_pages()
    servers.restart_redis(harness)


def _upload_without_redis(harness: Harness) -> None:
    harness.redis.stop(kill_signal=signal.SIGKILL)
    try:
        harness.upload()
        time.sleep(1)
    finally:
        harness.redis.start()


def _cancel_waiting(harness: Harness) -> None:
    """Those that have not begun, whose jobs are in the queue."""
    harness.upload(LARGE)
    users.cancel(harness, [each for each in harness.newest_ingestions() if each["state"] == "queued"])


def _end_worker_in_vain(harness: Harness) -> None:
    """Whatever it has in hand is still there when it is to end at once."""
    end_worker_at_once(harness, held=_HELD)
    harness.provider.api.unscript()


def _upload_and(act: Callable[[Harness], None]) -> Callable[[Harness], None]:
    def both(harness: Harness) -> None:
        harness.upload(LARGE)
        act(harness)

    return both


_LEADS_TO: dict[str, Callable[[Harness], object]] = {
    "accepted": _upload_when_idle,
    "rung": _upload_when_idle,
    "drained": _upload_without_redis,
    "billed": _upload_to_the_provider,
    "kept": _upload_to_the_provider,
    "failing": provider.answer_too_narrow,
    "failed": provider.answer_too_narrow,
    "put_off": _upload_and_break_connections,
    "giving_back": _end_worker_in_vain,
    "given_back": _end_worker_in_vain,
    "taken_back": kill_worker,
    "ringing": _upload_and(servers.flush_redis),
    "epoch_noted": _upload_and(servers.flush_redis),
    "unheard": _restart_redis_when_idle,
    "overtaken": _cancel_waiting,
    "withdrawn": _cancel_waiting,
    "cancelling": _upload_and(users.cancel_some),
    "deleting": _upload_and(users.delete_some),
    "row_deleted": _upload_and(users.delete_some),
}
"""What brings somebody to the point; to the others any upload does."""
_REFUSED_BY_ITSELF = ("put_off",)
"""What leads there may have uploads refused, whoever meets the point."""


def _fault_at(name: str, point: FailPoint) -> Fault:
    def fault(harness: Harness) -> None:
        number = harness.dice.choice([signal.SIGKILL, signal.SIGSTOP])
        arm(harness.points, name, number)
        lead = Thread(target=_LEADS_TO.get(name, Harness.upload), args=[harness])
        lead.start()  # in a thread: it may be the one that is not answered
        until = time.monotonic() + _MEET_SECONDS
        while is_armed(harness.points, name) and (lead.is_alive() or time.monotonic() < until):
            time.sleep(0.01)
        pid = disarm(harness.points, name)
        harness.done[f"points met by {number.name}" if pid else f"point not met: {name}"] += 1
        harness.took_place = pid is not None
        is_apis = pid is not None and not harness.is_worker(pid)
        if pid and number == signal.SIGKILL:
            harness.succeed_worker(pid)
        elif pid:
            harness.wake(pid, LONGER_THAN_THE_LEASE)
            if harness.dice.random() < _WITHDRAWN_MEANWHILE:
                harness.dice.choice(_WITHDRAW)(harness)
        lead.join()
        if not is_apis:
            no_more = {API_LOST} if name in _REFUSED_BY_ITSELF else {API_LOST, REFUSED}
            harness.promises.may -= no_more

    fault.__name__ = f"at_{name}"
    fault.__doc__ = f"A process is killed or frozen there: {point.situation}"
    return Fault(fault, frozenset({REFUSED, REPEATED, LOST, API_LOST}))


FAULTS = tuple(_fault_at(name, point) for name, point in POINTS.items())
