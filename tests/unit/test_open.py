"""`open`: what it opens, what it refuses, and what it looks up in a stash."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import fdstash
from fdstash import (
    Beneath,
    ClosedError,
    FDStash,
    FormatError,
    ImageIOError,
    LockError,
    OptionError,
    RefusedError,
    UnsupportedFormatError,
    anywhere,
)
from tests.support.disks import ExtentSpec, FlatDisk, descriptor_text, make_flat, make_raw, noise
from tests.support.faultshim import FaultShim
from tests.support.kernel import getfl, same_description
from tests.support.need import need_root
from tests.support.seen import assert_as_kernel_says, locked_bytes

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
def fd_of() -> Iterator[Callable[..., int]]:
    """Opens files as a caller would; closes at the end what is still the caller's."""
    made: list[int] = []

    def make(path: str | os.PathLike[str], flags: int = os.O_RDWR) -> int:
        made.append(os.open(path, flags))
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)


def read_all(image: fdstash.Image) -> bytes:
    return image.pread(image.size, 0)


def file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -------------------------------------------------------------- what it opens


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_path_is_text_or_path_like(raw: Path, kind: Callable[[Path], str]) -> None:
    with fdstash.open(kind(raw), format="raw") as image:
        assert read_all(image) == raw.read_bytes()
        assert image.name == image.files[0].path == str(raw)


@pytest.mark.parametrize("name", ["ü/日本 disk.raw", "bad\udcff.raw", 'quote".raw'])
def test_any_file_name_serves(tmp_path: Path, name: str) -> None:
    path = file(tmp_path / name, noise(SIZE))
    with fdstash.open(path, "r+", format="raw") as image:
        assert image.files[0].name == str(path)
        assert read_all(image) == noise(SIZE)
        image.reopen(mode="r")
        image.reopen(path=path)


