"""A match of two daemons as tables. Needs rich."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from fdstash.bench.against_result import MatchResult, Side, median
from fdstash.bench.latency import exact_percentile
from fdstash.bench.nbd_load import Measured
from fdstash.bench.report import shown_time

__all__ = ["show"]

_NOTHING = "-"
_TITLES = {
    "iops": "requests a second",
    "iops_reopening": "requests a second, with reopens",
    "reopen_p50": "reopen p50",
    "reopen_p99": "reopen p99",
}


def show(result: MatchResult, console: Console | None = None) -> None:
    """Print what was found to standard output."""
    to = console or Console(highlight=False)
    image, options = result.image, result.options
    where = f"made in {os.path.dirname(os.path.dirname(image['path']))}"
    to.print(
        f"{image['format']} of {image['files']} files, {image['size'] / (1 << 20):,.4g} MiB,"
        f" {where if image['made'] else 'given'}, {options['rw']} of {options['block_bytes']} bytes"
        f" by {options['jobs']} NBD clients of depth {options['depth']},"
        f" {options['rounds']} rounds",
        soft_wrap=True,
    )
    to.print(_overview(result))
    to.print()
    to.print(_ratios(result))
    for name, side in result.sides.items():
        if side.refused is not None:
            to.print(f"{name} refused to reopen it: {side.refused}", markup=False, soft_wrap=True)
        for message in side.as_json()["messages"]:
            to.print(f"{name}: {message}", markup=False, soft_wrap=True)


def _overview(result: MatchResult) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name, side in result.sides.items():
        table.add_column(f"{name} {side.version}", justify="right")

    def row(title: str, value: Callable[[Side], str]) -> None:
        table.add_row(title, *map(value, result.sides.values()))

    for reopening in (False, True):
        row("with reopens" if reopening else "without reopens", lambda _: "")
        for title, value in _LOAD_ROWS:
            row(title, _of_loads(value, reopening=reopening))
    row("reopens", lambda side: "refused" if side.refused else f"{len(side.reopen_times):,}")
    row("  failed", lambda side: _NOTHING if side.refused else _zero(side.failed_reopens))
    for title, percent in (("p50", 50), ("p99", 99), ("max", 100)):
        row(f"  command to answer, {title}", _time(lambda side: side.reopen_times, percent))
        row("  of an empty command", _time(lambda side: side.round_trips, percent))
    return table


def _zero(count: int) -> str:
    """What should be 0."""
    return f"[green]{count}[/]" if count == 0 else f"[bold red]{count:,}[/]"


def _time(values: Callable[[Side], list[int]], percent: float) -> Callable[[Side], str]:
    def shown(side: Side) -> str:
        found = values(side)
        return shown_time(exact_percentile(found, percent)) if found else _NOTHING

    return shown


_LOAD_ROWS: tuple[tuple[str, Callable[[list[Measured]], str]], ...] = (
    ("  requests a second", lambda loads: f"{median([load.iops for load in loads]):,.0f}"),
    ("  requests that failed", lambda loads: _zero(sum(load.failed for load in loads))),
    ("  longest request", lambda loads: shown_time(max(load.longest for load in loads))),
)


def _of_loads(value: Callable[[list[Measured]], str], *, reopening: bool) -> Callable[[Side], str]:
    def shown(side: Side) -> str:
        loads = side.loads(reopening=reopening)
        return value(loads) if loads else _NOTHING

    return shown


def _ratios(result: MatchResult) -> Table:
    title = f"fdstash by {result.peer}, of each round: median, least, most"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in ("", "", "", ""):
        table.add_column(heading, justify="right" if table.columns else "left")
    for name, ratios in result.measures():
        if ratios:
            shown = [f"{value:.2f}" for value in (median(ratios), min(ratios), max(ratios))]
            table.add_row(_TITLES[name], *shown)
    return table
