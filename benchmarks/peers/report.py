"""What `benchmarks.queues` shows: its tables, the targets reached or not, and the plot."""

import statistics
from collections import defaultdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.peers.catalogue import Peer

KINDS = ("noop", "sleep")
AT_ONCE = (10, 100, 1000)
PANELS: tuple[tuple[str, str, str], ...] = (
    ("No-op jobs a second, 100 at once", "noop", "rate"),
    ("10 ms jobs a second, 100 at once (10,000 possible)", "sleep", "rate"),
    ("Worker's CPU a no-op job, µs (less is better)", "noop", "cpu_us"),
)


class Figures:
    """(peer, scenario) → figure → one number a run; and what went wrong instead."""

    def __init__(self) -> None:
        self.measured: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.broken: dict[tuple[str, str], str] = {}

    def median(self, peer: str, scenario: str, figure: str) -> float | None:
        """The median of a figure; None if it was not measured."""
        values = self.measured.get((peer, scenario), {}).get(figure)
        return statistics.median(values) if values else None


def show(figures: Figures, peers: list[Peer], console: Console) -> None:
    """The tables, and below them what was to be reached."""
    _show_drains(figures, peers, console)
    _show_enqueueing(figures, peers, console)
    for (name, scenario), why in figures.broken.items():
        console.print(f"{name}, {scenario}: {why}", style="red", markup=False, highlight=False)
    table = Table(title="what was to be reached")
    for title in ("what", "measured", "wanted", ""):
        table.add_column(title)
    for text, value, bound, is_least in targets(figures):
        wanted = f"{'≥' if is_least else '≤'} {bound:g}"
        table.add_row(text, "-" if value is None else f"{value:.2f}", wanted, verdict(value, bound, is_least))
    console.print(table)


def _show_drains(figures: Figures, peers: list[Peer], console: Console) -> None:
    table = Table(title="drain: jobs a second of one worker process; costs a no-op job, at 100 at once")
    titles = [f"{kind} {at_once}" for kind in KINDS for at_once in AT_ONCE]
    for title in ("queue", *titles, "worker µs", "Redis µs", "commands", "reads", "MiB"):
        table.add_column(title, justify="left" if title == "queue" else "right")
    for peer in peers:
        of = partial(figures.median, peer.name)
        # one at a time stands in the first column of each kind
        rates = [
            of(f"{kind} {peer.at_once[0] if at_once == AT_ONCE[0] else at_once}", "rate")
            for kind in KINDS
            for at_once in AT_ONCE
        ]
        costs = [of(f"noop {peer.most}", each) for each in ("cpu_us", "redis_us", "commands", "reads", "rss")]
        label = f"{peer.name} ({peer.remark})" if peer.remark else peer.name
        cells = [_whole, _whole, _tenths, _tenths, _whole]
        shown = [write(cost) for write, cost in zip(cells, costs, strict=True)]
        table.add_row(label, *map(_whole, rates), *shown)
    console.print(table)


def _show_enqueueing(figures: Figures, peers: list[Peer], console: Console) -> None:
    table = Table(title="enqueueing, jobs a second; from enqueueing to an idle worker's start of the job, ms")
    for title in ("queue", "one by one", "64 at once", "bulk", "p50", "p99"):
        table.add_column(title, justify="left" if title == "queue" else "right")
    for peer in peers:
        of = partial(figures.median, peer.name)
        rates = [of(f"enqueue {mode}", "rate") for mode in ("one", "many", "bulk")]
        waits = [of("latency", each) for each in ("p50", "p99")]
        table.add_row(peer.name, *map(_whole, rates), *map(_tenths, waits))
    console.print(table)


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _tenths(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def targets(figures: Figures) -> list[tuple[str, float | None, float, bool]]:
    """What was to be reached: text, figure, bound, whether the bound is the least (else the most)."""
    ours = partial(figures.median, "ours")

    def ratio(scenario: str, peer: str, theirs: str | None = None) -> float | None:
        mine, other = ours(scenario, "rate"), figures.median(peer, theirs or scenario, "rate")
        return mine / other if mine and other else None

    sleeping = ours("sleep 100", "rate")
    return [
        ("no-op, 100 at once, against arq", ratio("noop 100", "arq"), 3.5, True),
        ("no-op, 100 at once, against SAQ", ratio("noop 100", "saq"), 3.5, True),
        ("no-op, 100 at once, against dramatiq", ratio("noop 100", "dramatiq"), 1.8, True),
        ("no-op, 100 at once, against RQ's SimpleWorker", ratio("noop 100", "rq simple", "noop 1"), 14, True),
        ("10 ms, 100 at once, of the 10,000 possible, %", sleeping and sleeping / 100, 75, True),
        ("10 ms, 1,000 at once, against arq", ratio("sleep 1000", "arq"), 3.5, True),
        ("worker's CPU a no-op job, µs", ours("noop 100", "cpu_us"), 90, False),
        ("enqueue one by one against arq", ratio("enqueue one", "arq"), 1.3, True),
        ("enqueue 64 at once against arq", ratio("enqueue many", "arq"), 2, True),
        ("enqueue in bulk against RQ's enqueue_many", ratio("enqueue bulk", "rq simple"), 1.8, True),
        ("idle latency p50, ms", ours("latency", "p50"), 1.7, False),
        ("idle latency p99, ms", ours("latency", "p99"), 3, False),
        ("Redis commands a second of an idle worker", ours("idle", "commands"), 2, False),
        ("memory of the worker after the drain, MiB", ours("noop 100", "rss"), 60, False),
    ]


def verdict(value: float | None, bound: float, is_least: bool) -> str:  # noqa: FBT001 - a target's own flag
    """In words."""
    if value is None:
        return "not measured"
    return "reached" if (value >= bound if is_least else value <= bound) else "NOT reached"


def plot(figures: Figures, peers: list[Peer], path: Path) -> None:
    """Bars of three figures, side by side in one SVG."""
    panels = []
    for place, (title, kind, figure) in enumerate(PANELS):
        values = [(peer.name, figures.median(peer.name, f"{kind} {peer.most}", figure)) for peer in peers]
        panels.append(f'<g transform="translate({place * 420} 0)">{_panel(title, values)}</g>')
    width, height = 420 * len(PANELS) + 10, 66 + 26 * len(peers)
    note = "One worker process each, medians. dramatiq: 64 threads, no results. RQ: one job at a time."
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}'
        f'<text x="12" y="{height - 10}" font-size="11" fill="#555">{note}</text></svg>\n',
        encoding="utf-8",
    )


def _panel(title: str, values: list[tuple[str, float | None]]) -> str:
    widest = max((value for _, value in values if value), default=1.0)
    rows = [f'<text x="12" y="22" font-size="14">{title}</text>']
    for row, (name, value) in enumerate(values):
        colour = "#2f6f4f" if name == "ours" else "#9aa5b1"
        y, width = 36 + 26 * row, 260 * (value or 0.0) / widest
        rows.append(
            f'<text x="74" y="{y + 14}" text-anchor="end">{name}</text>'
            f'<rect x="82" y="{y}" width="{width:.0f}" height="18" fill="{colour}"/>'
            f'<text x="{88 + width:.0f}" y="{y + 14}">{_whole(value)}</text>'
        )
    return "".join(rows)
