"""Whatever becomes of the paths, the image serves the bytes of its own files.

A reopen by path succeeds on the same inode or is refused; every other route does not look at the
path at all. A change of path takes what stands there at one moment, or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, FormatError, Image, ReopenError
from tests.support.disks import FlatDisk, make_flat, noise
from tests.support.kernel import same_description
from tests.support.need import need_root
from tests.support.sandbox import run_as
from tests.support.seen import WRITER_BYTES, assert_as_kernel_says, locked_bytes
from tests.support.tier import FULL, count, evidence
from tests.support.uncured import running
from tests.support.verify import VerifiedLoad

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks")]


@pytest.fixture
def disk(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


# --------------------------------------------------------- between open and reopen


def _rename(path: Path) -> None:
    path.rename(path.with_name("moved"))


def _unlink(path: Path) -> None:
    path.unlink()


def _another_file(path: Path) -> None:
    """Of the same size, with other bytes."""
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(noise(size, 77))


def _a_copy(path: Path) -> None:
    """Moved over it, as editors do."""
    fresh = path.with_name("fresh")
    shutil.copyfile(path, fresh)
    fresh.rename(path)


def _link_to_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(noise(path.stat().st_size, 77))
    path.unlink()
    path.symlink_to(other.name)


def _link_to_nowhere(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("nowhere")


def _link_to_itself(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to(path.name)


def _link_to_a_device(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.mkdir()


def _fifo(path: Path) -> None:
    path.rename(path.with_name("moved"))
    os.mkfifo(path)


def _socket(path: Path) -> None:
    path.rename(path.with_name("moved"))
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_PATH)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # the whole path may be too long
        os.close(here)


def _empty(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.touch()


GONE = {
    _rename: {errno.ENOENT},
    _unlink: {errno.ENOENT},
    _another_file: {errno.ESTALE},
    _a_copy: {errno.ESTALE},
    _link_to_another: {errno.ESTALE},
    _link_to_nowhere: {errno.ENOENT},
    _link_to_itself: {errno.ELOOP},
    _link_to_a_device: {errno.EINVAL},
    _folder: {errno.EISDIR},
    _fifo: {errno.ENXIO},
    _socket: {errno.ENXIO},
    _empty: {errno.ESTALE},
}
"""Attacks after which the path leads to another file or to none, and what a reopen says."""


def _link_to_itself_moved(path: Path) -> None:
    """A symbolic link that leads to the very same file."""
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _hard_link(path: Path) -> None:
    other = path.with_name("moved")
    os.link(path, other)
    path.unlink()
    os.link(other, path)


STILL_THERE = [_link_to_itself_moved, _hard_link]


def name_of(attack: Callable[[Path], None]) -> str:
    return attack.__name__.strip("_")


def sector(image: Image, number: int) -> tuple[int, bytes]:
    """A place in the disk, and bytes for it."""
    return number * 3371 % (image.size - 700), noise(700, number)


def check_served(image: Image, model: bytearray) -> None:
    """Right bytes, writes that arrive, and nothing said that is not so."""
    assert image.pread(image.size, 0) == model
    if image.mode == "r+":
        for number in range(5):
            offset, data = sector(image, number)
            image.pwrite(data, offset)
            model[offset : offset + len(data)] = data
        image.flush()
        assert image.pread(image.size, 0) == model
    assert_as_kernel_says(image)


@pytest.mark.parametrize("attack", [*GONE, *STILL_THERE], ids=name_of)
@pytest.mark.parametrize("victim", [0, 1, 3, 4])
def test_every_route_but_the_path_works_whatever_became_of_it(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        inodes = [file.inode for file in image.files]
        attack(disk.files[victim])
        for options in (
            {"cache": "none"},
            {"mode": "r"},
            {"mode": "r+", "cache": "writeback"},
            {"cache": "directsync"},
            {"mode": "r", "cache": "writethrough"},
            {"mode": "r+"},
        ):
            routes = set(image.reopen(**options).routes.values())  # type: ignore[arg-type]
            assert routes <= {"setfl", "proc", "keep"}
            assert [file.inode for file in image.files] == inodes
            check_served(image, model)
        assert [locked_bytes(file.fd) for file in image.files] == [WRITER_BYTES] * 5


@pytest.mark.parametrize("attack", GONE, ids=name_of)
@pytest.mark.parametrize("victim", [0, 1, 3, 4])
def test_the_path_is_refused_where_it_leads_elsewhere(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        copies = [os.dup(file.fd) for file in image.files]
        attack(disk.files[victim])
        for options in ({}, {"mode": "r"}, {"cache": "none"}):
            with pytest.raises(ReopenError) as caught:
                image.reopen(path=disk.path, **options)  # type: ignore[arg-type]
            assert caught.value.errno in GONE[attack]
            assert (caught.value.phase, caught.value.file) == ("acquire", str(disk.files[victim]))
            assert caught.value.rolled_back
            assert all(map(same_description, copies, (file.fd for file in image.files)))
            assert (image.mode, image.cache) == ("r+", "writeback")
            check_served(image, model)
        for copy in copies:
            os.close(copy)


@pytest.mark.parametrize("attack", STILL_THERE, ids=name_of)
@pytest.mark.parametrize("victim", [0, 3])
def test_the_path_is_taken_where_it_leads_to_the_same_file(
    disk: FlatDisk, attack: Callable[[Path], None], victim: int
) -> None:
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        inodes = [file.inode for file in image.files]
        attack(disk.files[victim])
        image.reopen(path=disk.path, cache="none")
        assert [file.inode for file in image.files] == inodes
        check_served(image, model)


@pytest.mark.parametrize("attack", [*GONE, *STILL_THERE], ids=name_of)
def test_the_folder_itself_may_go_away(tmp_path: Path, attack: Callable[[Path], None]) -> None:
    """All paths at once: the folder is moved, and something else stands there."""
    home = tmp_path / "home"
    home.mkdir()
    disk = make_flat(home)
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        home.rename(tmp_path / "elsewhere")
        home.mkdir()
        for file in disk.files:
            shutil.copyfile(tmp_path / "elsewhere" / file.name, file)
        attack(disk.files[2])
        for options in ({"mode": "r"}, {"mode": "r+", "cache": "none"}):
            image.reopen(**options)  # type: ignore[arg-type]
            check_served(image, model)
        with pytest.raises(ReopenError):
            image.reopen(path=disk.path)
        check_served(image, model)


def test_an_image_that_lost_all_its_paths_can_be_handed_on(disk: FlatDisk, tmp_path: Path) -> None:
    with fdstash.open(disk.path, "r+") as image, FDStash() as stash:
        model = image.pread(image.size, 0)
        for file in disk.files:
            file.unlink()
        image.reopen(mode="r")
        image.extract_fds(stash)
        with fdstash.open(disk.path, "r", stash=stash) as second:
            assert second.pread(second.size, 0) == model
            second.reopen(cache="none")
            assert second.pread(second.size, 0) == model


# --------------------------------------------------------------- made unreadable


def test_a_file_made_unreadable_is_no_hindrance_to_root(disk: FlatDisk) -> None:
    need_root("opening a file of mode 0000")
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        for file in disk.files:
            os.chmod(file, 0)
        for options in ({"mode": "r"}, {"mode": "r+", "path": str(disk.path)}):
            image.reopen(**options)  # type: ignore[arg-type]
            check_served(image, model)


def attack_permissions(sock: socket.socket, folder: str) -> list[object]:
    """As the owner of the files, who takes his own permissions away and gives them back."""
    disk = make_flat(Path(folder))
    found: list[object] = []
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        image.reopen(cache="none")  # that the files bear O_DIRECT is known from here on
        image.reopen(cache="writeback")
        for victim in (0, 3):
            for mode_bits, options in itertools.product(
                (0o000, 0o200, 0o400), ({"mode": "r"}, {"mode": "r", "path": str(disk.path)})
            ):
                os.chmod(disk.files[victim], mode_bits)
                copies = [os.dup(file.fd) for file in image.files]
                try:
                    image.reopen(**options)  # type: ignore[arg-type]
                    outcome: object = image.mode
                except ReopenError as error:
                    same = all(map(same_description, copies, (f.fd for f in image.files)))
                    assert same
                    assert isinstance(error, PermissionError)
                    assert (error.file, error.phase) == (str(disk.files[victim]), "acquire")
                    outcome = error.errno
                for copy in copies:
                    os.close(copy)
                found.append([victim, mode_bits, "path" in options, outcome])
                check_served(image, model)
                # Flags of its own description need no permission.
                image.reopen(cache="none")
                image.reopen(cache="writeback")
                os.chmod(disk.files[victim], 0o600)
                image.reopen(mode="r+")
                check_served(image, model)
    return found


@pytest.mark.root
def test_a_file_made_unreadable_refuses_what_needs_it_and_keeps_serving(tmp_path: Path) -> None:
    """/proc/self/fd/N is the same inode, and its permission counts."""
    home = tmp_path / "home"
    home.mkdir()
    for folder in (home, *home.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & stat.S_IXOTH:
            os.chmod(folder, folder.stat().st_mode | stat.S_IXOTH)
    os.chown(home, 65534, 65534)
    found = run_as(attack_permissions, str(home))
    assert len(found) == 12
    for _, mode_bits, _, outcome in found:
        # Reading is all that mode r wants.
        assert outcome == ("r" if mode_bits & 0o400 else errno.EACCES)


# -------------------------------------------------------------------- during it


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
