"""A match of two daemons as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fdstash.bench.against_result import MatchResult, Side
from fdstash.bench.plot import new_figure, saved

__all__ = ["plot_match"]

_COLOURS = ("tab:blue", "tab:orange")


def plot_match(result: MatchResult, path: str, *, title: str) -> None:
    """Draw how long reopens took, when they were made, and the requests a second of each round.

    The kind of picture is that of the suffix of `path`. Raises `OptionError` where matplotlib is
    not there, or does not know the suffix.
    """
    figure = new_figure(figsize=(12, 5))
    over_time, shares, rates = figure.subplots(1, 3)
    for colour, (name, side) in zip(_COLOURS, result.sides.items(), strict=True):
        label = f"{name}: refused" if side.refused is not None else name
        _over_time(over_time, side, label, colour)
        _shares(shares, side.reopen_times, label, color=colour)
        _shares(shares, side.round_trips, f"{name}: empty command", color=colour, linestyle=":")
        _rates(rates, side, name, colour)
    over_time.set(xlabel="seconds into a load", ylabel="reopen, ms", yscale="log")
    shares.set(xlabel="ms", ylabel="share of commands answered", xscale="log")
    rates.set(xlabel="round", ylabel="requests a second")
    rates.set_ylim(bottom=0)
    rates.xaxis.get_major_locator().set_params(integer=True)
    for axes in (over_time, shares, rates):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    figure.suptitle(title)
    saved(figure, path)


def _over_time(axes: Any, side: Side, label: str, colour: str) -> None:
    """Every reopen of all rounds; a refused one has a place in the legend."""
    when = [at / 1e9 for each in side.reopens for at in each.at]
    took = [time / 1e6 for time in side.reopen_times]
    axes.plot(when, took, ".", color=colour, label=label, markersize=3)


def _shares(axes: Any, times: Sequence[int], label: str, **style: Any) -> None:
    """How many were answered within how long."""
    if times:
        ordered = [time / 1e6 for time in sorted(times)]
        parts = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axes.plot(ordered, parts, label=label, **style)


def _rates(axes: Any, side: Side, name: str, colour: str) -> None:
    for reopening, marker in ((False, "o"), (True, "x")):
        rates = [load.iops for load in side.loads(reopening=reopening)]
        if rates:
            label = f"{name}, with reopens" if reopening else name
            rounds = range(1, len(rates) + 1)
            axes.plot(rounds, rates, marker, color=colour, label=label)
