"""Histograms of the load generator: exact where they say so, and HdrHistogram's to its library."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st

from fdstash._ffi import lib
from fdstash.bench.hdr import encode, log_lines
from fdstash.bench.latency import HIGHEST, Latency

VALUES = st.one_of(st.integers(0, 5000), st.integers(0, HIGHEST))


def latency_of(values: list[int]) -> Latency:
    counters = [0] * lib.FDSTASH_LOAD_COUNTERS
    for value in values:
        counters[lib.fdstash_load_counter(value)] += 1
    return Latency(counters, max(values, default=0), sum(values))


@given(VALUES)
def test_a_counter_holds_its_value_to_three_digits(value: int) -> None:
    counter = lib.fdstash_load_counter(value)
    assert 0 <= counter < lib.FDSTASH_LOAD_COUNTERS
    lowest = lib.fdstash_load_lowest(counter)
    assert lowest <= value
    assert value - lowest <= value / 1000
    assert counter == 0 or lib.fdstash_load_counter(lowest - 1) == counter - 1


def test_what_is_too_large_is_counted_last() -> None:
    for value in (HIGHEST, HIGHEST + 1, (1 << 64) - 1):
        assert lib.fdstash_load_counter(value) == lib.FDSTASH_LOAD_COUNTERS - 1


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=200), st.floats(0.1, 100))
def test_percentiles_are_those_of_the_values(values: list[int], percent: float) -> None:
    latency = latency_of(values)
    rank = max(1, -int(-len(values) * percent // 100))
    true = sorted(values)[min(rank, len(values)) - 1]
    found = latency.percentile(percent)
    assert true <= found <= true + true / 1000 + 1
    assert latency.percentile(100) == latency.largest == max(values)
    assert len(latency) == len(values)
    assert latency.mean == pytest.approx(sum(values) / len(values))


def test_nothing_was_counted() -> None:
    empty = latency_of([])
    assert (len(empty), empty.mean, empty.deviation, empty.smallest) == (0, 0, 0, 0)
    assert empty.percentile(99) == 0


def test_sums() -> None:
    first, second = [1, 2, 3000], [3000, 1 << 30]
    both = Latency.sum_of([latency_of(first), latency_of(second)])
    assert list(both.counters) == list(latency_of(first + second).counters)
    assert (both.largest, both.total) == (1 << 30, sum(first + second))


@settings(deadline=None, max_examples=20)  # thousands of counters each
@given(st.lists(VALUES, max_size=100))
def test_hdrhistogram_decodes_what_was_counted(values: list[int]) -> None:
    decoded = HdrHistogram.decode(encode(latency_of(values)))
    wanted = HdrHistogram(1, HIGHEST, 3)
    for value in values:
        wanted.record_value(value)
    assert decoded.get_total_count() == len(values)
    for percent in (1, 50, 90, 99, 100):
        assert decoded.get_value_at_percentile(percent) == wanted.get_value_at_percentile(percent)


def test_counts_of_any_size_are_decoded() -> None:
    for count in (1, 63, 64, 8191, 8192, 1 << 30, 1 << 48):
        counters = [0] * lib.FDSTASH_LOAD_COUNTERS
        counters[5], counters[-1] = count, 1
        decoded = HdrHistogram.decode(encode(Latency(counters, HIGHEST, 0)))
        assert decoded.get_count_at_value(5) == count
        assert decoded.get_count_at_value(HIGHEST) == 1


def test_a_log_is_read_by_hdrhistogram(tmp_path: Path) -> None:
    rng = random.Random(1)
    found = {
        "read": latency_of([rng.randrange(10**6) for _ in range(1000)]),
        "write": latency_of([rng.randrange(10**7) for _ in range(500)]),
    }
    path = tmp_path / "latency.hlog"
    path.write_text("".join(f"{line}\n" for line in log_lines(found, started=1.7e9, seconds=2)))
    reader = HistogramLogReader(str(path), HdrHistogram(1, HIGHEST, 3))
    for name, latency in found.items():
        read = reader.get_next_interval_histogram()
        assert read.get_tag() == name
        assert read.get_total_count() == len(latency)
        assert read.get_value_at_percentile(99) == pytest.approx(latency.percentile(99), rel=1e-3)
    assert reader.get_next_interval_histogram() is None
    reader.close()