def test_a_relative_path_is_kept_as_given(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(raw.parent)
    with fdstash.open("./disk.raw", format="raw") as image:
        assert image.files[0].name == image.files[0].path == "./disk.raw"


def test_a_relative_descriptor_names_its_extents_relative_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    disk = make_flat(tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    with fdstash.open("folder/disk.vmdk") as image:
        assert [f.name for f in image.files[1:3]] == ["folder/disk-a.bin", "folder/disk-b.bin"]
        assert read_all(image) == disk.guest_bytes()
    monkeypatch.chdir("folder")
    with fdstash.open("disk.vmdk") as image:
        assert [f.name for f in image.files[1:3]] == ["disk-a.bin", "disk-b.bin"]
        assert read_all(image) == disk.guest_bytes()


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("cache", ["writeback", "none", "writethrough", "directsync", "unsafe"])
def test_every_file_is_opened_with_the_flags_of_mode_and_cache(
    flat: FlatDisk, mode: str, cache: str
) -> None:
    with fdstash.open(flat.path, mode, cache=cache) as image:
        assert (image.mode, image.cache, image.format) == (mode, cache, "vmdk")
        assert_as_kernel_says(image)
        assert {f.mode for f in image.files} == {mode}
        assert read_all(image) == flat.guest_bytes()


def test_every_slot_is_close_on_exec_and_above_stderr(flat: FlatDisk) -> None:
    with fdstash.open(flat.path) as image:
        assert all(f.fd > 2 and not os.get_inheritable(f.fd) for f in image.files)


def test_an_image_takes_a_dup_of_a_descriptor_and_leaves_the_callers_alone(
    raw: Path, fd_of: Callable[..., int]
) -> None:
    fd = fd_of(raw)
    with fdstash.open(fd, "r+", format="raw") as image:
        assert image.files[0].fd != fd
        assert same_description(fd, image.files[0].fd)
        assert image.files[0].path is None
        assert read_all(image) == raw.read_bytes()
        image.pwrite(b"new", 5)
    assert os.pread(fd, 3, 5) == b"new"


def test_an_image_lives_on_when_the_callers_descriptor_is_closed(raw: Path) -> None:
    fd = os.open(raw, os.O_RDWR)
    with fdstash.open(fd, "r+", format="raw") as image:
        os.close(fd)
        image.pwrite(b"new", 5)
        image.reopen(mode="r", cache="none")
        assert image.pread(3, 5) == b"new"


def test_a_descriptor_of_another_mode_serves_by_a_description_of_its_own(
    raw: Path, fd_of: Callable[..., int]
) -> None:
    fd = fd_of(raw, os.O_RDONLY)
    with fdstash.open(fd, "r+", format="raw", cache="none") as image:
        assert not same_description(fd, image.files[0].fd)
        assert_as_kernel_says(image)
        image.pwrite(b"new", 5)
    assert getfl(fd) & (os.O_ACCMODE | os.O_DIRECT) == os.O_RDONLY


def test_an_unlinked_file_serves_and_can_be_reopened(raw: Path, fd_of: Callable[..., int]) -> None:
    fd = fd_of(raw)
    content = raw.read_bytes()
    raw.unlink()
    with fdstash.open(fd, "r", format="raw", name="gone.raw") as image:
        assert image.files[0].name == "gone.raw"
        for options in ({"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}):
            image.reopen(**options)
            assert_as_kernel_says(image)
            assert read_all(image) == content


def test_a_descriptor_with_a_name_looks_beneath_the_folder_of_that_name(
    flat: FlatDisk, fd_of: Callable[..., int]
) -> None:
    with fdstash.open(fd_of(flat.path), name=str(flat.path)) as image:
        assert read_all(image) == flat.guest_bytes()
        assert [f.name for f in image.files] == [str(f) for f in flat.files]
        assert [f.path for f in image.files] == [None, *map(str, flat.files[1:])]


def test_a_descriptor_without_a_name_finds_its_extents_only_in_the_stash(
    flat: FlatDisk,
    fd_of: Callable[..., int],
    stash: FDStash,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(flat.path.parent)  # where they would be found by chance
    fd = fd_of(flat.path)
    with pytest.raises(FileNotFoundError, match="name="):
        fdstash.open(fd)
    for path in flat.files[1:]:
        with pytest.raises(FileNotFoundError) as caught:
            fdstash.open(fd, stash=stash)
        assert caught.value.filename == path.name
        stash.give(path.name, os.open(path, os.O_RDONLY))
    with fdstash.open(fd, stash=stash) as image:
        assert read_all(image) == flat.guest_bytes()
        assert [f.name for f in image.files[1:]] == [p.name for p in flat.files[1:]]


# ------------------------------------------------------------ what it refuses


def test_a_writable_image_is_not_guessed_to_be_raw(raw: Path, fd_of: Callable[..., int]) -> None:
    for source in (raw, fd_of(raw)):
        with pytest.raises(FormatError, match='format="raw"'):
            fdstash.open(source, "r+")
        with fdstash.open(source) as image:
            assert image.format == "raw"
        with fdstash.open(source, "r+", format="raw") as image:
            assert image.mode == "r+"
    assert locked_bytes(raw) == []


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"mode": "w"}, "mode"),
        ({"mode": "rb"}, "mode"),
        ({"mode": ""}, "mode"),
        ({"cache": "fast"}, "cache"),
        ({"cache": None}, "cache"),
        ({"offset": -1}, "offset"),
        ({"size": "5"}, "size"),
        ({"colour": 5}, "colour"),
    ],
)
def test_an_option_that_cannot_be_is_named(
    raw: Path, options: dict[str, object], option: str
) -> None:
    with pytest.raises(OptionError) as caught:
        fdstash.open(raw, format="raw", **options)  # type: ignore[arg-type]
    assert caught.value.option == option


def test_a_format_that_does_not_exist_is_an_error(raw: Path) -> None:
    with pytest.raises((OptionError, UnsupportedFormatError), match="floppy"):
        fdstash.open(raw, format="floppy")


def test_the_format_that_was_named_is_not_guessed(flat: FlatDisk, raw: Path) -> None:
    with fdstash.open(flat.path, format="raw") as image:
        assert image.format == "raw"
        assert read_all(image) == flat.path.read_bytes()
    with pytest.raises(FormatError):
        fdstash.open(raw, format="vmdk")


def test_a_file_that_is_missing_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        fdstash.open(tmp_path / "none")
    assert isinstance(caught.value, ImageIOError)
    assert caught.value.filename == str(tmp_path / "none")


def test_a_missing_extent_is_named(flat: FlatDisk) -> None:
    flat.files[3].unlink()
    with pytest.raises(FileNotFoundError) as caught:
        fdstash.open(flat.path, "r+")
    assert caught.value.filename == str(flat.files[3])
    assert all(locked_bytes(path) == [] for path in flat.files if path.exists())


def test_a_short_extent_is_refused(flat: FlatDisk) -> None:
    os.truncate(flat.files[4], 204 * 512 - 1)
    with pytest.raises(FormatError, match=r"disk-d\.bin") as caught:
        fdstash.open(flat.path)
    assert caught.value.file == str(flat.path)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def make_link_to_null(path: Path) -> None:
    path.symlink_to("/dev/null")


ODD_FILES = [
    (Path.mkdir, errno.EISDIR),
    (make_fifo, errno.ENXIO),
    (make_socket, errno.ENXIO),
    (make_link_to_null, errno.EINVAL),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "code"), ODD_FILES)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_no_file_of_bytes_is_refused_without_being_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], None],
    code: int,
    mode: str,
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 107 characters
    make(Path("odd"))
    with pytest.raises(ImageIOError) as caught:
        fdstash.open("odd", mode, format="raw")
    assert (caught.value.errno, caught.value.filename) == (code, "odd")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "code"), ODD_FILES[:3])
