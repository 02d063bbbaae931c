"""Latency over time as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fdstash.bench.generator import Interval
from fdstash.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plot", "saved"]


def new_figure(*, figsize: tuple[float, float]) -> Figure:
    """An empty figure; inches. Raises `OptionError` where matplotlib is not there."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise OptionError(
            "plots need matplotlib: pip install 'fdstash[plot]'", option="plot"
        ) from error
    return Figure(figsize=figsize, layout="constrained")


def saved(figure: Figure, path: str) -> None:
    """Write it. Raises `OptionError` where matplotlib does not know the suffix of `path`."""
    try:
        figure.savefig(path)
    except ValueError as error:
        raise OptionError(str(error), option="plot") from error


def plot(
    intervals: Sequence[Interval], path: str, *, title: str, reopened_ns: Sequence[int]
) -> None:
    """Draw mean and longest latency over time, with the reopens marked.

    The kind of picture is that of the suffix of `path`. Raises `OptionError` where matplotlib is
    not there, or does not know the suffix.
    """
    figure = new_figure(figsize=(10, 5))
    axes = figure.add_subplot()
    start = min((each.start_ns for each in intervals), default=0)
    seconds = [(each.start_ns - start) / 1e9 for each in intervals]
    axes.plot(seconds, [each.max_ns / 1e3 for each in intervals], label="longest")
    axes.plot(seconds, [each.mean_ns / 1e3 for each in intervals], label="mean")
    if reopened_ns:
        for number, when in enumerate(reopened_ns):
            axes.axvline(
                (when - start) / 1e9,
                color="gray",
                alpha=0.3,
                linewidth=0.7,
                label="" if number else "reopen",
            )
    axes.set_title(title)
    axes.set_xlabel("seconds")
    axes.set_ylabel("latency, us")
    axes.set_yscale("log")
    axes.legend()
    saved(figure, path)
