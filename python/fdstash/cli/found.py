"""What a load has found, as files: `--hdr` and `--plot`."""

from __future__ import annotations

from collections.abc import Sequence

from fdstash.bench.jobs import Found

__all__ = ["write_files"]


def write_files(
    found: Found,
    *,
    hdr: str | None,
    plot_file: str | None,
    title: str,
    started: float,
    reopened_ns: Sequence[int],
) -> None:
    """Those that are asked for. `started`: seconds since 1970."""
    if hdr is not None:
        from fdstash.bench.hdr import log_lines  # noqa: PLC0415 - only for that

        times = {"read": "READ_DUE", "write": "WRITE_DUE", "flush": "FLUSH"}
        latency = {name: found.latency[each] for name, each in times.items()}
        told = {name: each for name, each in latency.items() if len(each)}
        lines = log_lines(told, started=started, seconds=found.seconds)
        with open(hdr, "w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in lines)
    if plot_file is not None:
        from fdstash.bench.plot import plot  # noqa: PLC0415 - matplotlib is an extra

        plot(found.intervals, plot_file, title=title, reopened_ns=reopened_ns)
