"""What `bench io` found, as a table on a terminal, or as plain text. Needs rich."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fdstash.bench.io import IoResult
from fdstash.bench.latency import exact_percentile
from fdstash.bench.report import shown_time

__all__ = ["show"]

_PERCENTILES = (50, 99, 99.9, 99.99)


def show(result: IoResult, console: Console | None = None) -> None:
    """Print what was found to standard output."""
    to = console or Console(highlight=False)
    settings = result.settings
    to.print(
        f"{result.image['format']}, {settings.rw}, blocks of {settings.block_bytes} bytes,"
        f" depth {settings.depth}, {settings.jobs} job{'s' * (settings.jobs > 1)},"
        f" cache {settings.cache}, engine {settings.engine}"
        + (f" ({result.engine})" if settings.engine == "auto" else "")
    )
    to.print(_directions(result))
    if settings.reopens:
        to.print(_reopens(result))
    if settings.verify:
        to.print(f"verified; wrong blocks: {result.found.wrong}")
    for message in result.messages:
        to.print(f"[bold red]{message}[/]")


def _directions(result: IoResult) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "IOPS", "MiB/s", "mean", *(f"p{p:g}" for p in _PERCENTILES), "max"):
        table.add_column(heading, justify="right" if heading else "left")
    seconds = result.seconds or 1
    rows = zip(
        ("read", "write", "flush"),
        ("READ_DUE", "WRITE_DUE", "FLUSH"),
        (*result.requests, result.found.flushes),
        (*result.found.bytes, 0),
        strict=True,
    )
    for name, times, requests, moved in rows:
        latency = result.found.latency[times]
        if not requests:
            continue
        table.add_row(
            name,
            f"{requests / seconds:,.0f}",
            f"{moved / seconds / (1 << 20):,.1f}",
            shown_time(round(latency.mean)),
            *(shown_time(latency.percentile(p)) for p in _PERCENTILES),
            shown_time(latency.largest),
        )
    return table


def _reopens(result: IoResult) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "count", "p50", "p99", "p99.9", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    times = result.reopen_ns
    table.add_row(
        "reopens",
        str(len(times)),
        *(shown_time(exact_percentile(times, p)) for p in (50, 99, 99.9, 100)),
    )
    for title, name in (("in flight at a reopen", "MARKED"), ("at other moments", "PLACEBO")):
        latency = result.found.latency[name]
        values = [shown_time(latency.percentile(p)) for p in (50, 99, 99.9)]
        table.add_row(title, str(len(latency)), *values, shown_time(latency.largest))
    return table
