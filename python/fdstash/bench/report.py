"""A result as tables on a terminal, or as plain text where there is none. Needs rich."""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from fdstash.bench.latency import exact_percentile
from fdstash.bench.result import Figures, Refusals, Result

__all__ = ["show", "shown_time"]


def show(result: Result, console: Console | None = None) -> None:
    """Print what was found to standard output."""
    to = console or Console(highlight=False)
    ways = [result.figures] + ([result.naive] if result.naive is not None else [])
    image = result.image
    where = f"made in {os.path.dirname(os.path.dirname(image['path']))}"
    what = "read and written" if image["writes"] else "read"
    to.print(
        f"{image['format']} of {image['files']} files, {image['size'] / (1 << 20):,.4g} MiB,"
        f" {where if image['made'] else 'given'}, {what} by {result.options['jobs']} jobs of depth"
        f" {result.options['depth']}, engine {result.options['engine']}"
    )
    if "none" not in image["caches"]:
        to.print("[yellow]Without O_DIRECT, which its file system does not bear.[/]")
    to.print(_overview(ways))
    to.print()
    to.print(_by_kind(ways))
    to.print()
    to.print(_on_purpose(ways))
    if not result.clean:
        to.print("[bold red]Something went wrong:[/]")
        for message in result.figures.messages:
            to.print(f"  {message}", markup=False)


def _table(title: str, ways: list[Figures]) -> Table:
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("")
    for heading in ("reopen", "close, then open")[: len(ways)]:
        table.add_column(heading, justify="right")
    return table


def shown_time(nanoseconds: int) -> str:
    """With three digits, and the unit that suits it."""
    for unit, length in (("us", 1000), ("ms", 1_000_000)):
        if nanoseconds < 1000 * length:
            value = nanoseconds / length
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{nanoseconds / 1e9:.2f} s"


def _zero(count: int) -> str:
    """What should be 0."""
    return f"[green]{count}[/]" if count == 0 else f"[bold red]{count:,}[/]"


def _overview(ways: list[Figures]) -> Table:
    table = _table("", ways)

    def row(title: str, value: Callable[[Figures], str]) -> None:
        table.add_row(title, *map(value, ways))

    def reopen_time(percent: float) -> Callable[[Figures], str]:
        return lambda way: shown_time(exact_percentile(way.all_reopen_times, percent))

    def marked(*, placebo: bool) -> Callable[[Figures], str]:
        return lambda way: shown_time(way.marked(placebo=placebo).percentile(99.9))

    row("reopens", lambda way: f"{way.reopens:,}")
    row("  that should have succeeded and failed", lambda way: _zero(way.failed_reopens))
    row("  latency p50", reopen_time(50))
    row("  latency p99", reopen_time(99))
    row("  latency max", reopen_time(100))
    row("failures made on purpose", lambda way: f"{way.made_on_purpose:,}")
    row("images lost", lambda way: _zero(way.lost_images))
    row("descriptors leaked", lambda way: _zero(way.leaked_descriptors))
    row("requests", lambda way: f"{way.requests:,}")
    row("  failed", lambda way: _zero(way.failed_requests))
    row("  wrong blocks", lambda way: _zero(way.wrong_blocks))
    row("  longest", lambda way: shown_time(way.latency.largest))
    row(
        "  in flight at a reopen, p99.9",
        lambda way: shown_time(way.marked(placebo=False).percentile(99.9)),
    )
    row(
        "  in flight at other moments, p99.9",
        lambda way: shown_time(way.marked(placebo=True).percentile(99.9)),
    )
    return table


def _by_kind(ways: list[Figures]) -> Table:
    table = _table("Latency in ms by kind: p50 / p99 / max", ways)
    for kind in sorted(ways[0].reopen_times):
        cells = []
        for way in ways:
            times = way.reopen_times.get(kind, [])
            values = [exact_percentile(times, percent) / 1e6 for percent in (50, 99, 100)]
            cells.append(" / ".join(f"{value:.2f}" for value in values))
        table.add_row(kind, *cells)
    return table


def _on_purpose(ways: list[Figures]) -> Table:
    table = _table("Failures made on purpose, and how often", ways)
    for label, found in sorted(ways[0].refusals.items()):
        table.add_row(
            f"{label}: {found.made}", *(_outcome(way.refusals.get(label)) for way in ways)
        )
    return table


def _outcome(found: Refusals | None) -> str:
    """What became of the image."""
    if found is None:
        return "[dim]not applicable[/]"
    codes = "".join(f" {code}" for code in sorted(found.errnos))
    if found.lost:
        count = "" if found.lost == found.made else f" {found.lost} times"
        return f"[bold red]lost{count}{codes}[/]"
    if found.refused == found.made:
        return f"[green]refused{codes}[/]"
    return f"{found.made - found.refused} went through"
