"""A reopen changes all of an image or nothing, and says which of the two it was."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

import fdstash
from fdstash import (
    ClosedError,
    FDStash,
    FormatError,
    Image,
    ImageIOError,
    LockError,
    OptionError,
    ReopenError,
    reopen_all,
)
from fdstash.datapath import Requests
from fdstash.report import PHASES
from tests.support.disks import ODD_EXTENTS, FlatDisk, descriptor_text, make_flat, make_raw, noise
from tests.support.kernel import access_mode, getfl, open_descriptors, same_description
from tests.support.need import need_root
from tests.support.seen import READER_BYTES, WRITER_BYTES, assert_as_kernel_says, locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")

SIZE = 1 << 16


@pytest.fixture
def stash() -> Iterator[FDStash]:
    with FDStash() as made:
        yield made


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_raw(tmp_path, SIZE)


@pytest.fixture
def flat(tmp_path: Path) -> FlatDisk:
    return make_flat(tmp_path)


@pytest.fixture
def image(flat: FlatDisk) -> Iterator[Image]:
    with fdstash.open(flat.path, "r+") as opened:
        yield opened


@pytest.fixture
def raw_image(raw: Path) -> Iterator[Image]:
    with fdstash.open(raw, "r+", format="raw") as opened:
        yield opened


class Snapshot:
    """All that a failed reopen must leave as it was."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.seen = self._look()
        # Dups of the slots: after a failure they are still the same descriptions.
        self.copies = [os.dup(file.fd) for file in image.files]

    def _look(self) -> tuple[object, ...]:
        image = self.image
        locks = [locked_bytes(file.fd) for file in image.files]
        data = image.pread(image.size, 0)
        return image.mode, image.cache, image.format, image.files, locks, data

    def assert_same(self, *, descriptions: bool = True) -> None:
        before = self.seen
        assert self._look() == before
        assert_as_kernel_says(self.image)
        slots = [file.fd for file in self.image.files]
        if descriptions:
            assert all(map(same_description, slots, self.copies))
        if self.image.mode == "r+":
            for offset in (0, self.image.size - 3):
                self.image.pwrite(self.image.pread(3, offset), offset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self.copies:
            os.close(copy)


def refused(image: Image, **options: Any) -> ReopenError:
    """Reopen, which must fail and leave everything as it was."""
    with Snapshot(image) as before:
        descriptors = open_descriptors()
        with pytest.raises(ReopenError) as caught:
            image.reopen(**options)
        assert open_descriptors() == descriptors
        before.assert_same()
    assert caught.value.rolled_back
    assert caught.value.phase in PHASES
    assert "rolled back" in str(caught.value)
    return caught.value


# ----------------------------------------------------------- routes and report


def test_a_reopen_that_changes_nothing_keeps_every_description(image: Image) -> None:
    with Snapshot(image) as before:
        report = image.reopen()
        assert set(report.routes.values()) == {"keep"}
        assert report.files_changed == 0
        before.assert_same()


def test_a_cache_toggle_sets_flags_and_keeps_the_descriptions(image: Image) -> None:
    with Snapshot(image) as before:
        for cache in ("none", "writeback"):
            report = image.reopen(cache=cache)
            assert set(report.routes.values()) == {"setfl"}
            assert report.files_changed == len(image.files)
            assert_as_kernel_says(image)
        before.assert_same()


@pytest.mark.parametrize(
    ("cache", "changed"), [("writethrough", False), ("unsafe", False), ("directsync", True)]
)
def test_a_cache_mode_that_differs_in_no_flag_needs_no_descriptor(
    image: Image, cache: str, changed: bool
) -> None:
    report = image.reopen(cache=cache)
    assert image.cache == cache
    assert (report.files_changed > 0) == changed
    assert_as_kernel_says(image)


def test_another_mode_is_a_new_description_through_proc(image: Image) -> None:
    with Snapshot(image) as before:
        for mode in ("r", "r+"):
            report = image.reopen(mode=mode)
            assert set(report.routes.values()) == {"proc"}
            assert report.files_changed == len(image.files)
            assert {file.mode for file in image.files} == {mode}
            assert_as_kernel_says(image)
            for file, copy in zip(image.files, before.copies, strict=True):
                assert not same_description(file.fd, copy)
        before.assert_same(descriptions=False)


def test_the_own_path_is_walked_again(image: Image) -> None:
    assert image.files[0].path is not None
    report = image.reopen(path=image.files[0].path)
    assert set(report.routes.values()) == {"path"}
    assert report.files_changed == len(image.files)


def test_a_stash_serves_the_files_that_it_holds_and_other_routes_the_rest(
    image: Image, flat: FlatDisk, stash: FDStash
) -> None:
    stash.give(str(flat.files[2]), os.open(flat.files[2], os.O_RDONLY))
    stash.give(flat.files[4].name, os.open(flat.files[4], os.O_RDONLY))  # by its last component
    routes = image.reopen(mode="r", stash=stash).routes
    by_name = {Path(name).name: route for name, route in routes.items()}
    assert by_name == {
        "disk.vmdk": "proc",
        "disk-a.bin": "proc",
        "disk-b.bin": "stash",
        "disk-c.bin": "proc",
        "disk-d.bin": "stash",
    }
    copy = stash.dup(str(flat.files[2]))
    assert same_description(copy, image.files[2].fd)
    os.close(copy)


def test_a_stash_without_the_mode_wanted_leaves_it_to_the_other_routes(
    image: Image, flat: FlatDisk, stash: FDStash
) -> None:
    for path in flat.files:
        stash.give(str(path), os.open(path, os.O_RDWR))
    assert set(image.reopen(mode="r", stash=stash).routes.values()) == {"proc"}


def test_the_report_tells_routes_phases_and_requests(image: Image) -> None:
    report = image.reopen(mode="r")
    assert list(report.routes) == [file.name for file in image.files]
    assert tuple(report.phases) == PHASES
    assert all(time_ns >= 0 for time_ns in report.phases.values())
    assert sum(report.phases.values()) == report.total_ns > 0
    assert report.requests_in_flight == 0
    assert report.close_errors == ()
    assert report.warnings == ()
    assert f"{len(image.files)} of {len(image.files)} files changed (proc)" in repr(report)


def test_the_report_counts_the_requests_in_flight(raw_image: Image) -> None:
    with ExitStack() as requests:
        for _ in range(3):
            requests.enter_context(request_in_flight(raw_image, Requests.READS))
        assert raw_image.reopen(cache="none").requests_in_flight == 3
    assert raw_image.reopen(cache="writeback").requests_in_flight == 0


def test_a_reopen_moves_no_slot(image: Image) -> None:
    slots = [file.fd for file in image.files]
    for options in ({"mode": "r"}, {"cache": "none"}, {"mode": "r+"}, {"cache": "unsafe"}):
        image.reopen(**options)
        assert [file.fd for file in image.files] == slots


def test_an_option_left_out_stays_as_it_is(image: Image) -> None:
    image.reopen(cache="directsync")
    assert image.mode == "r+"
    image.reopen(mode="r")
    assert image.cache == "directsync"
    image.reopen(cache="unsafe")
    assert image.mode == "r"


def test_every_change_of_mode_and_cache_is_possible_and_leaks_nothing(image: Image) -> None:
    expected = image.pread(image.size, 0)
    combinations = [
        (mode, cache)
        for mode in ("r", "r+")
        for cache in ("writeback", "none", "writethrough", "directsync", "unsafe")
    ]
    descriptors = len(open_descriptors())
    for first in combinations:
        for second in combinations:
            for mode, cache in (first, second):
                image.reopen(mode=mode, cache=cache)
                assert (image.mode, image.cache) == (mode, cache)
                assert_as_kernel_says(image)
            assert len(open_descriptors()) == descriptors
    assert image.pread(image.size, 0) == expected


def test_writes_follow_the_mode(image: Image) -> None:
    image.reopen(mode="r")
    with pytest.raises(ImageIOError) as caught:
        image.pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    image.reopen(mode="r+")
    image.pwrite(b"x", 0)
    assert image.pread(1, 0) == b"x"


def test_reopen_works_after_the_image_was_made_smaller(raw_image: Image) -> None:
    raw_image.resize(4096)
    raw_image.reopen(mode="r")
    raw_image.reopen(mode="r+")
    raw_image.resize(SIZE)
    raw_image.reopen(mode="r", path=raw_image.files[0].path)
    assert raw_image.pread(SIZE, 4096) == bytes(SIZE - 4096)


# ------------------------------------------------------------------- extract


def test_after_extract_fds_flags_are_changed_by_new_descriptions(
    image: Image, stash: FDStash
) -> None:
    image.extract_fds(stash)
    assert stash.names() == [file.name for file in image.files]
    copies = [stash.take(name) for name in stash.names()]
    assert all(map(same_description, copies, (file.fd for file in image.files)))
    assert set(image.reopen(cache="none").routes.values()) == {"proc"}
    for copy in copies:
        assert not getfl(copy) & os.O_DIRECT
        os.close(copy)
    # The new descriptions are the image's own again.
    assert set(image.reopen(cache="writeback").routes.values()) == {"setfl"}


def test_a_received_description_is_never_changed(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        assert set(image.reopen(cache="none").routes.values()) == {"proc"}
        assert not getfl(fd) & os.O_DIRECT
    os.close(fd)


def test_a_description_from_a_stash_is_never_changed(
    raw_image: Image, raw: Path, stash: FDStash
) -> None:
    stash.give(str(raw), os.open(raw, os.O_RDONLY))
    raw_image.reopen(mode="r", stash=stash)
    assert set(raw_image.reopen(cache="none").routes.values()) == {"proc"}
    copy = stash.dup(str(raw))
    assert not getfl(copy) & os.O_DIRECT
    os.close(copy)


def test_extract_fds_that_fails_gives_the_stash_nothing(image: Image) -> None:
    stash = FDStash()
    stash.close()
    before = open_descriptors()
    with pytest.raises(ClosedError):
        image.extract_fds(stash)
    assert open_descriptors() == before


def test_the_way_of_the_rfc_opens_the_image_again_from_what_was_extracted(
    image: Image, stash: FDStash, flat: FlatDisk
) -> None:
    image.pwrite(b"before", 20000)
    image.extract_fds(stash)
    image.close()
    for path in flat.files:
        path.rename(path.with_suffix(".moved"))
    with fdstash.open(flat.path, "r+", stash=stash) as again:
        assert again.pread(6, 20000) == b"before"
        assert len(stash) == len(flat.files)


# ------------------------------------------------------------------- refusals


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


# ------------------------------------------------------------ path and prepare


def test_another_path_serves_the_same_content_from_other_files(
    image: Image, tmp_path: Path, flat: FlatDisk
) -> None:
    copy = make_flat(tmp_path / "copy")
    old = image.files
    report = image.reopen(path=copy.path, mode="r")
    assert set(report.routes.values()) == {"path"}
    assert list(report.routes) == [str(path) for path in copy.files]
    assert report.files_changed == len(copy.files)
    assert [file.name for file in image.files] == [str(path) for path in copy.files]
    assert not {file.inode for file in old} & {file.inode for file in image.files}
    assert image.pread(image.size, 0) == copy.guest_bytes()
    assert_as_kernel_says(image)
    assert [locked_bytes(path) for path in flat.files] == [[]] * 5
    assert [locked_bytes(path) for path in copy.files] == [READER_BYTES] * 5


def test_prepare_can_make_the_copy_that_the_new_path_needs(raw_image: Image, raw: Path) -> None:
    other = raw.with_name("other.raw")
    other.write_bytes(bytes(SIZE))
    raw_image.pwrite(b"before the copy", 4000)

    def copy() -> None:
        other.write_bytes(raw_image.pread(SIZE, 0))

    report = raw_image.reopen(path=other, prepare=copy)
    assert report.phases["prepare"] > 0
    assert raw_image.pread(15, 4000) == b"before the copy"
    raw_image.pwrite(b"after", 0)
    assert other.read_bytes()[:5] == b"after"
    assert raw.read_bytes()[:5] != b"after"


def test_a_new_path_of_another_size_is_refused(raw_image: Image, raw: Path) -> None:
    for size in (SIZE - 512, SIZE + 512, 0):
        other = make_raw(raw.parent, size, name="other.raw")
        error = refused(raw_image, path=other)
        assert (error.errno, error.file) == (errno.EINVAL, str(other))


def test_a_new_path_of_another_format_is_refused(raw: Path, flat: FlatDisk) -> None:
    for path, other in ((flat.path, raw), (raw, flat.path)):
        with fdstash.open(path) as image:
            error = refused(image, path=other)
            assert (error.errno, error.file) == (errno.EINVAL, str(other))


def test_a_new_path_that_is_missing_in_part_is_refused(
    image: Image, tmp_path: Path, flat: FlatDisk
) -> None:
    copy = make_flat(tmp_path / "copy")
    copy.files[4].unlink()
    error = refused(image, path=copy.path)
    assert isinstance(error, FileNotFoundError)
    assert (error.phase, error.file) == ("acquire", str(copy.files[4]))
    assert refused(image, path=tmp_path / "none").file == str(tmp_path / "none")


def test_a_new_path_is_held_to_what_the_resolver_allows(image: Image, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy/disk.vmdk"
    copy.write_text(
        descriptor_text([s._replace(name=f"../{s.name}") for s in make_flat(tmp_path).extents])
    )
    assert isinstance(refused(image, path=copy), PermissionError)
    image.reopen(path=copy, resolver=fdstash.Beneath(tmp_path))


def test_a_path_change_can_be_served_by_a_stash_alone(
    raw_image: Image, raw: Path, stash: FDStash
) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw", seed=9)
    stash.give("not/a/path.raw", os.open(other, os.O_RDWR))
    report = raw_image.reopen(path="not/a/path.raw", stash=stash)
    assert report.routes == {"not/a/path.raw": "stash"}
    assert raw_image.files[0].path is None
    assert raw_image.pread(SIZE, 0) == noise(SIZE, 9)
    assert len(stash) == 1


@pytest.mark.parametrize("other_path", [False, True])
def test_prepare_that_raises_leaves_everything_as_it_was(
    image: Image, tmp_path: Path, other_path: bool
) -> None:
    path = make_flat(tmp_path / "copy").path if other_path else None

    def prepare() -> None:
        raise RuntimeError("no copy today")

    error = refused(image, path=path, cache="none", prepare=prepare)
    assert (error.errno, error.phase) == (errno.ECANCELED, "prepare")
    assert "no copy today" in str(error)
    assert isinstance(error.__cause__, RuntimeError)


def test_an_interrupt_in_prepare_comes_through_and_leaves_everything_as_it_was(
    image: Image,
) -> None:
    def prepare() -> None:
        raise KeyboardInterrupt

    with Snapshot(image) as before:
        with pytest.raises(KeyboardInterrupt):
            image.reopen(cache="none", prepare=prepare)
        before.assert_same()


def test_prepare_may_read_and_may_not_write_reopen_or_close(image: Image) -> None:
    expected = image.pread(100, 0)
    seen: list[object] = []

    def attempt(call: Callable[[], object]) -> object:
        try:
            return call()
        except OSError as error:
            return error.errno

    def prepare() -> None:
        seen.append(attempt(lambda: image.pread(100, 0)))
        seen.append(attempt(lambda: image.pwrite(b"x", 0)))
        seen.append(attempt(lambda: image.pwrite(bytes(4096), 4096)))
        seen.append(attempt(lambda: image.zero(512, 0)))
        seen.append(attempt(lambda: image.reopen(mode="r")))
        seen.append(attempt(lambda: reopen_all([(image, {})])))
        seen.append(attempt(image.close))
        seen.append(attempt(lambda: image.resize(512)))
        seen.append(attempt(lambda: image.pwrite(b"x", 0)))  # the gate is still closed

    image.reopen(cache="none", prepare=prepare)
    assert seen[0] == expected
    assert seen[1:] == [errno.EDEADLK] * 8
    assert not image.closed
    assert image.cache == "none"


@pytest.mark.threads
def test_writes_wait_for_prepare_and_reads_do_not(image: Image) -> None:
    inside, leave = threading.Event(), threading.Event()
    done: list[str] = []

    def prepare() -> None:
        inside.set()
        assert leave.wait(30)

    def write() -> None:
        image.pwrite(b"w" * 512, 512)
        done.append("write")

    reopening = threading.Thread(target=lambda: image.reopen(cache="none", prepare=prepare))
    reopening.start()
    assert inside.wait(30)
    writing = threading.Thread(target=write)
    writing.start()
    image.pread(1 << 14, 0)  # would never return
    writing.join(0.1)
    assert done == []
    leave.set()
    writing.join(30)
    reopening.join(30)
    assert done == ["write"]
    assert image.pread(512, 512) == b"w" * 512


# -------------------------------------------------------------------- timeouts


@contextmanager
def request_in_flight(image: Image, kind: Requests) -> Iterator[None]:
    """As if another thread had a request of that kind in flight."""
    ticket = image._state.core.enter(int(kind))
    try:
        yield
    finally:
        image._state.core.leave(ticket, int(kind))


@pytest.mark.parametrize(
    ("kind", "options", "waits"),
    [
        (Requests.WRITES, {"mode": "r"}, True),
        (Requests.UNALIGNED_WRITES, {"mode": "r"}, True),
        (Requests.UNALIGNED_WRITES, {"cache": "none"}, True),
        (Requests.WRITES, {"cache": "none"}, False),
        (Requests.WRITES, {"prepare": lambda: None}, True),
        (Requests.READS, {"mode": "r", "cache": "none"}, False),
        (Requests.FLUSHES, {"mode": "r", "cache": "none"}, False),
        (Requests.UNALIGNED_WRITES, {"cache": "writethrough"}, False),
    ],
)
def test_a_reopen_waits_for_what_it_would_make_wrong_and_for_nothing_else(
    raw_image: Image, kind: Requests, options: dict[str, Any], waits: bool
) -> None:
    with request_in_flight(raw_image, kind):
        if waits:
            error = refused_but_for_writes(raw_image, timeout=0.05, **options)
            assert isinstance(error, TimeoutError)
            assert (error.errno, error.phase) == (errno.ETIMEDOUT, "gate")
        else:
            raw_image.reopen(timeout=30, **options)
    raw_image.reopen(**options)


def refused_but_for_writes(image: Image, **options: Any) -> ReopenError:
    """As `refused`, with a request in flight."""
    files, mode, cache = image.files, image.mode, image.cache
    with pytest.raises(ReopenError) as caught:
        image.reopen(**options)
    assert caught.value.rolled_back
    assert (image.files, image.mode, image.cache) == (files, mode, cache)
    image.pwrite(image.pread(5, 5), 5)  # nothing is held any more
    return caught.value


def test_another_path_waits_for_writes_and_not_for_reads(raw_image: Image, raw: Path) -> None:
    other = make_raw(raw.parent, SIZE, name="other.raw")
    for kind in (Requests.WRITES, Requests.UNALIGNED_WRITES):
        with request_in_flight(raw_image, kind):
            error = refused_but_for_writes(raw_image, path=other, timeout=0.05)
        assert (error.errno, error.phase) == (errno.ETIMEDOUT, "gate")
    with request_in_flight(raw_image, Requests.READS):
        raw_image.reopen(path=other)
        assert raw_image.files[0].path == str(other)
        assert raw_image.pread(100, 0) == noise(SIZE, 1)[:100]
    raw_image.reopen()  # sweeps what the read kept open


def test_a_timeout_of_nothing_is_enough_where_nothing_is_waited_for(image: Image) -> None:
    image.reopen(mode="r", timeout=0)
    image.reopen(cache="none", timeout=0)
    image.reopen(mode="r+", timeout=None)


@pytest.mark.threads
def test_a_second_reopen_waits_for_the_first_at_most_for_its_timeout(raw_image: Image) -> None:
    inside, leave = threading.Event(), threading.Event()

    def prepare() -> None:
        inside.set()
        assert leave.wait(30)

    first = threading.Thread(target=lambda: raw_image.reopen(mode="r", prepare=prepare))
    first.start()
    assert inside.wait(30)
    start = time.monotonic()
    for call in (
        lambda: raw_image.reopen(cache="none", timeout=0.05),
        lambda: reopen_all([(raw_image, {"cache": "none"})], timeout=0.05),
    ):
        with pytest.raises(ReopenError) as caught:
            call()
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.rolled_back
    assert time.monotonic() - start < 20
    leave.set()
    first.join(30)
    assert (raw_image.mode, raw_image.cache) == ("r", "writeback")


# ------------------------------------------------------------------ reopen_all


def test_several_images_change_together(image: Image, raw_image: Image) -> None:
    reports = reopen_all([(image, {"mode": "r"}), (raw_image, {"cache": "none"})])
    assert [len(report.routes) for report in reports] == [5, 1]
    assert set(reports[0].routes.values()) == {"proc"}
    assert set(reports[1].routes.values()) == {"setfl"}
    assert (image.mode, image.cache, raw_image.mode, raw_image.cache) == (
        *("r", "writeback"),
        *("r+", "none"),
    )
    assert reopen_all([]) == []


def fail_in(phase: str, raw: Path) -> dict[str, Any]:
    """Options with which the reopen of a raw image fails in that phase."""
    if phase == "acquire":
        return {"path": raw.with_name("none")}
    if phase == "prove":
        return {"path": make_raw(raw.parent, SIZE // 2, name="short.raw")}
    if phase == "gate":
        return {"mode": "r"}

    def prepare() -> None:
        raise RuntimeError("on purpose")

    return {"prepare": prepare}


@pytest.mark.parametrize("phase", ["acquire", "prove", "gate", "prepare"])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("other", [{"mode": "r", "cache": "none"}, {"path": "copy/disk.vmdk"}])
def test_none_changes_where_one_fails(
    image: Image, raw_image: Image, phase: str, place: int, other: dict[str, str]
) -> None:
    raw = Path(raw_image.name)
    folder = raw.parent / "copy"
    make_flat(folder)
    if "path" in other:
        other = {"path": str(raw.parent / other["path"])}
    pairs: list[tuple[Image, dict[str, Any]]] = [(image, other)]
    pairs.insert(place, (raw_image, fail_in(phase, raw)))
    with Snapshot(image) as one, Snapshot(raw_image) as two:
        with ExitStack() as requests:
            if phase == "gate":
                requests.enter_context(request_in_flight(raw_image, Requests.WRITES))
            with pytest.raises(ReopenError) as caught:
                reopen_all(pairs, timeout=0.2)
        assert caught.value.phase == phase
        assert caught.value.rolled_back
        one.assert_same()
        two.assert_same()


def test_an_image_named_twice_is_an_error_and_nothing_changes(image: Image) -> None:
    with Snapshot(image) as before:
        with pytest.raises(OptionError):
            reopen_all([(image, {"mode": "r"}), (image, {"cache": "none"})])
        before.assert_same()


def test_an_image_that_is_closed_stops_all(image: Image, raw: Path) -> None:
    closed = fdstash.open(raw)
    closed.close()
    for pairs in ([(image, {"mode": "r"}), (closed, {})], [(closed, {}), (image, {"mode": "r"})]):
        with Snapshot(image) as before:
            with pytest.raises(ClosedError):
                reopen_all(pairs)
            before.assert_same()
    image.reopen(mode="r")  # no lock was left behind


def test_options_that_cannot_be_stop_all_before_anything_changes(
    image: Image, raw_image: Image
) -> None:
    with Snapshot(image) as before:
        with pytest.raises(OptionError):
            reopen_all([(image, {"mode": "r"}), (raw_image, {"mode": "x"})])
        with pytest.raises(TypeError):
            reopen_all([(image, {"mode": "r"}), (raw_image, {"colour": "x"})])
        before.assert_same()
    image.reopen(mode="r")
    raw_image.reopen(mode="r")


# ----------------------------------------------------------------------- more


@pytest.mark.root
def test_permission_that_was_taken_away_is_named_and_nothing_changes(
    flat: FlatDisk,
) -> None:
    need_root("another user id")
    flat.path.parent.chmod(0o755)
    for folder in flat.path.parents:
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    flat.files[2].chmod(0o444)
    os.seteuid(65534)
    try:
        with fdstash.open(flat.path) as image:
            error = refused(image, mode="r+")
            assert isinstance(error, PermissionError)
            assert error.phase == "acquire"
            assert error.file == str(flat.path)
            assert "r+" in str(error)
    finally:
        os.seteuid(0)


def test_descriptors_below_a_lowered_limit_are_missed_before_anything_changes(
    image: Image,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Snapshot(image) as before:
        held = open_descriptors()
        fourth_free = [n for n in range(max(held) + 5) if n not in held][3]
        resource.setrlimit(resource.RLIMIT_NOFILE, (fourth_free, limits[1]))
        try:
            with pytest.raises(ReopenError) as caught:
                image.reopen(mode="r")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        before.assert_same()
    assert caught.value.errno == errno.EMFILE
    assert "raise_nofile" in str(caught.value)
    assert str(3 * len(image.files) + 1) in str(caught.value)


def test_a_change_of_mode_needs_three_descriptors_a_file_at_most(
    flat: FlatDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks: list[int] = []
    with fdstash.open(flat.path, "r+") as image:
        at_rest = len(open_descriptors())
        image.reopen(mode="r", prepare=lambda: peaks.append(len(open_descriptors())))
        assert peaks == [at_rest + len(image.files) + 1]
        assert len(open_descriptors()) == at_rest


def test_an_image_of_n_files_holds_two_n_descriptors(flat: FlatDisk) -> None:
    before = len(open_descriptors())
    with fdstash.open(flat.path, "r+") as image:
        assert len(open_descriptors()) == before + 2 * len(image.files)
    with fdstash.open(flat.path, "r+", lock=False) as image:
        assert len(open_descriptors()) == before + len(image.files)


def test_a_forked_child_can_neither_use_nor_reopen_the_image(image: Image) -> None:
    calls: list[Callable[[], object]] = [
        lambda: image.pread(1, 0),
        lambda: image.pwrite(b"x", 0),
        lambda: image.reopen(mode="r"),
        lambda: reopen_all([(image, {})]),
        lambda: image.files,
    ]
    slots = [file.fd for file in image.files]
    child = os.fork()
    if child == 0:
        status = 0
        for number, call in enumerate(calls):
            try:
                call()
            except ClosedError:
                continue
            except BaseException:  # noqa: BLE001 - a child that must not return
                status = 10 + number
            else:
                status = 50 + number
        for slot in slots:
            if os.path.exists(f"/proc/self/fd/{slot}"):
                status = 100
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The fork may have handed descriptions out: flags are not changed under others.
    assert set(image.reopen(cache="none").routes.values()) == {"proc"}
    assert set(image.reopen(cache="writeback").routes.values()) == {"setfl"}


def test_an_error_of_a_reopen_is_also_the_builtin_of_its_errno(raw_image: Image) -> None:
    error = refused(raw_image, path="none", timeout=5)
    assert isinstance(error, FileNotFoundError)
    assert isinstance(error, fdstash.Error)
    assert error.strerror is not None


def test_a_readonly_image_stays_readonly_for_every_file(flat: FlatDisk, stash: FDStash) -> None:
    for path in flat.files:
        stash.give(str(path), os.open(path, os.O_RDONLY))
    with fdstash.open(flat.path, stash=stash) as image:
        image.reopen(cache="none")
        assert [access_mode(file.fd) for file in image.files] == ["r"] * 5
