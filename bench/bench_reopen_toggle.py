"""What does a reopen cost over its system calls?

One raw file, each route, beside a C loop that makes the same system calls with the same checks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.pairs import measure
from bench.places import file_system
from bench.results import Target, question
from bench.toggles import ROUTES, make_raw, toggles

ASKED = question(
    __file__,
    "What does a reopen of one file cost over its system calls?",
    "a C loop of the same system calls and checks",
)

#: For what switches the cache mode.
CACHE_TOGGLE = Target("difference", 15)


@pytest.mark.parametrize("route", ROUTES)
def test_reopen_of_one_file(benchmark: BenchmarkFixture, place: Path, route: str) -> None:
    with toggles(make_raw(place), route) as pair:
        where = file_system(place)
        measure(
            benchmark,
            pair,
            ASKED,
            f"{route}, {where}",
            full=8000,
            target=None if route == "mode" else CACHE_TOGGLE,
            route=route,
            file_system=where,
        )