def test_an_extent_that_is_no_file_of_bytes_is_refused_without_being_opened(
    flat: FlatDisk, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], code: int
) -> None:
    monkeypatch.chdir(flat.path.parent)
    os.unlink("disk-c.bin")
    make(Path("disk-c.bin"))
    with pytest.raises(ImageIOError) as caught:
        fdstash.open("disk.vmdk", "r+")
    assert (caught.value.errno, caught.value.filename) == (code, "disk-c.bin")


def null(_raw: Path) -> int:
    return os.open("/dev/null", os.O_RDWR)


def folder(raw: Path) -> int:
    return os.open(raw.parent, os.O_RDONLY)


def appending(raw: Path) -> int:
    return os.open(raw, os.O_RDWR | os.O_APPEND)


def by_path_only(raw: Path) -> int:
    return os.open(raw, os.O_PATH)


def pipe(_raw: Path) -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def memory(raw: Path) -> int:
    """Not refused: it is a regular file, wherever it lives."""
    fd = os.memfd_create("disk")
    os.write(fd, raw.read_bytes())
    return fd


@pytest.mark.parametrize("make", [null, folder, appending, by_path_only, pipe])
@pytest.mark.parametrize("how", ["descriptor", "stash"])
def test_a_descriptor_that_cannot_serve_is_refused_and_left_alone(
    raw: Path, stash: FDStash, make: Callable[[Path], int], how: str
) -> None:
    with closing_fd(make(raw)) as fd:
        flags = getfl(fd)
        if how == "stash":
            stash.give(str(raw), os.dup(fd))
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(fd if how == "descriptor" else raw, format="raw", stash=stash)
        assert caught.value.errno in (errno.EBADF, errno.EINVAL, errno.EACCES)
        assert getfl(fd) == flags


class closing_fd(closing[int]):  # noqa: N801 - as contextlib names them
    def __exit__(self, *_: object) -> None:
        os.close(self.thing)  # type: ignore[attr-defined]


def test_a_file_in_memory_serves(raw: Path) -> None:
    with closing_fd(memory(raw)) as fd, fdstash.open(fd, "r+", format="raw") as image:
        image.reopen(mode="r")
        assert read_all(image) == raw.read_bytes()


def test_a_number_that_is_not_open_is_refused(raw: Path) -> None:
    fd = os.open(raw, os.O_RDONLY)
    os.close(fd)
    for number in (fd, -1, 1 << 30):
        with pytest.raises(ImageIOError) as caught:
            fdstash.open(number, format="raw")
        assert caught.value.errno == errno.EBADF


# ------------------------------------------------------------------ the stash


def test_the_stash_is_asked_by_name_then_text_then_last_component(
    tmp_path: Path, stash: FDStash
) -> None:
    extents = [ExtentSpec("RW", 8, name="sub/../sub/data.bin")]
    disk = make_flat(tmp_path / "d", extents)
    name = str(disk.path.parent / "sub/data.bin")
    by = {
        name: b"N" * 4096,
        "sub/../sub/data.bin": b"T" * 4096,
        "data.bin": b"L" * 4096,
    }
    for number, (key, content) in enumerate(by.items()):
        stash.give(key, os.open(file(tmp_path / f"f{number}", content), os.O_RDWR))
    for key, content in by.items():
        with fdstash.open(disk.path, stash=stash) as image:
            assert read_all(image) == content
            assert image.files[1].name == name
        os.close(stash.take(key))
    with fdstash.open(disk.path, stash=stash) as image:  # not held: the host file system
        assert read_all(image) == disk.guest_bytes()
        assert image.files[1].path is not None


