"""QEMU byte-range locks against real qemu-img and qemu-io, in both directions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, Image, LockError, ReopenError
from tests.support.disks import ExtentSpec, FlatDisk, make_flat, make_raw
from tests.support.kernel import Lock, description_locks, ofd_locks
from tests.support.qemu_tools import QemuIo, qemu_img, qemu_io

pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")

EXTENTS = tuple(ExtentSpec("RW", 128, name=f"disk-{i}.bin") for i in range(3))
READER = [Lock(100, 100, "READ"), Lock(201, 201, "READ"), Lock(203, 203, "READ")]
WRITER = [
    Lock(100, 101, "READ"),
    Lock(103, 103, "READ"),
    Lock(201, 201, "READ"),
    Lock(203, 203, "READ"),
]


class Disk:
    """An image of either format, and its files."""

    def __init__(self, folder: Path, format: str) -> None:
        self.format = format
        self.flat: FlatDisk | None = None
        if format == "vmdk":
            self.flat = make_flat(folder, EXTENTS, create_type="twoGbMaxExtentFlat")
        self.path = self.flat.path if self.flat else make_raw(folder, 128 * 512)
        self.files = self.flat.files if self.flat else [self.path]

    def open(self, mode: str = "r+", **options: object) -> Image:
        return fdstash.open(self.path, mode, format=self.format, **options)  # type: ignore[arg-type]


@pytest.fixture(params=["raw", "vmdk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(tmp_path, request.param)


def qemu_may(path: Path, format: str = "raw") -> tuple[bool, bool]:
    """Whether qemu-io may read the file, and whether it may open it for writing."""
    answers = []
    for options in (["-r"], []):
        ran = qemu_io(path, "read 0 512", format=format, options=options)
        assert ran.status == 0 or ran.refused_by_a_lock, ran
        answers.append(ran.status == 0)
    return answers[0], answers[1]


def assert_locked(disk: Disk, mode: str, files: list[Path] | None = None) -> None:
    """By /proc/locks exactly, and by what qemu-io may do with each file."""
    for path in files or disk.files:
        assert ofd_locks(path) == {"r": READER, "r+": WRITER, "": []}[mode], path
        # As a raw image: a reader that lets others write, and a writer.
        assert qemu_may(path) == (True, mode == ""), path


def by_stash(image: Image, flags: int, **options: object) -> dict[str, str]:
    with FDStash() as stash:
        for file in image.files:
            stash.give(file.name, os.open(file.name, flags))
        return dict(image.reopen(stash=stash, **options).routes)  # type: ignore[arg-type]


# ------------------------------------------------------------------ opens


def test_while_we_write_qemu_img_and_qemu_io_are_refused_every_file(disk: Disk) -> None:
    with disk.open("r+"):
        for path in disk.files:
            assert ofd_locks(path) == WRITER
            assert qemu_io(path, "write 0 512").refused_by_a_lock
        assert qemu_io(disk.path, "write 0 512", format=disk.format).refused_by_a_lock
        bench = ("bench", "-w", "-c", 1, "-s", 512, "-f", disk.format, disk.path)
        assert qemu_img(*bench).refused_by_a_lock
        assert qemu_img("info", "-U", "-f", disk.format, disk.path).status == 0
    assert qemu_img(*bench).status == 0
    assert_locked(disk, "")


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_while_qemu_io_writes_we_are_refused_and_take_no_lock(disk: Disk, mode: str) -> None:
    with QemuIo(disk.path, disk.format):
        before = [ofd_locks(path) for path in disk.files]
        with pytest.raises(LockError) as caught:
            disk.open(mode)
        assert isinstance(caught.value, BlockingIOError)
        assert caught.value.filename == os.fspath(disk.path)
        assert [ofd_locks(path) for path in disk.files] == before
    with disk.open(mode):
        assert_locked(disk, mode)


@pytest.mark.parametrize("index", range(1, 4))
def test_a_qemu_io_on_one_extent_refuses_the_image_and_leaves_no_lock(
    tmp_path: Path, index: int
) -> None:
    disk = Disk(tmp_path, "vmdk")
    with QemuIo(disk.files[index]):
        with pytest.raises(LockError) as caught:
            disk.open()
        assert caught.value.filename == os.fspath(disk.files[index])
        assert all(ofd_locks(p) == [] for p in disk.files if p != disk.files[index])


def test_readers_let_each_other_in_both_ways(disk: Disk) -> None:
    with disk.open("r"):
        assert qemu_img("info", "-f", disk.format, disk.path).status == 0
        assert qemu_io(disk.path, "read 0 4k", format=disk.format, options=["-r"]).status == 0
        assert qemu_io(disk.path, "write 0 512", format=disk.format).refused_by_a_lock
    with QemuIo(disk.path, disk.format, readonly=True) as reader, disk.open("r") as image:
        assert len(image.pread(512, 0)) == 512
        assert "read 512/512 bytes" in reader.do("read 0 512")


@pytest.mark.parametrize(("first", "second"), [("r", "r+"), ("r+", "r"), ("r+", "r+")])
def test_two_images_of_one_process_conflict_as_strangers_do(
    disk: Disk, first: str, second: str
) -> None:
    with disk.open(first):
        with pytest.raises(LockError):
            disk.open(second)
        assert_locked(disk, first)
    with disk.open(second):
        assert_locked(disk, second)


def test_two_readers_in_one_process_hold_a_lock_each(disk: Disk) -> None:
    with disk.open("r"):
        with disk.open("r"):
            assert [ofd_locks(p) for p in disk.files] == [sorted(READER * 2)] * len(disk.files)
        assert_locked(disk, "r")


def test_a_read_only_extent_is_only_read_locked(tmp_path: Path) -> None:
    flat = make_flat(
        tmp_path, (ExtentSpec("RW", 64, name="a.bin"), ExtentSpec("RDONLY", 64, name="b.bin"))
    )
    base, rw, rdonly = flat.files
    with fdstash.open(flat.path, "r+") as image:
        for mode in ("r+", "r", "r+"):
            image.reopen(mode=mode)
            expected = WRITER if mode == "r+" else READER
            assert (ofd_locks(base), ofd_locks(rw)) == (expected, expected)
            assert ofd_locks(rdonly) == READER
            # A reader of that extent alone, who lets nobody write, is let in.
            fdstash.open(rdonly, "r", format="raw").close()


def test_without_locks_nobody_is_refused(disk: Disk) -> None:
    with QemuIo(disk.path, disk.format), disk.open("r+", lock=False) as image:
        before = [ofd_locks(path) for path in disk.files]
        for mode in ("r", "r+"):
            image.reopen(mode=mode)
            image.reopen(path=disk.path)
            assert [ofd_locks(path) for path in disk.files] == before
    with disk.open("r+", lock=False):
        assert_locked(disk, "")


def test_a_passed_lock_descriptor_bears_the_locks_and_gives_them_up(disk: Disk) -> None:
    passed = [os.open(path, os.O_RDONLY) for path in disk.files]
    try:
        with FDStash() as stash:
            for path, fd in zip(disk.files, passed, strict=True):
                stash.give(f"lock:{path}", os.dup(fd))
            with disk.open("r+", stash=stash) as image:
                for mode in ("r+", "r", "r+"):
                    image.reopen(mode=mode)
                    expected = WRITER if mode == "r+" else READER
                    assert [description_locks(fd) for fd in passed] == [expected] * len(passed)
                    assert_locked(disk, mode)
        assert [description_locks(fd) for fd in passed] == [[]] * len(passed)
        assert_locked(disk, "")
    finally:
        for fd in passed:
            os.close(fd)


# ------------------------------------------------------------------ reopens

KINDS: dict[str, Callable[[Image, int], dict[str, str]]] = {
    "setfl": lambda image, _: dict(image.reopen(cache="none").routes),
    "path": lambda image, _: dict(image.reopen(path=image.name).routes),
    "stash": lambda image, flags: by_stash(image, flags | os.O_DIRECT, cache="none"),
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reopen_that_keeps_the_mode_keeps_the_locks(disk: Disk, kind: str, mode: str) -> None:
    with disk.open(mode) as image:
        routes = KINDS[kind](image, os.O_RDWR if mode == "r+" else os.O_RDONLY)
        assert set(routes.values()) == {kind}
        assert_locked(disk, mode)
    assert_locked(disk, "")


def test_a_cache_change_of_shared_descriptions_by_proc_keeps_the_locks(disk: Disk) -> None:
    with disk.open("r+") as image, FDStash() as stash:
        image.extract_fds(stash)
        routes = image.reopen(cache="none").routes
        extents = disk.files[1:] or disk.files
        assert {routes[os.fspath(path)] for path in extents} == {"proc"}
        assert_locked(disk, "r+")


@pytest.mark.parametrize("route", ["proc", "stash", "path"])
def test_the_locks_follow_the_mode_down_and_up_again(disk: Disk, route: str) -> None:
    with disk.open("r+") as image:
        for mode, flags in (("r", os.O_RDONLY), ("r+", os.O_RDWR), ("r", os.O_RDONLY)):
            if route == "stash":
                routes = by_stash(image, flags, mode=mode)
            else:
                path = disk.path if route == "path" else None
                routes = dict(image.reopen(mode=mode, path=path).routes)
            assert set(routes.values()) == {route}
            assert_locked(disk, mode)


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_change_to_a_copy_moves_the_locks_to_the_new_files(
    disk: Disk, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "copy").mkdir()
    copy = Disk(tmp_path / "copy", disk.format)
    with disk.open(mode) as image:
        image.reopen(path=copy.path)
        assert_locked(disk, "")
        assert_locked(copy, mode)
    assert_locked(copy, "")


@pytest.mark.parametrize("how", ["rename", "link"])
@pytest.mark.parametrize(("mode", "later"), [("r", "r"), ("r+", "r+"), ("r+", "r"), ("r", "r+")])
def test_a_change_to_another_name_of_the_same_files_keeps_them_locked(
    disk: Disk, how: str, mode: str, later: str
) -> None:
    other = disk.path.with_name("other")
    with disk.open(mode) as image:
        os.rename(disk.path, other) if how == "rename" else os.link(disk.path, other)
        image.reopen(path=other, mode=later)
        files = [other, *disk.files[1:]]
        assert_locked(disk, later, files)
    assert_locked(disk, "", files)


# ------------------------------------------------------------------ rollbacks


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("wanted", ["r", "r+"])
def test_a_reopen_with_a_file_moved_away_leaves_the_locks(
    disk: Disk, mode: str, wanted: str
) -> None:
    with disk.open(mode) as image:
        away = disk.files[-1].with_name("away")
        os.rename(disk.files[-1], away)
        with pytest.raises(ReopenError):
            image.reopen(path=disk.path, mode=wanted)
        os.rename(away, disk.files[-1])
        assert_locked(disk, mode)
        assert len(image.pread(512, 0)) == 512


def test_a_change_to_a_path_that_qemu_writes_leaves_the_locks(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = Disk(tmp_path / "copy", disk.format)
    with disk.open("r+") as image:
        with QemuIo(copy.path, copy.format):
            before = [ofd_locks(path) for path in copy.files]
            with pytest.raises(ReopenError) as caught:
                image.reopen(path=copy.path)
            assert isinstance(caught.value, BlockingIOError)
            assert [ofd_locks(path) for path in copy.files] == before
        assert_locked(disk, "r+")


def test_a_failing_prepare_leaves_the_locks(disk: Disk) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    for mode, wanted in (("r", "r+"), ("r+", "r")):
        with disk.open(mode) as image:
            with pytest.raises(Exception, match="no"):
                image.reopen(mode=wanted, prepare=fail)
            assert_locked(disk, mode)


def test_widening_is_refused_while_qemu_io_reads_and_unshares(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "vmdk")
    with disk.open("r") as image:
        with QemuIo(disk.path, "vmdk", readonly=True):  # a format keeps writers from its file
            both = [ofd_locks(path) for path in disk.files]
            assert len(both[0]) > len(READER)
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+")
            assert isinstance(caught.value, BlockingIOError)
            assert caught.value.rolled_back
            assert image.mode == "r"
            assert [ofd_locks(path) for path in disk.files] == both
        assert_locked(disk, "r")
        image.reopen(mode="r+")
        assert_locked(disk, "r+")


# ------------------------------------------------------------------ forks


@pytest.fixture
def forked() -> Iterator[Callable[[], Callable[[], None]]]:
    """Fork a child that waits; the call it returns ends the child."""
    running: list[tuple[int, int]] = []

    def end() -> None:
        for pid, writer in running:
            os.close(writer)
            assert os.waitpid(pid, 0)[1] == 0
        running.clear()

    def start() -> Callable[[], None]:
        reader, writer = os.pipe()
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            os.write(told, b"x")
            os.read(reader, 1)
            os._exit(0)
        os.read(ready, 1)
        for fd in (reader, ready, told):
            os.close(fd)
        running.append((pid, writer))
        return end

    yield start
    end()


def test_a_child_that_ends_leaves_the_parents_locks(
    disk: Disk, forked: Callable[[], Callable[[], None]]
) -> None:
    with disk.open("r+") as image:
        end = forked()
        assert_locked(disk, "r+")
        end()
        assert_locked(disk, "r+")
        image.reopen(mode="r")
        assert_locked(disk, "r")


def test_no_lock_survives_in_a_child_that_outlives_the_parents_close(
    disk: Disk, forked: Callable[[], Callable[[], None]]
) -> None:
    image = disk.open("r+")
    end = forked()
    image.reopen(mode="r")
    assert_locked(disk, "r")
    image.close()
    assert_locked(disk, "")
    end()
