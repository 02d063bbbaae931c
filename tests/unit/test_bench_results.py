"""The statistics that benchmarks report."""

from __future__ import annotations

import random

import pytest

from bench.results import Comparison, Interval, Target, fold, linear_fit, median_interval


@pytest.mark.parametrize(
    ("n", "low", "high"),
    # Ranks of the usual tables for the distribution-free interval of a median.
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (100, 40, 61)],
)
def test_the_interval_of_a_median_is_that_of_the_tables(n: int, low: int, high: int) -> None:
    values = [float(rank) for rank in range(1, n + 1)]
    random.Random(n).shuffle(values)
    assert median_interval(values) == Interval((n + 1) / 2, low, high)


def test_the_interval_holds_the_true_median_nineteen_times_of_twenty() -> None:
    rng = random.Random(5)
    held = 0
    for _ in range(2000):
        found = median_interval(rng.lognormvariate(0, 1) for _ in range(41))
        held += found.low <= 1 <= found.high
    assert held / 2000 >= 0.94


def test_a_toggle_there_is_taken_together_with_the_toggle_back() -> None:
    assert fold([1, 3, 10, 30]) == [2, 20]


def test_a_line_is_found() -> None:
    offset, slope = linear_fit([(1, 12), (8, 26), (64, 138), (512, 1034)])
    assert offset == pytest.approx(10)
    assert slope == pytest.approx(2)


def test_ratio_and_difference_are_of_pairs_and_not_of_medians() -> None:
    row = Comparison.of("", [2000, 20000, 200], [1000, 10000, 100])
    assert row.ratio == Interval(2, 2, 2)
    assert row.difference.median == 1


@pytest.mark.parametrize(
    ("ratio", "difference", "verdict"),
    [
        (Interval(1.2, 1.1, 1.5), Interval(40, 30, 50), "met"),
        (Interval(1.6, 1.4, 1.7), Interval(40, 30, 50), "within noise"),
        (Interval(1.7, 1.6, 1.8), Interval(40, 30, 50), "missed"),
        (Interval(6, 5, 7), Interval(10, 9, 11), "missed, by the fixed 15 us"),
    ],
)
def test_a_target_is_missed_only_by_the_whole_interval(
    ratio: Interval, difference: Interval, verdict: str
) -> None:
    ours = Interval(100, 90, 110)
    assert Target("ratio", 1.5, fixed=15).verdict(ratio, difference, ours) == verdict


@pytest.mark.parametrize(
    ("limit", "verdict"), [(120, "met"), (100, "within noise"), (80, "missed")]
)
def test_a_target_can_be_of_ours_alone(limit: float, verdict: str) -> None:
    ours, other = Interval(100, 90, 110), Interval(7, 7, 7)
    assert Target("ours", limit).verdict(other, other, ours) == verdict
