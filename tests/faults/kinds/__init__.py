"""What goes wrong: each fault happens while an upload is on its way through the service."""

import random

from tests.faults.fault import Fault
from tests.faults.kinds import points, processes, provider, servers, users

FAULTS: tuple[Fault, ...] = processes.FAULTS + servers.FAULTS + provider.FAULTS + users.FAULTS + points.FAULTS


def draw(dice: random.Random, count: int) -> list[Fault]:
    """`count` faults in random order, each kind as often as any other, give or take one."""
    rounds = [dice.sample(FAULTS, len(FAULTS)) for _ in range(count // len(FAULTS) + 1)]
    return [fault for each in rounds for fault in each][:count]
