"""Attacks on the paths while reopens go on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FormatError, Image, ReopenError
from tests.support.disks import FlatDisk, make_flat, noise
from tests.support.seen import assert_as_kernel_says
from tests.support.tier import FULL, count, evidence
from tests.support.uncured import running
from tests.support.verify import VerifiedLoad

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


class Shuttle:
    """Moves one thing out of the way and another into its place, and back, without pause."""

    def __init__(self, path: Path, decoy: Path) -> None:
        self.path = path
        self.decoy = decoy
        self.aside = path.with_name(path.name + ".aside")
        self.rounds = 0

    def move(self) -> None:
        self.path.rename(self.aside)
        self.decoy.rename(self.path)
        self.path.rename(self.decoy)
        self.aside.rename(self.path)
        self.rounds += 1

    def restore(self) -> None:
        if self.aside.exists():
            if self.path.exists() or self.path.is_symlink():
                self.path.rename(self.decoy)
            self.aside.rename(self.path)


def _decoys(disk: FlatDisk, victim: int) -> Iterator[Path]:
    """Everything that an attacker might put in the place of a file."""
    path = disk.files[victim]
    decoy = path.with_name("decoy")
    decoy.write_bytes(noise(path.stat().st_size, 55))
    yield decoy
    decoy.unlink()
    decoy.mkdir()
    yield decoy
    decoy.rmdir()
    os.mkfifo(decoy)
    yield decoy
    decoy.unlink()
    decoy.symlink_to("/dev/null")
    yield decoy
    decoy.unlink()
    decoy.write_bytes(b"")
    yield decoy
    decoy.unlink()


def reopen_under_attack(image: Image, options: dict[str, Any]) -> str:
    """What came of it; anything but success or a clear refusal fails."""
    try:
        image.reopen(**options, timeout=10)
    except ReopenError as error:
        assert error.rolled_back
        assert error.phase in ("acquire", "prove")
        return errno.errorcode[error.errno or 0]
    return "reopened"


def kinds(disk: FlatDisk) -> Iterator[dict[str, Any]]:
    own = str(disk.path)
    return itertools.cycle(
        [
            {"path": own},
            {"cache": "none"},
            {"path": own, "cache": "none"},
            {"mode": "r"},
            {"path": own, "mode": "r"},
            {"mode": "r+"},
            {"path": own, "mode": "r+", "cache": "writeback"},
            {"cache": "writeback", "mode": "r+"},
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_files_that_are_moved_all_the_time_never_give_other_bytes(
    disk: FlatDisk, victim: int
) -> None:
    """Seen with a core that takes every inode for the same: 194 wrong blocks of 4028 requests."""
    outcomes: dict[str, int] = {}
    refused: list[str] = []
    moves = 0
    options = kinds(disk)
    with fdstash.open(disk.path, "r+") as image:
        load = VerifiedLoad(image, 1000, threads=2).fill()
        inodes = [file.inode for file in image.files]
        for decoy in _decoys(disk, victim):
            shuttle = Shuttle(disk.files[victim], decoy)
            image.reopen(mode="r+")
            load.resume_writing()
            with load, running(shuttle.move):
                for _ in range(count(4000)):
                    wanted = next(options)
                    if wanted.get("mode") == "r":
                        load.stop_writing()
                    outcome = reopen_under_attack(image, wanted)
                    outcomes[outcome] = outcomes.get(outcome, 0) + 1
                    if outcome != "reopened" and "path" not in wanted:
                        refused.append(f"{wanted}: {outcome}")
                    if image.mode == "r+":
                        load.resume_writing()
            load.report.assert_clean(at_least=100)
            moves += shuttle.rounds
            shuttle.restore()
            assert [file.inode for file in image.files] == inodes
        assert refused == [], "a route that does not look at the path was refused"
        assert_as_kernel_says(image)
        load.verify().assert_clean()
    assert outcomes["reopened"] > count(4000)
    assert sum(outcomes.values()) - outcomes["reopened"] > count(400), outcomes
    assert moves > count(4000)
    evidence(f"paths-under-attack-{victim}", {"outcomes": outcomes, "moves": moves})


@pytest.mark.slow
def test_a_change_of_path_under_attack_takes_one_image_or_the_other_whole(tmp_path: Path) -> None:
    """Two images with the same layout change places: never a mixture of their extents."""
    homes = [tmp_path / "a", tmp_path / "b"]
    disks = []
    for number, home in enumerate(homes):
        home.mkdir()
        disks.append(make_flat(home, seed=100 * number))
    link = tmp_path / "current"
    link.symlink_to("a")
    whole = [disk.guest_bytes() for disk in disks]

    def swing() -> None:
        for name in ("b", "a"):
            fresh = tmp_path / "fresh"
            fresh.symlink_to(name)
            fresh.rename(link)

    seen: dict[int | str, int] = {}
    with fdstash.open(disks[0].path, "r", lock=False) as image, running(swing):
        for _ in range(count(10_000)):
            try:
                image.reopen(path=link / "disk.vmdk")
            except ReopenError as error:
                seen[errno.errorcode[error.errno or 0]] = 1
                continue
            found = image.pread(image.size, 0)
            which = next((number for number in (0, 1) if found == whole[number]), -1)
            assert which >= 0, "extents of two images"
            seen[which] = seen.get(which, 0) + 1
            image.reopen(path=disks[0].path)
    assert seen.get(0, 0) > 0
    assert seen.get(1, 0) > 0


@pytest.mark.slow
def test_extents_that_are_unlinked_and_made_anew_during_reopens(disk: FlatDisk) -> None:
    """The first unlink ends every reopen by path; nothing ever ends the others."""
    with fdstash.open(disk.path, "r+") as image:
        load = VerifiedLoad(image, 1000, threads=2).fill()

        def replace() -> None:
            for file in disk.files:
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
                time.sleep(0)
                file.write_bytes(noise(70_000, 66))

        with load, running(replace):
            for number in range(count(4000)):
                image.reopen(cache=["none", "writeback"][number % 2])
                if number > 10:
                    outcome = reopen_under_attack(image, {"path": str(disk.path)})
                    assert outcome in ("ENOENT", "ESTALE")
        load.report.assert_clean(at_least=100)
        load.verify().assert_clean()


@pytest.mark.slow
def test_a_descriptor_that_is_rewritten_during_reopens_is_refused_or_the_same(
    disk: FlatDisk,
) -> None:
    """The way back to r+ reads the header again: another layout, or half of one, is refused."""
    text = disk.path.read_bytes()
    other = text.replace(b"RW 37", b"RW 36").ljust(len(text), b"\n")
    assert len(other) == len(text)
    refused = 0
    with fdstash.open(disk.path, "r") as image:
        expected = image.pread(image.size, 0)
        with open(disk.path, "r+b", buffering=0) as file:

            def rewrite() -> None:
                for bytes_ in (other, text):
                    os.pwrite(file.fileno(), bytes_, 0)

            with running(rewrite):
                for _ in range(count(4000)):
                    try:
                        image.reopen(mode="r+")
                        image.reopen(mode="r")
                    except ReopenError as error:
                        refused += 1
                        assert isinstance(error.__cause__, FormatError)
                        assert error.rolled_back
                        assert image.mode == "r"
                    assert image.pread(image.size, 0) == expected
        image.reopen(mode="r+")
    assert refused > (100 if FULL else 0)