def test_the_first_file_is_looked_up_like_every_other(tmp_path: Path, stash: FDStash) -> None:
    missing = str(tmp_path / "missing" / "disk.raw")
    for number, key in enumerate(("disk.raw", missing)):
        content = noise(4096, number)
        stash.give(key, os.open(file(tmp_path / f"f{number}", content), os.O_RDWR))
        with fdstash.open(missing, format="raw", stash=stash) as image:
            assert read_all(image) == content
            assert (image.files[0].name, image.files[0].path) == (missing, None)


def test_a_name_that_would_serve_two_files_is_refused(tmp_path: Path, stash: FDStash) -> None:
    extents = [ExtentSpec("RW", 8, name="a/data.bin"), ExtentSpec("RW", 8, name="b/data.bin")]
    disk = make_flat(tmp_path, extents)
    stash.give("data.bin", os.open(tmp_path / "a/data.bin", os.O_RDWR))
    with pytest.raises(RefusedError, match=r"data\.bin") as caught:
        fdstash.open(disk.path, stash=stash)
    assert isinstance(caught.value, PermissionError)
    stash.give("b/data.bin", os.open(tmp_path / "b/data.bin", os.O_RDWR))
    with fdstash.open(disk.path, stash=stash) as image:
        assert read_all(image) == disk.guest_bytes()


def test_the_description_that_fits_mode_and_cache_is_used(raw: Path, stash: FDStash) -> None:
    kinds = [
        ("r", "writeback", os.O_RDONLY),
        ("r+", "writeback", os.O_RDWR),
        ("r", "none", os.O_RDONLY | os.O_DIRECT),
        ("r+", "none", os.O_RDWR | os.O_DIRECT),
    ]
    for _, _, flags in kinds:
        stash.add(str(raw), os.open(raw, flags))
    copies = stash.dup_all(str(raw))
    for (mode, cache, _), copy in zip(kinds, copies, strict=True):
        with fdstash.open(raw, mode, format="raw", cache=cache, stash=stash) as image:
            assert same_description(image.files[0].fd, copy)
            assert_as_kernel_says(image)
    for copy in copies:
        os.close(copy)


def held(stash: FDStash) -> dict[str, list[tuple[str, int]]]:
    """Names, descriptors' files and flags: what a stash must keep."""
    found = {}
    for name in stash.names():
        copies = stash.dup_all(name)
        found[name] = [(os.readlink(f"/proc/self/fd/{fd}"), getfl(fd)) for fd in copies]
        for fd in copies:
            os.close(fd)
    return found


def test_the_stash_keeps_all_that_it_held_when_open_succeeds_and_when_it_fails(
    flat: FlatDisk, stash: FDStash
) -> None:
    for path in flat.files:
        stash.add(str(path), os.open(path, os.O_RDONLY))
        stash.add(str(path), os.open(path, os.O_RDWR))
        stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
    stash.give("unrelated", os.open(flat.path, os.O_RDONLY))
    before = held(stash)

    def expect(error: type[Exception], **options: object) -> None:
        with pytest.raises(error):
            fdstash.open(flat.path, stash=stash, **options)  # type: ignore[arg-type]
        assert held(stash) == before

    for mode in ("r", "r+"):
        with fdstash.open(flat.path, mode, stash=stash) as image:
            assert read_all(image) == flat.guest_bytes()
            assert held(stash) == before
        assert held(stash) == before
    expect(OptionError, cache="no")
    expect(OptionError, colour="no")
    with fdstash.open(flat.files[4], "r+", format="raw"):
        expect(LockError)
    flat.path.write_text(descriptor_text([*flat.extents, ExtentSpec("RW", 1, name="none.bin")]))
    expect(FileNotFoundError)
    flat.path.write_text("# Disk DescriptorFile\nRW nonsense\n")
    expect(FormatError)


