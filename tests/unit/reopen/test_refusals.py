"""What a reopen refuses, with everything left as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import FDStash, FormatError, Image, LockError, OptionError, ReopenError
from tests.support.disks import ODD_EXTENTS, FlatDisk, descriptor_text, make_flat
from tests.support.images import SIZE
from tests.support.other_user import let_in, without_permissions
from tests.support.refusals import Snapshot, refused
from tests.support.seen import READER_BYTES, WRITER_BYTES, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_an_extent_that_was_replaced_is_refused_by_path(image: Image, flat: FlatDisk) -> None:
    data = flat.files[3].read_bytes()
    flat.files[3].unlink()
    flat.files[3].write_bytes(data)
    error = refused(image, path=flat.path)
    assert (error.phase, error.file, error.errno) == ("acquire", str(flat.files[3]), errno.ESTALE)


def test_an_extent_that_is_gone_is_refused_by_path_and_not_needed_otherwise(
    image: Image, flat: FlatDisk
) -> None:
    flat.files[3].unlink()
    error = refused(image, path=flat.path)
    assert isinstance(error, FileNotFoundError)
    assert (error.phase, error.file, error.filename) == ("acquire", *[str(flat.files[3])] * 2)
    image.reopen(mode="r")
    image.reopen(cache="none", mode="r+")


def test_a_stash_with_another_file_is_refused(image: Image, flat: FlatDisk, stash: FDStash) -> None:
    stash.give(str(flat.files[2]), os.open(flat.files[3], os.O_RDONLY))
    error = refused(image, mode="r", stash=stash)
    assert (error.phase, error.file, error.errno) == ("acquire", str(flat.files[2]), errno.ESTALE)
    assert len(stash) == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "null"])
def test_a_stash_with_no_file_at_all_is_refused(
    raw_image: Image, raw: Path, stash: FDStash, kind: str
) -> None:
    if kind == "pipe":
        reading, writing = os.pipe()
        os.close(writing)
    else:
        reading = os.open(raw.parent if kind == "folder" else "/dev/null", os.O_RDONLY)
    stash.give(str(raw), reading)
    assert refused(raw_image, mode="r", stash=stash).file == str(raw)


def test_a_stash_whose_description_appends_is_refused(
    raw_image: Image, raw: Path, stash: FDStash
) -> None:
    stash.give(str(raw), os.open(raw, os.O_RDWR | os.O_APPEND))
    error = refused(raw_image, stash=stash, cache="writethrough")
    assert (error.errno, error.file) == (errno.EBADF, str(raw))


def test_a_name_of_the_stash_that_would_serve_two_files_is_refused(
    tmp_path: Path, stash: FDStash
) -> None:
    specs = [spec._replace(name=f"{n}/data.bin") for n, spec in enumerate(ODD_EXTENTS[:2])]
    disk = make_flat(tmp_path, specs)
    stash.give("data.bin", os.open(tmp_path / "0/data.bin", os.O_RDONLY))
    with fdstash.open(disk.path, "r+") as image:
        error = refused(image, mode="r", stash=stash)
        assert isinstance(error, PermissionError)
        assert error.phase == "acquire"


@pytest.mark.parametrize(
    "options",
    [{"mode": "w"}, {"mode": "rw"}, {"cache": "direct"}, {"mode": "r", "cache": ""}],
)
def test_an_option_that_cannot_be_is_an_option_error_and_changes_nothing(
    image: Image, options: dict[str, str]
) -> None:
    with Snapshot(image) as before:
        with pytest.raises(OptionError):
            image.reopen(**options)
        before.assert_same()


def test_a_backing_file_is_refused_where_there_can_be_none(image: Image) -> None:
    assert refused(image, backing="other").errno == errno.ENOTSUP


@pytest.mark.parametrize("gone", ["closed", "replaced"])
def test_a_slot_that_others_closed_or_replaced_is_found_out(
    raw: Path, tmp_path: Path, gone: str
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(SIZE))
    image = fdstash.open(raw, "r+", format="raw", lock=False)
    slot = image.files[0].fd
    kept = os.dup(slot)
    if gone == "closed":
        os.close(slot)
    else:
        fd = os.open(other, os.O_RDWR)
        os.dup2(fd, slot, inheritable=False)
        os.close(fd)
    for options in ({"mode": "r"}, {"cache": "none"}):
        with pytest.raises(ReopenError) as caught:
            image.reopen(**options)
        assert caught.value.file == str(raw)
        assert caught.value.rolled_back
    os.dup2(kept, slot, inheritable=False)
    os.close(kept)
    image.reopen(mode="r", cache="none")
    assert image.pread(SIZE, 0) == raw.read_bytes()
    image.close()


def test_a_descriptor_that_changed_on_disk_is_refused_with_the_reason_as_its_cause(
    flat: FlatDisk,
) -> None:
    with fdstash.open(flat.path) as image:
        text = descriptor_text([*flat.extents[1:], flat.extents[0]])
        flat.path.write_text(text)
        error = refused(image, mode="r+")
        assert (error.errno, error.file, error.phase) == (errno.EINVAL, str(flat.path), "prove")
        assert isinstance(error.__cause__, FormatError)


def test_a_new_cid_on_disk_is_taken_over(flat: FlatDisk) -> None:
    with fdstash.open(flat.path) as image:
        flat.path.write_text(flat.path.read_text().replace("CID=12345678", "CID=0badcafe", 1))
        image.reopen(mode="r+")
        assert image.format_info["cid"] == 0x0BADCAFE
        image.pwrite(b"x", 0)
    assert "CID=0badcafe" not in flat.path.read_text()


def test_a_conflicting_lock_is_refused_before_anything_changes(flat: FlatDisk) -> None:
    with fdstash.open(flat.path) as image, fdstash.open(flat.files[3], format="raw"):
        error = refused(image, mode="r+")
        assert isinstance(error, BlockingIOError)
        assert (error.phase, error.file) == ("prove", str(flat.files[3]))
        assert isinstance(error.__cause__, LockError)
        assert [locked_bytes(path) for path in flat.files] == [
            READER_BYTES,
            READER_BYTES,
            READER_BYTES,
            sorted(READER_BYTES * 2),
            READER_BYTES,
        ]
    with fdstash.open(flat.path) as image:
        image.reopen(mode="r+")
        assert [locked_bytes(path) for path in flat.files] == [WRITER_BYTES] * 5


@pytest.mark.root
def test_permission_that_was_taken_away_is_named_and_nothing_changes(
    flat: FlatDisk,
) -> None:
    let_in(flat.path.parent)
    flat.files[2].chmod(0o444)
    with without_permissions(), fdstash.open(flat.path) as image:
        error = refused(image, mode="r+")
        assert isinstance(error, PermissionError)
        assert error.phase == "acquire"
        assert error.file == str(flat.path)
        assert "r+" in str(error)


def test_an_error_of_a_reopen_is_also_the_builtin_of_its_errno(raw_image: Image) -> None:
    error = refused(raw_image, path="none", timeout=5)
    assert isinstance(error, FileNotFoundError)
    assert isinstance(error, fdstash.Error)
    assert error.strerror is not None
