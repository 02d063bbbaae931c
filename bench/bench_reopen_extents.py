"""How does a reopen grow with the number of extents?

A flat VMDK of 1 to 512 extents, each route, beside the C loop over the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.pairs import measure
from bench.places import file_system
from bench.results import Comparison, Question, Target, linear_fit, question, table
from bench.toggles import ROUTES, make_flat_vmdk, toggles

ASKED = question(
    __file__,
    "How does a reopen grow with the number of extents?",
    "a C loop of the same system calls and checks over the same files",
)

EXTENTS = (1, 8, 64, 512)
SIDES = ("ours", "peer")
#: What one file may cost weighs on few extents.
OVER_THE_LOOP = Target("ratio", 1.5, fixed=15)


@pytest.mark.parametrize("extents", EXTENTS)
@pytest.mark.parametrize("route", ROUTES)
def test_reopen_of_many_extents(
    benchmark: BenchmarkFixture, place: Path, route: str, extents: int
) -> None:
    with toggles(make_flat_vmdk(place, extents), route) as pair:
        where = file_system(place)
        measure(
            benchmark,
            pair,
            ASKED,
            f"{route}, {where}, {extents:3}",
            full=max(800, 8000 // extents),
            target=OVER_THE_LOOP,
            route=route,
            file_system=where,
            extents=extents,
        )


def _growth(rows: list[Comparison]) -> dict[str, Any]:
    """The line through the medians of one route, for both sides."""
    found: dict[str, Any] = {}
    slopes = []
    for side in SIDES:
        points = [(float(str(row.notes["extents"])), getattr(row, side).median) for row in rows]
        offset, slope = linear_fit(points)
        slopes.append(slope)
        beyond = [abs((offset + slope * x) / y - 1) for x, y in points]
        (x1, y1), (x2, y2), (x3, y3) = points[1:]
        near, far = (y2 - y1) / (x2 - x1), (y3 - y2) / (x3 - x2)
        found[side] = {
            "offset_us": offset,
            "us_per_further_extent": slope,
            "farthest_from_the_line": max(beyond),
            "us_per_extent": {"8": y1 / x1, "64": y2 / x2, "512": y3 / x3},
            "us_per_further_extent_8_to_64": near,
            "us_per_further_extent_64_to_512": far,
            "bend": far / near,
        }
    found["further_extent_over_the_loop"] = slopes[0] / slopes[1]
    found["bend_over_the_loop"] = found["ours"]["bend"] / found["peer"]["bend"]
    return found


_HEADINGS = [
    "",
    "us/extent at 8",
    "at 64",
    "at 512",
    "line, us",
    "off by at most",
    "a further extent, us: 8 to 64",
    "64 to 512",
    "bend",
    "bend / loop's",
    "further extent / loop's",
]


def _cells(name: str, found: dict[str, Any], side: str) -> list[str]:
    of = found[side]
    over = [found["bend_over_the_loop"], found["further_extent_over_the_loop"]]
    return [
        f"{name}, {'ours' if side == 'ours' else 'loop'}",
        *(f"{each:.2f}" for each in of["us_per_extent"].values()),
        f"{of['offset_us']:.1f} + {of['us_per_further_extent']:.2f} N",
        f"{of['farthest_from_the_line']:.0%}",
        f"{of['us_per_further_extent_8_to_64']:.2f}",
        f"{of['us_per_further_extent_64_to_512']:.2f}",
        f"{of['bend']:.2f}",
        *(f"{ratio:.2f}" if side == "ours" else "" for ratio in over),
    ]


def _conclude(asked: Question) -> list[str]:
    by_line: dict[str, list[Comparison]] = {}
    for row in asked.rows:
        by_line.setdefault(f"{row.notes['route']}, {row.notes['file_system']}", []).append(row)
    growth = {name: _growth(rows) for name, rows in by_line.items() if len(rows) == len(EXTENTS)}
    asked.notes["growth"] = growth
    cells = [_cells(name, found, side) for name, found in growth.items() for side in SIDES]
    return [
        "",
        "Growth: it is linear as the loop's where the bends are equal (their quotient is 1).",
        *table(_HEADINGS, cells),
    ]


ASKED.conclude = _conclude