@pytest.mark.preload
def test_what_the_stash_holds_is_not_opened_on_the_host(
    flat: FlatDisk, stash: FDStash, shim: FaultShim
) -> None:
    for path in flat.files:
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT):
            stash.add(str(path), os.open(path, flags))
        stash.give(f"lock:{path}", os.open(path, os.O_RDONLY))
    expected = flat.guest_bytes()
    # By path, or by a link below /proc: any open that leads to one of these files.
    shim.refuse(str(flat.path.parent), errno.EIO)
    with fdstash.open(flat.path, stash=stash) as image:
        assert read_all(image) == expected
        for options in ({"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}):
            assert set(image.reopen(stash=stash, **options).routes.values()) == {"stash"}
            assert read_all(image) == expected
    assert shim.path_hits == 0
    with pytest.raises(ImageIOError):  # the refusal works: without the stash they are opened
        fdstash.open(flat.path)
    assert shim.path_hits == 1


@pytest.mark.root
def test_a_stash_that_holds_all_serves_where_there_is_no_file_system(flat: FlatDisk) -> None:
    need_root("chroot")
    code = """
import os, sys
import fdstash
from fdstash import FDStash
paths = sys.argv[2:]
stash = FDStash()
for path in paths:
    for flags in os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_DIRECT:
        stash.add(path, os.open(path, flags))
    stash.give("lock:" + path, os.open(path, os.O_RDONLY))
with fdstash.open(paths[0]) as image:
    expected = image.pread(image.size, 0)
os.chroot(sys.argv[1])
os.chdir("/")
assert os.listdir("/") == []
with fdstash.open(paths[0], stash=stash) as image:
    assert image.pread(image.size, 0) == expected
    for options in {"mode": "r+"}, {"cache": "none"}, {"mode": "r", "cache": "writeback"}:
        image.reopen(stash=stash, **options)
        assert image.pread(image.size, 0) == expected
    image.reopen(mode="r+", stash=stash)
    image.pwrite(b"written without a path", 700)
    assert image.pread(22, 700) == b"written without a path"
"""
    empty = flat.path.parent / "empty"
    empty.mkdir()
    command = [sys.executable, "-c", code, str(empty), *map(str, flat.files)]
    subprocess.run(command, check=True, timeout=60)
    assert flat.guest_bytes()[700:722] == b"written without a path"


# --------------------------------------------------------------- the resolver


def one_extent(folder: Path, text: str, name: str = "disk.vmdk") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(descriptor_text([ExtentSpec("RW", 8, name=text)]))
    return path


@pytest.mark.parametrize(
    "text",
    ["data.bin", "sub/data.bin", "./sub/./data.bin", "sub/../data.bin", "sub//data.bin"],
)
def test_by_default_files_beneath_the_descriptors_folder_are_opened(
    tmp_path: Path, text: str
) -> None:
    path = one_extent(tmp_path / "d", text)
    content = noise(4096, len(text))
    (tmp_path / "d/sub").mkdir()
    file(tmp_path / "d" / text, content)
    with fdstash.open(path) as image:
        assert read_all(image) == content


def test_an_absolute_name_beneath_the_descriptors_folder_is_opened(tmp_path: Path) -> None:
    data = file(tmp_path / "d/sub/data.bin", noise(4096))
    with fdstash.open(one_extent(tmp_path / "d", str(data))) as image:
        assert read_all(image) == noise(4096)
        assert image.files[1].name == str(data)


@pytest.mark.parametrize("text", ["../data.bin", "sub/../../data.bin", "../d/data.bin", "ABSOLUTE"])
@pytest.mark.parametrize("exists", [True, False])
def test_by_default_a_name_that_leads_out_is_refused_with_a_reason(
    tmp_path: Path, text: str, exists: bool
) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    if exists:
        file(tmp_path / "data.bin", bytes(4096))
        file(tmp_path / "d/data.bin", bytes(4096))
    text = str(tmp_path / "data.bin") if text == "ABSOLUTE" else text
    path = one_extent(tmp_path / "d", text)
    with pytest.raises(RefusedError, match="resolver=") as caught:
        fdstash.open(path)
    assert caught.value.errno == errno.EACCES
    assert caught.value.filename == text
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("target", ["../outside.bin", "ABSOLUTE", "/proc/self/fd/0"])
def test_by_default_a_symbolic_link_that_leads_out_is_refused(tmp_path: Path, target: str) -> None:
    outside = file(tmp_path / "outside.bin", bytes(4096))
    path = one_extent(tmp_path / "d", "data.bin")
    (tmp_path / "d/data.bin").symlink_to(str(outside) if target == "ABSOLUTE" else target)
    with pytest.raises(RefusedError):
        fdstash.open(path)
    path = one_extent(tmp_path / "e", "sub/outside.bin")
    (tmp_path / "e/sub").symlink_to("..")
    with pytest.raises(RefusedError):
        fdstash.open(path)


def test_by_default_a_symbolic_link_that_stays_beneath_is_followed(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "link/data.bin")
    file(tmp_path / "d/a/b/data.bin", noise(4096))
    (tmp_path / "d/link").symlink_to("a/b")
    with fdstash.open(path) as image:
        assert read_all(image) == noise(4096)


def test_the_path_of_an_extent_is_the_one_that_was_opened(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "link/../data.bin")
    (tmp_path / "d/a/b").mkdir(parents=True)
    (tmp_path / "d/link").symlink_to("a/b")
    file(tmp_path / "d/a/data.bin", noise(4096, 1))  # where the kernel goes
    file(tmp_path / "d/data.bin", noise(4096, 2))  # where the text alone would go
    with fdstash.open(path) as image:
        assert read_all(image) == noise(4096, 1)
        opened = image.files[1]
        assert opened.path is not None
        assert os.path.samefile(opened.path, f"/proc/self/fd/{opened.fd}")
        image.reopen(path=path)
        assert read_all(image) == noise(4096, 1)


def test_beneath_names_the_folders_that_are_allowed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    data = file(two / "sub/data.bin", noise(4096))
    one.mkdir()
    for text in ("../two/sub/data.bin", str(data)):
        path = one_extent(tmp_path / "d", text)
        for folders in ((two,), (two / "sub",), (tmp_path,), (one, two), (str(two),)):
            with fdstash.open(path, resolver=Beneath(*folders)) as image:
                assert read_all(image) == noise(4096)
        for folders in ((one,), (tmp_path / "d",), ()):
            with pytest.raises(RefusedError):
                fdstash.open(path, resolver=Beneath(*folders))


def test_beneath_follows_no_link_out_of_its_folders(tmp_path: Path) -> None:
    file(tmp_path / "outside.bin", bytes(4096))
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/data.bin").symlink_to("../outside.bin")
    path = one_extent(tmp_path / "d", "../allowed/data.bin")
    with pytest.raises(RefusedError):
        fdstash.open(path, resolver=Beneath(tmp_path / "allowed"))
    with fdstash.open(path, resolver=Beneath(tmp_path)):
        pass


def test_anywhere_allows_what_the_default_refuses(tmp_path: Path) -> None:
    data = file(tmp_path / "elsewhere/data.bin", noise(4096))
    for text in ("../elsewhere/data.bin", str(data)):
        path = one_extent(tmp_path / "d", text)
        with fdstash.open(path, resolver=anywhere) as image:
            assert read_all(image) == noise(4096)


def test_a_resolver_gets_text_and_referrer_and_its_path_is_opened(tmp_path: Path) -> None:
    data = file(tmp_path / "real.bin", noise(4096))
    path = one_extent(tmp_path / "d", "some/name.bin")
    asked = []

    def resolver(text: str, referrer: str) -> Path:
        asked.append((text, referrer))
        return data

    with fdstash.open(path, resolver=resolver) as image:
        assert read_all(image) == noise(4096)
        assert image.files[1].name == str(tmp_path / "d/some/name.bin")
        assert image.files[1].path == str(data)
        image.reopen(path=path)
        image.reopen(mode="r+")
    assert asked == [("some/name.bin", str(path))]


def test_a_resolver_that_returns_none_refuses(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "data.bin")
    file(tmp_path / "d/data.bin", bytes(4096))
    with pytest.raises(RefusedError):
        fdstash.open(path, resolver=lambda _text, _referrer: None)


def test_what_a_resolver_raises_comes_through_and_nothing_stays_open(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "data.bin")

    def resolver(_text: str, _referrer: str) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fdstash.open(path, "r+", resolver=resolver)
    assert locked_bytes(path) == []


def test_a_resolver_is_not_asked_for_what_the_stash_holds(tmp_path: Path, stash: FDStash) -> None:
    path = one_extent(tmp_path / "d", "/no/such/data.bin")
    stash.give("/no/such/data.bin", os.open(file(tmp_path / "f", noise(4096)), os.O_RDONLY))

    def resolver(text: str, _referrer: str) -> str:
        raise AssertionError(text)

    with fdstash.open(path, stash=stash, resolver=resolver) as image:
        assert read_all(image) == noise(4096)


# --------------------------------------------------------------------- probe


def test_probe_says_what_open_would_find(flat: FlatDisk, raw: Path) -> None:
    assert fdstash.probe(flat.path) == "vmdk"
    assert fdstash.probe(str(raw)) == "raw"
    with pytest.raises(FileNotFoundError):
        fdstash.probe(raw.parent / "none")


def test_an_image_that_was_closed_is_closed_for_good(raw: Path) -> None:
    image = fdstash.open(raw)
    image.close()
    with pytest.raises(ClosedError), image:
        pass
