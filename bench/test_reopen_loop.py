"""The comparison is fair: the loop makes the system calls of a reopen, in the same order."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

from bench.places import file_system
from bench.toggles import ROUTES
from bench.trace_toggle import MARK
from tests.support.need import missing, need_program

ROOT = Path(__file__).parents[1]

#: Not: what an interpreter and an allocator do of their own accord.
_TRACED = "!brk,mmap,munmap,madvise,mremap,futex,clock_gettime,sched_yield"

_TAKES_DESCRIPTOR = (
    "close",
    "dup3",
    "fcntl",
    "fstat",
    "newfstatat",
    "pread64",
    "statx",
    "sync_file_range",
)


#: Of the images; 0 is a raw one.
_EXTENTS = (0, 1, 3, 64)


def _trace(folder: Path, route: str, side: str) -> list[list[list[str]]]:
    """The system calls of each image's toggle there, and of the one back.

    One program for all images: most of the time is its start.
    """
    log = folder / "strace"
    command = [need_program("strace", "strace"), "-qq", "-e", f"trace={_TRACED}", "-o", str(log)]
    program = [sys.executable, "-m", "bench.trace_toggle", str(folder), route, side]
    done = subprocess.run(
        [*command, *program, *map(str, _EXTENTS)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "PTRACE" in done.stderr:
        missing(f"strace may not trace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = log.read_text().splitlines()
    groups = groupby(lines, key=lambda line: MARK in line)
    found = [list(group) for is_mark, group in groups if not is_mark]
    between, toggles = found[::2], found[1::2]
    assert len(toggles) == 2 * len(_EXTENTS)
    assert len(between) == len(toggles) + 1
    named = [_named(calls) for calls in toggles]
    return [list(pair) for pair in zip(named[::2], named[1::2], strict=True)]


def _named(calls: Iterable[str]) -> list[str]:
    """As the calls would read if descriptors were named in the order in which they appear."""
    names: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        return match[1] + names.setdefault(match[2], f"<{len(names)}>")

    def named(call: str) -> str:
        function = call.split("(", 1)[0]
        places = [r"(/proc/self/fd/)(\d+)"]
        if function in _TAKES_DESCRIPTOR:
            places.append(r"^(\w+\()(\d+)")
        if function == "dup3":
            places.append(r"^(.*?, )(\d+)")
        if function in ("openat", "openat2", "dup3") or "F_DUPFD" in call:
            places.append(r"(= )(\d+)$")
        for place in places:
            call = re.sub(place, name, call)
        return call

    return [named(_alike(call)) for call in calls]


def _alike(call: str) -> str:
    """Without what may differ: strace's columns, and the place of the loop's locks."""
    call = re.sub(r"l_start=1(\d{3})\b", r"l_start=\1", call)
    return re.sub(r"\s+= ", " = ", call)


@pytest.mark.parametrize("route", ROUTES)
def test_the_loop_makes_the_calls_of_a_reopen(place: Path, route: str) -> None:
    sides = ("ours", "peer")
    for side in sides:
        (place / side).mkdir()
    with ThreadPoolExecutor(len(sides)) as pool:
        ours, peer = pool.map(lambda side: _trace(place / side, route, side), sides)
    for extents, mine, its in zip(_EXTENTS, ours, peer, strict=True):
        for one, other in zip(mine, its, strict=True):
            found = [call.replace("/ours/", "/peer/") for call in one]
            assert found == other, f"{extents} extents"
        print(f"{route}, {extents} extents, {file_system(place)}: {[len(c) for c in mine]}")
