"""Latency over time as a picture. Needs matplotlib."""

from __future__ import annotations

from fdstash.bench.io import IoResult
from fdstash.errors import OptionError

__all__ = ["plot"]


def plot(result: IoResult, path: str) -> None:
    """Draw mean and longest latency over time, with the reopens marked.

    The kind of picture is that of the suffix of `path`. Raises `OptionError` where matplotlib is
    not there, or does not know the suffix.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise OptionError(
            "plots need matplotlib: pip install 'fdstash[plot]'", option="plot"
        ) from error
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    start = min((each.start_ns for each in result.intervals), default=0)
    seconds = [(each.start_ns - start) / 1e9 for each in result.intervals]
    axes.plot(seconds, [each.max_ns / 1e3 for each in result.intervals], label="longest")
    axes.plot(seconds, [each.mean_ns / 1e3 for each in result.intervals], label="mean")
    if result.reopened_ns:
        for number, when in enumerate(result.reopened_ns):
            axes.axvline(
                (when - start) / 1e9,
                color="gray",
                alpha=0.3,
                linewidth=0.7,
                label="" if number else "reopen",
            )
    settings = result.settings
    axes.set_title(
        f"{result.image['format']}, {settings.rw}, {settings.block_bytes} bytes,"
        f" depth {settings.depth}, {settings.engine}"
    )
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency, us")
    axes.set_yscale("log")
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise OptionError(str(error), option="plot") from error
