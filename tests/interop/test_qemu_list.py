"""Where QEMU's reopen falls short, row by row, and what happens here instead.

Each row is a test of what this package does. Where QEMU 7.2 can be watched at the same thing,
through qemu-storage-daemon or qemu-io, a test beside it shows that.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdstash
from fdstash import FDStash, FormatError, ImageIOError, LockError, RefusedError, ReopenError
from fdstash import reopen_all as reopen_together
from tests.support.disks import ExtentSpec, FlatDisk, descriptor_text, make_flat, make_raw, noise
from tests.support.faultshim import FaultShim
from tests.support.fuse import HeldFs
from tests.support.hosts import Hosts
from tests.support.kernel import getfl, is_direct, open_descriptors
from tests.support.mounts import mount, unmount
from tests.support.need import need_program, plain_environment
from tests.support.qemu_tools import QemuIo, qemu_img, qemu_io
from tests.support.qmp import StorageDaemon, StorageDaemonError
from tests.support.seen import READER_BYTES, WRITER_BYTES, assert_as_kernel_says, locked_bytes

SIZE = 1 << 16
# QEMU takes no other flat VMDK than these: RW extents from the start of their files.
FOR_QEMU = [ExtentSpec("RW", 128, name="a.bin"), ExtentSpec("RW", 128, name="b.bin")]


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path, FOR_QEMU, create_type="twoGbMaxExtentFlat")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    with StorageDaemon(tmp_path) as running:
        yield running


def flags_in_qemu(daemon: StorageDaemon, folder: Path) -> dict[str, int]:
    """Access mode and O_DIRECT of every file that the daemon has open there, by name."""
    compared = os.O_ACCMODE | os.O_DIRECT
    return {
        Path(name).name: flags & compared
        for name, flags in daemon.descriptors().values()
        if Path(name).parent == folder and not name.endswith(".sock")
    }


def file_node(path: Path, **options: object) -> dict[str, object]:
    return {"driver": "file", "node-name": "file", "filename": str(path), **options}


def reopen_in_qemu(daemon: StorageDaemon, node: dict[str, object]) -> None:
    daemon.execute("blockdev-reopen", {"options": [node]})


def read_all(image: fdstash.Image) -> bytes:
    return image.pread(image.size, 0)


# ----------------------------------------- 1: extents, all of them or none of them


@pytest.mark.parametrize(
    "options", [{"cache": "none"}, {"mode": "r"}, {"mode": "r", "cache": "none"}]
)
def test_row_1_a_reopen_changes_every_file_of_a_vmdk(
    flat: FlatDisk, options: dict[str, Any]
) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.reopen(**options)
        for file in image.files:
            assert file.direct == is_direct(file.fd) == ("cache" in options)
            assert file.mode == options.get("mode", "r+")
        assert_as_kernel_says(image)


def test_row_1_a_reopen_that_fails_changes_no_file_of_a_vmdk(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+") as image:
        before = image.files
        flat.files[-1].unlink()
        with pytest.raises(ReopenError) as caught:
            image.reopen(path=flat.path, mode="r", cache="none")
        assert caught.value.file == str(flat.files[-1])
        assert image.files == before
        assert_as_kernel_says(image)


def test_row_1_qemu_refuses_a_vmdk_and_changes_its_descriptor_file_alone(
    daemon: StorageDaemon, flat: FlatDisk
) -> None:
    node = {"driver": "vmdk", "node-name": "disk", "file": file_node(flat.path)}
    daemon.execute("blockdev-add", node)
    direct = {"cache": {"direct": True}}
    with pytest.raises(StorageDaemonError):
        reopen_in_qemu(daemon, {**node, "file": "file", **direct})
    reopen_in_qemu(daemon, file_node(flat.path, **direct))
    assert flags_in_qemu(daemon, flat.path.parent) == {
        "disk.vmdk": os.O_RDWR | os.O_DIRECT,
        "a.bin": os.O_RDWR,
        "b.bin": os.O_RDWR,
    }


# ----------------------------------- 2, 3, 4: the path, the file, and another path


@pytest.mark.parametrize("how", ["renamed", "unlinked"])
def test_row_2_a_file_without_its_path_can_be_reopened(flat: FlatDisk, how: str) -> None:
    expected = flat.guest_bytes()
    with fdstash.open(flat.path, "r+") as image:
        for path in flat.files:
            path.rename(path.with_suffix(".moved")) if how == "renamed" else path.unlink()
        for options in ({"mode": "r"}, {"cache": "none"}, {"mode": "r+"}, {"cache": "writeback"}):
            image.reopen(**options)
            assert_as_kernel_says(image)
            assert read_all(image) == expected
        image.pwrite(b"still here", 100)
        assert image.pread(10, 100) == b"still here"


def test_row_2_qemu_cannot_reopen_a_file_that_was_renamed(daemon: StorageDaemon, raw: Path) -> None:
    daemon.execute("blockdev-add", file_node(raw))
    raw.rename(raw.with_name("moved.raw"))
    with pytest.raises(StorageDaemonError, match="No such file"):
        reopen_in_qemu(daemon, file_node(raw, **{"read-only": True}))


def test_row_3_another_file_at_the_path_is_refused(raw: Path) -> None:
    with fdstash.open(raw, "r+", format="raw") as image:
        expected = read_all(image)
        raw.rename(raw.with_name("moved.raw"))
        make_raw(raw.parent, SIZE, seed=9)
        with pytest.raises(ReopenError) as caught:
            image.reopen(path=raw, mode="r")
        assert (caught.value.errno, caught.value.file) == (errno.ESTALE, str(raw))
        image.reopen(mode="r")
        assert read_all(image) == expected


def test_row_3_qemu_takes_another_file_at_the_path_without_a_word(
    daemon: StorageDaemon, raw: Path
) -> None:
    daemon.execute("blockdev-add", file_node(raw))
    moved = raw.with_name("moved.raw")
    raw.rename(moved)
    assert list(flags_in_qemu(daemon, raw.parent)) == ["moved.raw"]
    make_raw(raw.parent, SIZE, seed=9)
    reopen_in_qemu(daemon, file_node(raw, **{"read-only": True}))
    assert list(flags_in_qemu(daemon, raw.parent)) == ["disk.raw"]


def test_row_4_another_path_is_taken_whole_with_the_image_drained_for_it(
    flat: FlatDisk, tmp_path: Path
) -> None:
    copy = make_flat(tmp_path / "copy", FOR_QEMU, create_type="twoGbMaxExtentFlat", seed=None)
    with fdstash.open(flat.path, "r+") as image:
        image.pwrite(b"before", 65533)

        def move() -> None:
            with pytest.raises(ImageIOError):
                image.pwrite(b"during", 0)
            content = read_all(image)
            for path, start in zip(copy.files[1:], (0, SIZE), strict=True):
                path.write_bytes(content[start : start + SIZE])

        image.reopen(path=copy.path, prepare=move)
        assert [file.path for file in image.files] == [str(path) for path in copy.files]
        assert image.pread(6, 65533) == b"before"
        image.pwrite(b"after!", 65533)
    assert copy.guest_bytes()[65533:65539] == b"after!"
    assert flat.guest_bytes()[65533:65539] == b"before"


def test_row_4_qemu_refuses_another_path(daemon: StorageDaemon, raw: Path) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw")
    daemon.execute("blockdev-add", file_node(raw))
    with pytest.raises(StorageDaemonError, match="Cannot change the option 'filename'"):
        reopen_in_qemu(daemon, file_node(other))


# --------------------------------------------------- 5, 6: flags that tell the truth


def test_row_5_files_say_what_the_kernel_says_also_after_a_reopen_of_nothing(
    flat: FlatDisk,
) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.reopen()
        for mode in ("r", "r", "r+", "r+", "r"):
            image.reopen(mode=mode)
            assert {file.mode for file in image.files} == {mode}
            assert_as_kernel_says(image)
            image.reopen()
            assert_as_kernel_says(image)


def test_row_5_qemu_keeps_a_writable_descriptor_under_a_read_only_node(
    daemon: StorageDaemon, raw: Path
) -> None:
    daemon.execute("blockdev-add", file_node(raw))
    reopen_in_qemu(daemon, file_node(raw))
    reopen_in_qemu(daemon, file_node(raw, **{"read-only": True}))
    assert daemon.execute("query-named-block-nodes")[0]["ro"]
    assert flags_in_qemu(daemon, raw.parent) == {"disk.raw": os.O_RDWR}


@pytest.mark.preload
@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_row_6_a_rollback_restores_the_flags_of_a_description(
    raw: Path, flat: FlatDisk, shim: FaultShim, cache: str
) -> None:
    before = "writeback" if cache == "none" else "none"
    with (
        fdstash.open(raw, "r+", format="raw", cache=before) as image,
        fdstash.open(flat.path, "r+") as other,
    ):
        pairs: list[tuple[fdstash.Image, dict[str, str]]] = [
            (image, {"cache": cache}),  # by F_SETFL
            (other, {"mode": "r"}),  # by an exchange, which fails after it
        ]
        descriptors = open_descriptors()
        with shim.fault("dup3", 0, errno.EBADF, times=20) as fault:
            with pytest.raises(ReopenError) as caught:
                reopen_together(pairs)
            assert caught.value.phase == "commit"
            assert caught.value.rolled_back
        assert fault.fired
        assert fault.counts["F_SETFL"] >= 2
        assert (image.cache, other.mode) == (before, "r+")
        for each in (image, other):
            assert_as_kernel_says(each)
            assert each.pread(3, 5) == read_all(each)[5:8]
            each.pwrite(b"odd", 5)
        assert open_descriptors() == descriptors


def test_row_6_a_description_that_others_hold_keeps_its_flags(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        for cache in ("none", "directsync"):
            with pytest.raises(ReopenError):
                image.reopen(cache=cache, prepare=lambda: 1 // 0)
            assert not is_direct(fd)
            assert os.pread(fd, 3, 5) == image.pread(3, 5)
            assert set(image.reopen(cache=cache).routes.values()) <= {"proc", "setfl", "keep"}
            assert not is_direct(fd)
            assert os.pread(fd, 3, 5) == image.pread(3, 5)
        assert getfl(fd) & os.O_ACCMODE == os.O_RDWR
    os.close(fd)


# ------------------------------------------------- 7: one function decides for both


READ_ONLY = [ExtentSpec("RDONLY", 128, name="a.bin"), ExtentSpec("NOACCESS", 8, name="b.bin")]


def refusals(path: Path) -> tuple[FormatError, FormatError]:
    """Why an image cannot be written, as told by an open and by a reopen."""
    with pytest.raises(FormatError) as opened:
        fdstash.open(path, "r+")
    with fdstash.open(path) as image:
        before = image.files
        with pytest.raises(ReopenError) as reopened:
            image.reopen(mode="r+")
        assert reopened.value.errno == errno.EINVAL
        assert reopened.value.rolled_back
        assert image.files == before
        assert all(locked_bytes(file.fd) == READER_BYTES for file in image.files)
        assert_as_kernel_says(image)
    assert isinstance(reopened.value.__cause__, FormatError)
    return opened.value, reopened.value.__cause__


def test_row_7_what_forbids_writing_at_open_forbids_it_at_a_reopen(
    tmp_path: Path, raw: Path
) -> None:
    disk = make_flat(tmp_path, READ_ONLY)
    for path in (disk.path, raw):
        at_open, at_reopen = refusals(path)
        assert str(at_open) == str(at_reopen)
        assert (at_open.file, at_open.field) == (at_reopen.file, at_reopen.field)


def test_row_7_a_path_change_is_held_to_the_same(tmp_path: Path, raw: Path) -> None:
    disk = make_flat(tmp_path, [ExtentSpec("RW", 128, name="a.bin")])
    other = make_flat(tmp_path / "other", [READ_ONLY[0]])
    with fdstash.open(disk.path, "r+") as image:
        with pytest.raises(ReopenError) as caught:
            image.reopen(path=other.path)
        assert isinstance(caught.value.__cause__, FormatError)
        image.reopen(path=other.path, mode="r")
    with fdstash.open(raw) as guessed:
        copy = make_raw(tmp_path, SIZE, name="copy.raw")
        with pytest.raises(ReopenError):
            guessed.reopen(path=copy, mode="r+")
        guessed.reopen(path=copy)


# ------------------------------------------------- 8, 9: alignment, known or probed


@pytest.mark.root
@pytest.mark.parametrize("kept_private", [True, False])
def test_row_8_the_alignment_is_that_of_the_new_description(
    ext4_mount: Callable[..., Path], stash: FDStash, kept_private: bool
) -> None:
    path = make_raw(ext4_mount(sector_size=4096), SIZE)
    with fdstash.open(path, "r+", format="raw") as image:
        if not kept_private:
            image.extract_fds(stash)
        image.reopen(cache="none")
        assert image.limits.offset_alignment == 4096
        assert image.pread(512, 512) == noise(SIZE, 1)[512:1024]
        image.pwrite(b"between two sectors of 4096", 4090)
        assert image.pread(27, 4090) == b"between two sectors of 4096"


@pytest.fixture
def ramfs(tmp_path: Path) -> Iterator[Path]:
    """A file system that bears no O_DIRECT."""
    folder = tmp_path / "ramfs"
    mount("fdstash-ramfs", folder, "ramfs")
    yield folder
    unmount(folder)


@pytest.mark.root
@pytest.mark.parametrize("place", [0, 1])
def test_row_8_a_file_that_bears_no_direct_io_fails_the_reopen_before_anything_changes(
    ramfs: Path, tmp_path: Path, place: int
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/here").mkdir()
    ramfs_file, disk_file = ramfs / "b.bin", tmp_path / "disk/b.bin"
    for path in (ramfs_file, disk_file):
        path.write_bytes(noise(SIZE, 3))
    names = [str(disk_file), str(disk_file)]
    names[place] = str(ramfs_file)
    extents = [ExtentSpec("RW", 64, name=names[0]), ExtentSpec("RW", 64, name=names[1], start=64)]
    path = tmp_path / "disk/here/disk.vmdk"
    path.write_text(descriptor_text(extents))
    with fdstash.open(path, "r+", resolver=fdstash.anywhere) as image:
        before, descriptors = image.files, open_descriptors()
        for options in ({"cache": "none"}, {"cache": "none", "mode": "r"}):
            with pytest.raises(ReopenError) as caught:
                image.reopen(**options)
            error = caught.value
            assert (error.phase, error.errno, error.file) == (
                *("acquire", errno.EINVAL),
                str(ramfs_file),
            )
            assert image.files == before
            assert open_descriptors() == descriptors
            assert image.pread(5, 3) == noise(SIZE, 3)[3:8]


@pytest.mark.preload
@pytest.mark.root
@pytest.mark.parametrize("kept_private", [True, False])
def test_row_9_a_probe_that_fails_leaks_no_descriptor(
    hosts: Hosts, stash: FDStash, shim: FaultShim, kept_private: bool
) -> None:
    path = hosts.backing_file(SIZE)  # on a tmpfs, where the kernel does not tell the alignment
    path.write_bytes(noise(SIZE, 1))

    def attempt(position: int) -> int:
        """Reopen a fresh image with that read of the probe failing; how many reads there were."""
        with fdstash.open(path, "r+", format="raw") as image:
            if not kept_private:
                image.extract_fds(stash)
            descriptors, before = open_descriptors(), image.files
            error = None
            with shim.fault("pread", position, errno.EIO) as fault:
                try:
                    image.reopen(cache="none")
                except ReopenError as failed:
                    error = failed
            assert fault.fired == (position >= 0)
            assert open_descriptors() == descriptors
            if error is not None:
                assert (error.phase, error.errno, error.rolled_back) == (
                    *("acquire", errno.EIO),
                    True,
                )
                assert image.files == before
                image.reopen(cache="none")
            assert_as_kernel_says(image)
            assert read_all(image) == noise(SIZE, 1)
            failures.append(error)
            return fault.counts["pread"]

    failures: list[ReopenError | None] = []
    reads = attempt(-1)
    assert reads > 0
    for position in range(reads):
        attempt(position)
    # A description of our own can take another way; where there is none, the probe decides.
    assert kept_private or any(failures)


# ------------------------------------------------------------ 10: nobody has to wait


@pytest.mark.root
@pytest.mark.threads
def test_row_10_an_open_that_hangs_keeps_nobody_waiting_and_is_given_up(
    stopped_fuse: HeldFs, raw: Path
) -> None:
    (stopped_fuse.backing / "disk.raw").write_bytes(noise(SIZE, 1))
    path = stopped_fuse.folder / "disk.raw"
    errors: list[ReopenError] = []
    with fdstash.open(path, format="raw") as image, fdstash.open(raw, format="raw") as other:
        descriptors = open_descriptors()

        def reopen() -> None:
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+", timeout=1)
            errors.append(caught.value)

        stopped_fuse.hold_opens()
        reopening = threading.Thread(target=reopen)
        reopening.start()
        stopped_fuse.wait_open_hanging()
        reads = 0
        while reopening.is_alive():
            start = time.monotonic()
            assert image.pread(512, 1024) == noise(SIZE, 1)[1024:1536]
            assert time.monotonic() - start < 0.9
            other.reopen(cache="none")
            other.reopen(cache="writeback")
            reads += 1
        reopening.join()
        assert reads > 10
        assert isinstance(errors[0], TimeoutError)
        assert (errors[0].phase, errors[0].rolled_back) == ("acquire", True)
        assert fdstash.pending_opens() == 1
        stopped_fuse.release_opens()
        deadline = time.monotonic() + 20
        while fdstash.pending_opens() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert fdstash.pending_opens() == 0
        assert open_descriptors() == descriptors
        image.reopen(mode="r+")
        image.pwrite(b"x", 0)


# -------------------------------------------- 11, 12: locks and names that are our own


def test_row_11_images_of_one_passed_descriptor_have_locks_of_their_own(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    one = fdstash.open(fd, format="raw")
    two = fdstash.open(fd, format="raw")
    assert locked_bytes(raw) == sorted(READER_BYTES * 2)
    one.close()
    assert locked_bytes(raw) == READER_BYTES
    assert qemu_io(raw, "write 0 512").refused_by_a_lock
    with pytest.raises(LockError):
        fdstash.open(fd, "r+", format="raw")
    two.close()
    assert locked_bytes(raw) == []
    assert qemu_io(raw, "write 0 512").status == 0
    os.close(fd)


def test_row_11_an_image_that_is_read_only_again_lets_others_in(flat: FlatDisk) -> None:
    fd = os.open(flat.path, os.O_RDWR)
    with fdstash.open(fd, "r+", name=str(flat.path)) as image:
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * 3
        assert qemu_io(flat.path, "read 0 512", format="vmdk", options=["-r"]).refused_by_a_lock
        image.reopen(mode="r")
        assert [locked_bytes(path) for path in flat.files] == [READER_BYTES] * 3
        with QemuIo(flat.path, "vmdk", readonly=True) as reader:
            assert "read 512/512 bytes" in reader.do("read 0 512")
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r+")
            assert isinstance(caught.value, BlockingIOError)
        image.reopen(mode="r+")
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * 3
    os.close(fd)


def test_row_12_extents_of_a_passed_descriptor_have_the_names_that_the_image_uses(
    tmp_path: Path, stash: FDStash, monkeypatch: pytest.MonkeyPatch
) -> None:
    extents = [ExtentSpec("RW", 128, name="a.bin"), ExtentSpec("RW", 128, name="sub/b.bin")]
    disk = make_flat(tmp_path / "real", extents)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for name, path in zip(("disk.vmdk", "a.bin", "sub/b.bin"), disk.files, strict=True):
        stash.give(name, os.open(path, os.O_RDWR))
    with fdstash.open("disk.vmdk", "r+", stash=stash) as image:
        assert [file.name for file in image.files] == ["disk.vmdk", "a.bin", "sub/b.bin"]
        assert read_all(image) == disk.guest_bytes()
    # The same under the name of a set of descriptors, which is a folder to nobody but QEMU.
    fd = stash.take("disk.vmdk")
    stash.give("/dev/fdset/1", fd)
    with fdstash.open("/dev/fdset/1", "r+", stash=stash) as image:
        assert [file.name for file in image.files][1:] == [
            "/dev/fdset/a.bin",
            "/dev/fdset/sub/b.bin",
        ]
        assert read_all(image) == disk.guest_bytes()


# ----------------------------------------------------------- 14: descriptors that lie


def lying(folder: Path, extents: list[ExtentSpec], create_type: str = "monolithicFlat") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "disk.vmdk"
    path.write_text(descriptor_text(extents, create_type))
    return path


def names_of(folder: Path) -> dict[str, str]:
    return {
        "traversal": "../secret",
        "detour": "../images/../secret",
        "absolute": str(folder / "secret"),
        "device": "/dev/zero",
    }


@pytest.mark.parametrize("kind", ["traversal", "detour", "absolute", "device"])
def test_row_14_a_header_names_no_file_outside_its_folder(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(b"S" * SIZE)
    text = names_of(tmp_path)[kind]
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name=text)])
    for mode in ("r", "r+"):
        with pytest.raises(RefusedError, match="resolver=") as caught:
            fdstash.open(path, mode)
        assert caught.value.filename == text
    assert locked_bytes(path) == []


@pytest.mark.parametrize("kind", ["traversal", "detour", "absolute"])
def test_row_14_qemu_reads_what_a_header_names_anywhere(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(b"S" * SIZE)
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name=names_of(tmp_path)[kind])])
    ran = qemu_io(path, f"read -P {ord('S')} 0 4096", format="vmdk", options=["-r"])
    assert ran.status == 0, ran


def limited(limit: str, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A program of QEMU that may die of what it is given, with a limit and no core file."""
    command = [need_program("prlimit", "util-linux"), "--core=0", limit]
    return subprocess.run(
        [*command, need_program(program, "qemu-utils"), *arguments],
        env=plain_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_row_14_an_image_of_read_only_extents_is_read_and_not_written(tmp_path: Path) -> None:
    disk = make_flat(tmp_path, [ExtentSpec("RDONLY", 128, name="a.bin")])
    with fdstash.open(disk.path) as image:
        assert read_all(image) == disk.guest_bytes()
        assert len(image.files) == 2
    with pytest.raises(FormatError, match="none is RW"):
        fdstash.open(disk.path, "r+")


def test_row_14_qemu_dies_of_an_image_of_read_only_extents(tmp_path: Path) -> None:
    disk = make_flat(
        tmp_path, [ExtentSpec("RDONLY", 128, name="a.bin")], create_type="monolithicFlat"
    )
    done = limited("--nofile=300", "qemu-img", "info", disk.path)
    assert done.returncode == -signal.SIGABRT
    assert "num_extents" in done.stderr


def naming_itself(folder: Path) -> dict[str, Path]:
    """A flat extent, one in a detour, and a sparse one that are the descriptor itself."""
    found = {
        "flat": lying(folder / "flat", [ExtentSpec("RW", 1, name="disk.vmdk")]),
        "link": lying(folder / "link", [ExtentSpec("RW", 1, name="other.vmdk")]),
        "sparse": folder / "sparse.vmdk",
    }
    (folder / "link/other.vmdk").symlink_to("disk.vmdk")
    text = descriptor_text([ExtentSpec("RW", 128, "SPARSE", "sparse.vmdk")], "twoGbMaxExtentSparse")
    header = struct.pack(
        *("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 0, 0, b"\n \r\n", 0)
    )
    embedded = text.replace('" 0\n', '"\n').encode().ljust(20 * 512, b"\0")
    found["sparse"].write_bytes(header.ljust(512, b"\0") + embedded + bytes(SIZE))
    return found


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", ["flat", "link", "sparse"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_row_14_an_image_that_names_itself_is_refused(tmp_path: Path, kind: str, mode: str) -> None:
    path = naming_itself(tmp_path)[kind]
    with pytest.raises(FormatError) as caught:
        fdstash.open(path, mode, format="vmdk")
    assert caught.value.file == str(path)


def test_row_14_qemu_opens_an_image_that_names_itself_until_descriptors_end(
    tmp_path: Path,
) -> None:
    path = naming_itself(tmp_path)["sparse"]
    done = limited("--nofile=300", "qemu-img", "info", path)
    assert done.returncode != 0
    assert "Too many open files" in done.stderr  # with more of them its stack ends first


def test_row_14_a_device_is_opened_only_where_a_resolver_allows_it(tmp_path: Path) -> None:
    path = lying(tmp_path / "images", [ExtentSpec("RW", 8, name="/dev/zero")])
    with pytest.raises(ImageIOError) as caught:  # allowed by name, and still no disk
        fdstash.open(path, resolver=fdstash.anywhere)
    assert caught.value.errno == errno.EINVAL


def test_what_is_left_of_the_images_is_an_image_to_qemu(flat: FlatDisk) -> None:
    with fdstash.open(flat.path, "r+") as image:
        image.pwrite(b"\x11" * 4096, SIZE - 2048)
    assert qemu_io(flat.path, f"read -P 0x11 {SIZE - 2048} 4096", format="vmdk").status == 0
    assert qemu_img("check", "-f", "vmdk", flat.path).status == 0
