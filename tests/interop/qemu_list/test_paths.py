"""Rows 2 to 4: a path that has changed, another file at it, and another path."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import fdstash
from fdstash import ImageIOError, ReopenError
from tests.support.disks import FlatDisk, make_flat_for_qemu, make_raw
from tests.support.images import SIZE, read_all
from tests.support.qmp import StorageDaemon, StorageDaemonError, file_node
from tests.support.seen import assert_as_kernel_says


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
        daemon.reopen(file_node(raw, **{"read-only": True}))


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
    assert list(daemon.flags_in(raw.parent)) == ["moved.raw"]
    make_raw(raw.parent, SIZE, seed=9)
    daemon.reopen(file_node(raw, **{"read-only": True}))
    assert list(daemon.flags_in(raw.parent)) == ["disk.raw"]


def test_row_4_another_path_is_taken_whole_with_the_image_drained_for_it(
    flat: FlatDisk, tmp_path: Path
) -> None:
    copy = make_flat_for_qemu(tmp_path / "copy", seed=None)
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
        daemon.reopen(file_node(other))
