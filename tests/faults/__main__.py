"""Break the running service on purpose, and look after each fault whether every promise still holds.

    python -m tests.faults [--count 60] [--seed 1] [--only kill_worker …]
    python -m tests.faults --mutants            # each safeguard taken out in turn: must be found broken

Real API processes, workers, Redis and Postgres. Each fault meets an upload of 16 files into one to four stores;
then all must settle, each file as it was promised, and the doctor must find nothing. Exits with 1 on a violation. A
long run, so it has a command of its own and is no part of `make test`.
"""

import argparse
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.harness import Harness
from tests.faults.kinds import FAULTS, Fault, draw
from tests.faults.mutants import MUTANTS, make

MOST_VIOLATIONS = 20
MOST_BILLED = 1.1
"""Times what is needed: what is on its way when a worker dies is paid for again."""
MOST_BILLED_OF_A_KIND = 1.5
"""If few kinds are injected, which may be those that lose what is paid for."""
MANY_KINDS = len(FAULTS) // 3
FAULTS_A_LINE = 50
OFTEN = 3
"""A kind that is tried as often as this and never takes place shows nothing."""


def run(faults: list[Fault], seed: int, folder: Path, console: Console, *, stop_at_first: bool) -> list[str]:
    """Inject the faults one after another; the violations."""
    violations: list[str] = []
    recovery: dict[str, list[float]] = defaultdict(list)
    broken: Counter[str] = Counter()
    took_place: Counter[str] = Counter()
    with ExitStack() as stack:
        harness = Harness(folder, random.Random(seed))
        harness.start(stack)
        began = time.monotonic()
        with suppress(KeyboardInterrupt):  # a long run may be cut short; what it has found still counts
            for number, fault in enumerate(faults, 1):
                harness.promises.may, harness.took_place = fault.may, True
                harness.upload()
                fault.inject(harness)
                recovery[fault.name].append(harness.settle())
                found = harness.examine()
                took_place[fault.name] += harness.took_place
                harness.delete_old_files()
                if found:
                    broken[fault.name] += 1
                    violations += [f"fault {number}, {fault.name}: {each}" for each in found]
                    console.print(*violations[-len(found) :], sep="\n", style="red", markup=False)
                if number % FAULTS_A_LINE == 0:
                    seconds = time.monotonic() - began
                    console.print(f"{number} of {len(faults)}, {seconds:.0f} s, {len(violations)} violations")
                if violations and (stop_at_first or len(violations) > MOST_VIOLATIONS):
                    break
        seconds = time.monotonic() - began
        if harness.forged.exists():
            violations.append("a forged job was executed")
    show(recovery, broken, console)
    injected = sum(map(len, recovery.values()))
    console.print(f"seed {seed}, {injected} faults in {seconds:.0f} s")
    console.print(dict(sorted((harness.done + harness.promises.kept).items())))
    reader, billed, needed = harness.reader, harness.provider.billed_tokens, harness.provider.needed_tokens
    console.print(f"{reader.snapshots} snapshots read, {reader.during_work} of them while files were on their way")
    console.print(f"{billed} tokens billed, {needed} needed")
    most_billed = MOST_BILLED if len(recovery) > MANY_KINDS else MOST_BILLED_OF_A_KIND
    of_all = ["too much was paid for"] if billed > most_billed * needed else []
    of_all += [
        f"{name} was tried {len(each)} times and never took place"
        for name, each in recovery.items()
        if len(each) >= OFTEN and not took_place[name]
    ]
    if injected < len(faults) and not violations:
        of_all.append(f"only {injected} of {len(faults)} faults were injected")
    console.print(*of_all, sep="\n", end="\n" if of_all else "", style="red", markup=False)
    return violations + of_all


def show(recovery: dict[str, list[float]], broken: Counter[str], console: Console) -> None:
    """The table."""
    table = Table(title="from the end of the fault until all files had settled, s")
    for title in ("fault", "times", "p50", "p99", "max", "violations"):
        table.add_column(title, justify="left" if title == "fault" else "right")
    for name, seconds in [
        *sorted(recovery.items()),
        ("all", [each for some in recovery.values() for each in some]),
    ]:
        if not seconds:  # cut off before it had settled
            continue
        p99 = statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
        figures = (statistics.median(seconds), min(p99, max(seconds)), max(seconds))
        count = sum(broken.values()) if name == "all" else broken[name]
        table.add_row(name, str(len(seconds)), *(f"{each:.1f}" for each in figures), str(count))
    console.print(table)


def run_mutants(names: list[str], count: int, console: Console) -> list[str]:
    """Each mutant in a process and a copy of its own; the names of those that were not caught."""
    survivors = []
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="sluice-mutant-"))
        root = make(name, folder)
        command = [sys.executable, "-m", "tests.faults", "--count", str(count), "--stop-at-first"]
        if MUTANTS[name].only:
            command += ("--only", *MUTANTS[name].only)
        outcome = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        told = [line for line in outcome.stdout.splitlines() if line.startswith("fault ")]
        lines = [line for line in told if re.search(MUTANTS[name].shows, line)]
        if not told and "0 violations" not in outcome.stdout:
            raise RuntimeError(f"{name}: {outcome.stdout[-1000:]}{outcome.stderr[-1000:]}")
        console.print(f"{name}: {lines[0] if lines else f'NOT caught {told}'}", markup=False)
        if not lines:
            survivors.append(name)
        shutil.rmtree(folder)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--mutants", nargs="*", metavar="MUTANT", help=f"all, or some of {list(MUTANTS)}")
    parser.add_argument("--stop-at-first", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever was started is stopped
    console = Console(width=120, soft_wrap=True)
    if options.mutants is not None:
        survivors = run_mutants(options.mutants or list(MUTANTS), options.count, console)
        sys.exit(f"not caught: {survivors}" if survivors else 0)
    faults = draw(random.Random(options.seed), options.count)
    if options.only:
        chosen = [fault for fault in FAULTS if fault.name in options.only]
        faults = [chosen[number % len(chosen)] for number in range(options.count)]
    folder = Path(tempfile.mkdtemp(prefix="sluice-faults-"))
    violations = run(faults, options.seed, folder, console, stop_at_first=options.stop_at_first)
    if violations:
        sys.exit(f"{len(violations)} violations; the logs are in {folder}")
    shutil.rmtree(folder)
    console.print("0 violations")


if __name__ == "__main__":
    main()
