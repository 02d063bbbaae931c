"""How does a reopen compare with blockdev-reopen of qemu-storage-daemon?

The same toggles of a raw file of the same size, in turn: here a call, there a command over a Unix
socket, whose round trip is measured apart (`query-version`, before each command) and taken off.
A VMDK with extents has no row to stand beside: what the daemon says to it is recorded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.pairs import alternate
from bench.peers.storage_daemon import QmpError, StorageDaemon
from bench.places import file_system
from bench.results import Comparison, fold, median_interval, question
from bench.toggles import make_flat_vmdk, make_raw
from tests.support.qemu_tools import create_with_qemu

ASKED = question(
    __file__,
    "How does a reopen compare with blockdev-reopen of qemu-storage-daemon?",
    "the command over its socket, less the round trip of query-version",
)

#: Printed below the table.
REMARKS: list[str] = []


class _Node:
    """A raw image in the daemon: a format node on a protocol node, both as new as can be."""

    def __init__(self, daemon: StorageDaemon, path: Path) -> None:
        self.daemon = daemon
        self.path = path
        daemon.execute("blockdev-add", **self._file())
        daemon.execute("blockdev-add", **self._raw())
        self.round_trip = daemon.command("query-version")

    def _file(self, *, direct: bool = False, read_only: bool = False) -> dict[str, Any]:
        return {
            "driver": "file",
            "node-name": "file",
            "filename": str(self.path),
            "read-only": read_only,
            "cache": {"direct": direct},
        }

    def _raw(self, *, read_only: bool = False) -> dict[str, Any]:
        return {"driver": "raw", "node-name": "raw", "file": "file", "read-only": read_only}

    def toggle(self, toggle: str, *, there: bool) -> bytes:
        """The least that makes the change: the protocol node alone has the cache mode."""
        if toggle == "cache":
            options = [self._file(direct=there)]
        else:
            options = [self._raw(read_only=there), self._file(read_only=there)]
        return self.daemon.command("blockdev-reopen", options=options)


def _check_flags(node: _Node, image: fdstash.Image, toggle: str, *, there: bool) -> None:
    """Both have done what was asked."""
    theirs = node.daemon.flags(node.path)
    if toggle == "cache":
        assert there == any(flags & os.O_DIRECT for flags in theirs)
        assert image.files[0].direct == there
    else:
        assert there != any(flags & os.O_ACCMODE == os.O_RDWR for flags in theirs)
        assert image.mode == ("r" if there else "r+")


@pytest.mark.parametrize("toggle", ["cache", "mode"])
def test_reopen_of_a_raw_image(benchmark: BenchmarkFixture, place: Path, toggle: str) -> None:
    options: tuple[dict[str, Any], dict[str, Any]] = (
        ({"cache": "none"}, {"cache": "writeback"})
        if toggle == "cache"
        else ({"mode": "r"}, {"mode": "r+"})
    )
    theirs = place / "theirs"
    theirs.mkdir()
    with (
        StorageDaemon() as daemon,
        fdstash.open(make_raw(place), "r+", format="raw") as image,
    ):
        node = _Node(daemon, make_raw(theirs))
        commands = [node.toggle(toggle, there=there) for there in (True, False)]
        for turn in range(4):
            daemon.timed(commands[turn & 1])
            image.reopen(**options[turn & 1])
            _check_flags(node, image, toggle, there=turn & 1 == 0)
        round_trips: list[float] = []
        commanded: list[float] = []
        turn = 0

        def set_up() -> tuple[tuple[()], dict[str, Any]]:
            nonlocal turn
            round_trips.append(daemon.timed(node.round_trip))
            commanded.append(daemon.timed(commands[turn & 1]))
            turn += 1
            return (), options[1 - (turn & 1)]

        benchmark.group = ASKED.name
        ours = alternate(benchmark, image.reopen, set_up, full=4000)
        if ours is None:
            return
        _check_flags(node, image, toggle, there=False)
        commanded, round_trips = commanded[-len(ours) :], round_trips[-len(ours) :]
        less = [c - r for c, r in zip(fold(commanded), fold(round_trips), strict=True)]
        command = median_interval(c / 1000 for c in fold(commanded))
        round_trip = median_interval(r / 1000 for r in fold(round_trips))
        where = file_system(place)
        row = Comparison.of(
            f"{toggle}, {where}",
            fold(ours),
            less,
            toggle=toggle,
            file_system=where,
            command_us=command,
            round_trip_us=round_trip,
            qemu=daemon.version,
        )
    ASKED.add(row)
    benchmark.extra_info.update(row.record())
    REMARKS.append(
        f"{row.name}: command and answer {command.shown(0)} us, of which the round trip is"
        f" {round_trip.shown(0)} us"
    )


def _add_vmdk(daemon: StorageDaemon, name: str, path: Path) -> list[dict[str, Any]]:
    """Open it in the daemon; the options of a reopen with another cache mode."""
    file: dict[str, Any] = {"driver": "file", "node-name": f"{name}-file", "filename": str(path)}
    image = {"driver": "vmdk", "node-name": name, "file": f"{name}-file"}
    daemon.execute("blockdev-add", **file)
    daemon.execute("blockdev-add", **image)
    return [image, file | {"cache": {"direct": True}}]


def test_reopen_of_a_vmdk_with_extents_is_refused_there(tmpfs: Path) -> None:
    folder = tmpfs / "vmdk"
    folder.mkdir()
    path = make_flat_vmdk(folder, 2)
    alone = folder / "alone.vmdk"
    create_with_qemu(alone, "vmdk", 1 << 20)
    with StorageDaemon() as daemon:
        # The same command on a VMDK of one file is carried out.
        daemon.execute("blockdev-reopen", options=_add_vmdk(daemon, "one", alone))
        image, descriptor = _add_vmdk(daemon, "many", path)
        with pytest.raises(QmpError) as refused:
            daemon.execute("blockdev-reopen", options=[image, descriptor])
        daemon.execute("blockdev-reopen", options=[descriptor])
        assert any(flags & os.O_DIRECT for flags in daemon.flags(path))
        for extent in folder.glob("disk-f*.vmdk"):
            assert not any(flags & os.O_DIRECT for flags in daemon.flags(extent))
    ASKED.notes["vmdk_with_extents"] = {
        "reopen_of_the_image": str(refused.value),
        "reopen_of_its_descriptor": "carried out; every extent keeps the old cache mode",
    }
    REMARKS.append(f'a VMDK with extents there: refused with "{refused.value}"')
    REMARKS.append("its descriptor alone: carried out, and every extent keeps the old cache mode")
    with fdstash.open(path, "r+") as ours:
        ours.reopen(cache="none")
        assert all(file.direct for file in ours.files)


ASKED.conclude = lambda _: REMARKS
