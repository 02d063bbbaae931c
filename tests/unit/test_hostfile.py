"""One host file: any offset, length and memory, whatever O_DIRECT asks for.

On ext4, XFS and tmpfs, and on loop devices with sectors of 512 and of 4096 bytes.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fdstash
from fdstash import Image, ImageIOError
from fdstash.hostfile import HostFile
from fdstash.opening import close_owned, dup_owned, open_path
from tests.support.disks import noise
from tests.support.faultshim import SHORT, FaultShim
from tests.support.hosts import FileSystem, Hosts
from tests.support.kernel import is_direct
from tests.support.tier import count
from tests.support.uncured import running

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

MIB = 1 << 20
BLKSSZGET = 0x1268


class Place(NamedTuple):
    """Where a file lies; of a device, the device itself is the file."""

    name: str
    sector: int  #: what O_DIRECT asks for there, bytes
    is_device: bool


PLACES = [
    Place("ext4", 512, is_device=False),
    Place("ext4-4096", 4096, is_device=False),
    Place("xfs", 512, is_device=False),
    Place("xfs-4096", 4096, is_device=False),
    Place("tmpfs", 1, is_device=False),
    Place("loop", 512, is_device=True),
    Place("loop-4096", 4096, is_device=True),
]
DIRECT_PLACES = [place for place in PLACES if place.name != "tmpfs"]
FILES = [place for place in PLACES if not place.is_device]


class Ground:
    """A file of `size` bytes at some place, made anew for each test."""

    def __init__(self, hosts: Hosts, place: Place, tmpfs: Path) -> None:
        self.place = place
        self._hosts = hosts
        self._device: str | None = None
        self.file_system: FileSystem | None = None
        kind, _, sector = place.name.partition("-")
        if place.is_device:
            self._device = hosts.loop(MIB, place.sector)
            self.path = Path(self._device)
        elif kind == "tmpfs":
            self.path = tmpfs / "file"
        else:
            size = (256 if kind == "ext4" else 512) * MIB
            self.file_system = hosts.file_system(kind, size, int(sector or 512))
            self.path = hosts.folder(kind, size, int(sector or 512)) / "file"
        self.size = MIB if place.is_device else 0

    def fill(self, data: bytes) -> None:
        """The file holds exactly this; a device this and zeros."""
        if self.place.is_device:
            fd = os.open(self.path, os.O_WRONLY)
            os.pwrite(fd, data.ljust(self.size, b"\0"), 0)
            os.fsync(fd)
            os.close(fd)
        else:
            self.path.write_bytes(data)
            self.size = len(data)

    def open(self, *, direct: bool, writable: bool = True) -> HostFile:
        flags = os.O_RDWR if writable else os.O_RDONLY
        fd = open_path(str(self.path), flags | (os.O_DIRECT if direct else 0))
        return HostFile(fd, "file", path=str(self.path), writable=writable)

    def content(self) -> bytes:
        """By another description, through the page cache."""
        with open(self.path, "rb") as file:
            return file.read()

    def close(self) -> None:
        if self._device is not None:
            self._hosts.drop_loop(self._device)


@pytest.fixture
def ground(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[Ground]:
    place: Place = request.param
    # The workplace of the hosts is a tmpfs.
    folder = hosts.backing_file(0).with_suffix(".folder")
    folder.mkdir()
    made = Ground(hosts, place, folder)
    yield made
    made.close()


def at(places: list[Place]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ground", places, indirect=True, ids=lambda place: place.name)


directness = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


# ------------------------------------------------------------------------ alignment


def smallest_read(path: Path, *, memory: bool) -> int:
    """By trying: the smallest offset (or address) that the kernel takes, on allocated bytes."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = memoryview(mmap.mmap(-1, 16384))
    try:
        for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            try:
                if memory:
                    os.preadv(fd, [buffer[4096 + size : 8192 + size]], 0)
                else:
                    os.preadv(fd, [buffer[:size]], size)
            except OSError as error:
                assert error.errno == errno.EINVAL
            else:
                return size
    finally:
        os.close(fd)
    raise AssertionError("O_DIRECT takes nothing")


@at(DIRECT_PLACES)
def test_the_alignment_learned_is_what_the_kernel_enforces(ground: Ground) -> None:
    ground.fill(noise(65536))
    file = ground.open(direct=True)
    status = file.status()
    assert status.offset_alignment == smallest_read(ground.path, memory=False)
    assert status.offset_alignment == ground.place.sector
    assert status.memory_alignment % smallest_read(ground.path, memory=True) == 0
    assert status.memory_alignment <= 4096
    file.release()


@at(PLACES)
def test_nothing_is_learned_before_it_is_needed(ground: Ground) -> None:
    ground.fill(noise(65536))
    file = ground.open(direct=False)
    assert (file.status().offset_alignment, file.status().memory_alignment) == (0, 0)
    file.release()


@pytest.mark.preload
@at(DIRECT_PLACES)
def test_without_statx_devices_are_asked_and_of_files_reads_are_tried(
    ground: Ground, shim: FaultShim
) -> None:
    """A kernel before 6.1 has no STATX_DIOALIGN; a file has no BLKSSZGET."""
    ground.fill(noise(65536))
    fd = dup_of(ground.path, os.O_RDWR | os.O_DIRECT)
    with shim.fault("statx", 0, errno.ENOSYS) as met:
        file = HostFile(fd, "file")
    assert met.fired
    assert (met.counts["pread"] > 0) != ground.place.is_device
    status = file.status()
    assert status.offset_alignment == ground.place.sector
    assert status.memory_alignment in (512, 4096)
    file.release()


@pytest.mark.preload
@at([PLACES[5], PLACES[6]])
def test_a_device_that_tells_nothing_gets_the_safe_answer(ground: Ground, shim: FaultShim) -> None:
    ground.fill(noise(65536))
    fd = dup_of(ground.path, os.O_RDWR | os.O_DIRECT)
    shim.arm("statx", 0, errno.ENOSYS)
    shim.also("ioctl", 2, errno.ENOTTY)  # after those for sequence number and size
    file = HostFile(fd, "file")
    assert shim.disarm().times == 2
    assert (file.status().offset_alignment, file.status().memory_alignment) == (4096, 4096)
    assert file.pwrite(b"abc", 1000) == 3
    assert file.pread(3, 1000) == b"abc"
    file.release()


@pytest.mark.preload
@at(FILES[:4])
def test_a_file_without_data_gives_the_safe_answer(ground: Ground, shim: FaultShim) -> None:
    """In a hole some file systems look at no alignment, so that reads there prove nothing."""
    ground.fill(b"")
    os.truncate(ground.path, 65536)
    with shim.fault("statx", 0, errno.ENOSYS):
        file = HostFile(dup_of(ground.path, os.O_RDWR | os.O_DIRECT), "file")
    assert file.status().offset_alignment == 4096
    assert file.pwrite(b"abc", 1000) == 3
    assert file.pread(5, 999) == b"\0abc\0"
    file.release()


@at([PLACES[6]])
def test_a_device_does_say_its_sector_size(ground: Ground) -> None:
    """And takes no smaller request: why 512 is never assumed."""
    fd = os.open(ground.path, os.O_RDWR | os.O_DIRECT)
    answer = fcntl.ioctl(fd, BLKSSZGET, b"\0\0\0\0")
    assert int.from_bytes(answer, "little") == 4096
    memory = mmap.mmap(-1, 4096)
    with pytest.raises(OSError, match="Invalid argument"):
        os.pwritev(fd, [memoryview(memory)[:512]], 0)
    os.close(fd)


def dup_of(path: Path, flags: int) -> int:
    """An owned descriptor, without the look that `open_path` takes."""
    fd = os.open(path, flags)
    owned = dup_owned(fd, "file")
    os.close(fd)
    return owned


# -------------------------------------------------------------- every offset and length

EDGES = [0, 1, 511, 512, 513, 1023, 3584, 4095, 4096, 4097, 8191, 8192, 12287, 12289]
LENGTHS = [1, 2, 511, 512, 513, 4095, 4096, 4097, 8192, 9000]
SIZES = [12288, 12289, 12800, 16383, 20000]


@at(PLACES)
@directness
def test_every_read_around_every_boundary(ground: Ground, *, direct: bool) -> None:
    for size in SIZES:
        data = noise(size, size)
        ground.fill(data)
        data = ground.content()
        file = ground.open(direct=direct)
        ends = [len(data) - 513, len(data) - 512, len(data) - 1, len(data), len(data) + 1]
        for offset, length in itertools.product([*EDGES, *ends], LENGTHS):
            assert file.pread(length, offset) == data[offset : offset + length], (offset, length)
        file.release()


@at(PLACES)
@directness
def test_every_write_around_every_boundary(ground: Ground, *, direct: bool) -> None:
    """Neighbours stay as they were, and so does the end unless a write goes beyond it."""
    for size in SIZES:
        ground.fill(noise(size, size))
        model = bytearray(ground.content())
        file = ground.open(direct=direct)
        ends = [size - 513, size - 1] if ground.place.is_device else [size - 513, size - 1, size]
        for number, (offset, length) in enumerate(itertools.product([*EDGES, *ends], LENGTHS)):
            data = noise(length, number)
            assert file.pwrite(data, offset) == length
            if offset + length > len(model):
                model.extend(bytes(offset + length - len(model)))
            model[offset : offset + length] = data
            assert file.size == len(model)
        assert file.pread(len(model) + 10, 0) == model
        assert ground.content() == model
        file.release()


def test_a_file_that_ends_inside_a_sector_still_ends_there(ext4_mount: Callable[..., Path]) -> None:
    for sector in (512, 4096):
        path = ext4_mount(sector_size=sector) / "file"
        for size in (1, 511, 513, 4095, 4097, 10_000):
            path.write_bytes(noise(size))
            fd = open_path(str(path), os.O_RDWR | os.O_DIRECT)
            file = HostFile(fd, "file")
            for offset in {0, size // 2, size - 1}:
                file.pwrite(b"z", offset)
                assert path.stat().st_size == size
            file.pwrite(b"end", size)
            assert path.stat().st_size == size + 3
            assert path.read_bytes()[size:] == b"end"
            file.release()


@pytest.mark.parametrize("shift", [0, 1, 8, 256, 512, 2048])
@at([PLACES[0], PLACES[1], PLACES[6]])
def test_memory_at_any_address_serves(ground: Ground, shift: int) -> None:
    ground.fill(noise(65536))
    data = ground.content()[:65536]
    memory = memoryview(mmap.mmap(-1, 65536))
    with image_at(ground, "none") as image:
        for offset, length in ((0, 8192), (4096, 4096), (1, 4095), (4095, 8194), (512, 1024)):
            view = memory[shift : shift + length]
            assert image.preadv([view], offset) == length
            assert view == data[offset : offset + length]
            assert image.pwritev([view], offset) == length
            parts = [memory[shift : shift + 5], memory[8192 + shift : 8192 + shift + length - 5]]
            if length > 5:
                assert image.preadv(parts, offset) == length
                assert b"".join(parts) == data[offset : offset + length]
                assert image.pwritev(parts, offset) == length
    assert ground.content()[:65536] == data


def image_at(ground: Ground, cache: str = "writeback", mode: str = "r+") -> Image:
    return fdstash.open(ground.path, mode, format="raw", cache=cache)


# ------------------------------------------------------------------------ model

MODEL_SIZE = 20_000
"""No multiple of a sector."""

_near = st.sampled_from([0, 512, 1024, 4096, 8192, 12288, 16384, 19968, MODEL_SIZE])
_offsets = st.builds(lambda edge, off: max(0, edge + off), _near, st.integers(-3, 3))
_lengths = st.one_of(
    st.integers(0, 20), st.sampled_from([511, 512, 513, 4095, 4096, 4097, 8192, 12288, 20_000])
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), _offsets, _lengths),
        st.tuples(st.just("write"), _offsets, _lengths),
        st.tuples(st.just("fua"), _offsets, _lengths),
        st.tuples(st.just("zero"), _offsets, _lengths),
        st.tuples(st.just("unmap"), _offsets, _lengths),
        st.tuples(st.just("trim"), _offsets, _lengths),
        st.tuples(st.just("switch"), st.just(0), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
        st.tuples(st.just("resize"), st.sampled_from([8191, 16384, 20_000, 30_001]), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)


class Model:
    """The image, a bytearray, and the host's file: all the same after every step."""

    def __init__(self, ground: Ground, image: Image) -> None:
        self.ground = ground
        self.image = image
        self.bytes = bytearray(image.pread(image.size, 0))
        self.seed = 0

    def step(self, name: str, offset: int, length: int) -> None:
        getattr(self, f"_{name}")(offset, length)

    def _read(self, offset: int, length: int) -> None:
        assert self.image.pread(length, offset) == self.bytes[offset : offset + length]

    def _change(self, offset: int, length: int, data: bytes, call: Callable[[], object]) -> None:
        if offset + length <= len(self.bytes):
            call()
            self.bytes[offset : offset + length] = data
            return
        with pytest.raises(ImageIOError) as caught:
            call()
        assert caught.value.errno == errno.ENOSPC

    def _write(self, offset: int, length: int, *, fua: bool = False) -> None:
        self.seed += 1
        data = noise(length, self.seed)
        self._change(offset, length, data, lambda: self.image.pwrite(data, offset, fua=fua))

    def _fua(self, offset: int, length: int) -> None:
        self._write(offset, length, fua=True)

    def _zero(self, offset: int, length: int, *, unmap: bool = False) -> None:
        call = lambda: self.image.zero(length, offset, unmap=unmap, fua=length % 2 == 1)  # noqa: E731
        self._change(offset, length, bytes(length), call)

    def _unmap(self, offset: int, length: int) -> None:
        self._zero(offset, length, unmap=True)

    def _trim(self, offset: int, length: int) -> None:
        """Each byte as before or zero: whatever it is now, it stays."""
        before = bytes(self.bytes)
        self._change(offset, length, bytes(length), lambda: self.image.trim(length, offset))
        if offset + length > len(before):
            return
        now = self.image.pread(length, offset)
        for index, byte in enumerate(now):
            assert byte in (0, before[offset + index])
        self.bytes[:] = before
        self.bytes[offset : offset + length] = now

    def _switch(self, *_: int) -> None:
        self.image.reopen(cache="none" if self.image.cache == "writeback" else "writeback")

    def _flush(self, *_: int) -> None:
        self.image.flush()

    def _resize(self, size: int, _: int) -> None:
        if self.ground.place.is_device:
            with pytest.raises(ImageIOError) as caught:
                self.image.resize(size)
            assert caught.value.errno == errno.ENOTSUP
            return
        self.image.resize(size)
        self.bytes[:] = self.bytes[:size].ljust(size, b"\0")

    def check(self) -> None:
        assert self.image.size == len(self.bytes)
        assert self.image.pread(len(self.bytes) + 1, 0) == self.bytes
        assert self.ground.content() == self.bytes


@at([place for place in PLACES if place.name != "tmpfs"])
@directness
@settings(
    max_examples=count(600),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(steps=_steps)
def test_image_model_and_file_agree_after_any_steps(
    ground: Ground, steps: list[tuple[str, int, int]], *, direct: bool
) -> None:
    ground.fill(noise(MODEL_SIZE))
    with image_at(ground, "none" if direct else "writeback") as image:
        model = Model(ground, image)
        for step in steps:
            model.step(*step)
        model.check()


# ----------------------------------------------------- read-modify-write and others


@at([PLACES[0], PLACES[2], PLACES[6]])
@directness
def test_a_small_write_never_undoes_a_large_one_that_overlaps(
    ground: Ground, *, direct: bool
) -> None:
    """Three bytes near each end of two pages, and whole pages over them, all the time.

    Seen with ranges that exclude nobody, direct: pages of an older write within a second.
    """
    ground.fill(bytes(8192))
    wrong: list[tuple[int, int]] = []
    turns = itertools.count(1)
    rng = random.Random(3)
    with image_at(ground, "none" if direct else "writeback") as image:

        def pages() -> None:
            fill = next(turns) % 255 + 1
            image.pwrite(bytes([fill]) * 8192, 0)
            found = set(image.pread(8192, 0)[100:8000])
            if found != {fill}:
                wrong.append((fill, len(found)))

        def few() -> None:
            image.pwrite(b"abc", rng.choice((1, 70, 8100, 8189)))

        with running(pages, few, few):
            for _ in range(count(200)):
                threading.Event().wait(0.02)
    assert not wrong


# -------------------------------------------------------------------- zero and trim


def blocks(path: Path) -> int:
    """Bytes in use."""
    return path.stat().st_blocks * 512


@at(FILES)
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_unmap_gives_space_back_and_plain_zero_keeps_it(ground: Ground, cache: str) -> None:
    if cache == "none" and ground.place.name == "tmpfs":
        cache = "writethrough"
    ground.fill(noise(65536))
    with image_at(ground, cache) as image:
        image.flush()
        full = blocks(ground.path)
        image.zero(32768, 4096)
        assert blocks(ground.path) >= full
        image.zero(32768, 4096, unmap=True)
        image.flush()
        assert blocks(ground.path) <= full - 32768
        assert image.pread(65536, 0) == noise(65536)[:4096] + bytes(32768) + noise(65536)[36864:]
        image.trim(8192, 49152)
        image.flush()
        assert blocks(ground.path) <= full - 32768 - 8192
        assert ground.path.stat().st_size == 65536


@at(FILES)
def test_parts_of_pages_are_zeroed_and_not_trimmed(ground: Ground) -> None:
    ground.fill(noise(65536))
    with image_at(ground) as image:
        image.trim(4096, 100)
        image.trim(100, 4096)
        assert image.pread(65536, 0) == noise(65536), "no whole page lies in these"
        image.trim(9000, 4000)
        data = image.pread(65536, 0)
        assert data[:4096] == noise(65536)[:4096]
        assert data[12288:] == noise(65536)[12288:]
        for unmap in (False, True):
            ground.fill(noise(65536))
            image.zero(9000, 4000, unmap=unmap)
            assert image.pread(65536, 0) == noise(65536)[:4000] + bytes(9000) + noise(65536)[13000:]


@pytest.mark.preload
@at([PLACES[0], PLACES[5]])
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL])
@directness
def test_where_the_host_cannot_zero_zeros_are_written_and_trims_ignored(
    ground: Ground, shim: FaultShim, code: int, *, direct: bool
) -> None:
    ground.fill(noise(65536))
    with image_at(ground, "none" if direct else "writeback") as image:
        before = bytearray(image.pread(65536, 0))
        for unmap in (False, True):
            with shim.fault("fallocate", 0, code, times=10) as met:
                image.zero(20_000, 5000, unmap=unmap)
            assert met.times == 1 + unmap
            before[5000:25_000] = bytes(20_000)
            assert image.pread(65536, 0) == before
        with shim.fault("fallocate", 0, code, times=10) as met:
            image.trim(16384, 28672)
        assert met.fired
        assert image.pread(65536, 0) == before


@pytest.mark.preload
@at([PLACES[0]])
def test_an_error_of_the_host_is_no_lack_of_ability(ground: Ground, shim: FaultShim) -> None:
    ground.fill(noise(65536))
    with image_at(ground) as image:
        for code in (errno.EIO, errno.ENOSPC):
            with shim.fault("fallocate", 0, code), pytest.raises(ImageIOError) as caught:
                image.zero(8192, 0)
            assert caught.value.errno == code
            with shim.fault("fallocate", 0, code), pytest.raises(ImageIOError):
                image.trim(8192, 0)
        with shim.fault("fallocate", 0, errno.EINTR):
            image.zero(8192, 0)
        assert image.pread(8192, 0) == bytes(8192)


# ------------------------------------------------------------- durable when it returns


@pytest.fixture
def durable_ground(hosts: Hosts, tmp_path: Path) -> Iterator[Ground]:
    made = Ground(hosts, PLACES[0], tmp_path)
    yield made
    made.close()


def reached_the_device(ground: Ground, marker: bytes) -> bool:
    """Whether the bytes are in the file behind the loop device by now."""
    assert ground.file_system is not None
    with (
        open(ground.file_system.backing, "rb") as backing,
        mmap.mmap(backing.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        return view.find(marker) >= 0


WAYS: dict[str, tuple[str, bool, Callable[[Image, bytes], object]]] = {
    "fua": ("writeback", True, lambda i, m: i.pwrite(m, 700, fua=True)),
    "fua of many buffers": ("writeback", True, lambda i, m: i.pwritev([m[:9], m[9:]], 7, fua=True)),
    "fua of a page": ("writeback", True, lambda i, m: i.pwrite(m * 128, 4096, fua=True)),
    "writethrough": ("writethrough", True, lambda i, m: i.pwrite(m, 700)),
    "writethrough of many": ("writethrough", True, lambda i, m: i.pwritev([m[:5], m[5:]], 700)),
    "directsync": ("directsync", True, lambda i, m: i.pwrite(m, 700)),
    "unsafe with fua": ("unsafe", True, lambda i, m: i.pwrite(m, 700, fua=True)),
    "flush": ("writeback", True, lambda i, m: (i.pwrite(m, 700), i.flush())),
    "writeback": ("writeback", False, lambda i, m: i.pwrite(m, 700)),
    "unsafe": ("unsafe", False, lambda i, m: i.pwrite(m, 700)),
    "unsafe and flush": ("unsafe", False, lambda i, m: (i.pwrite(m, 700), i.flush())),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_durable_has_reached_the_device(durable_ground: Ground, name: str) -> None:
    """The last three have not: the kernel writes back after seconds, and the look comes at once."""
    cache, durable, write = WAYS[name]
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground, cache) as image:
        if cache == "unsafe":
            image.reopen(cache="writeback")
            image.flush()
            image.reopen(cache=cache)
        image.flush()
        write(image, marker)
        assert reached_the_device(durable_ground, marker) == durable
        assert image.pread(65536, 0).find(marker) >= 0


def test_a_reopen_to_writethrough_makes_earlier_writes_durable(durable_ground: Ground) -> None:
    """A guest that never flushes relies on every write from then on, those before included."""
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground) as image:
        image.pwrite(marker, 700)
        assert not reached_the_device(durable_ground, marker)
        image.reopen(cache="writethrough")
        assert reached_the_device(durable_ground, marker)


@pytest.mark.preload
def test_without_rwf_dsync_a_sync_follows_the_write(
    durable_ground: Ground, shim: FaultShim
) -> None:
    durable_ground.fill(noise(65536))
    marker = os.urandom(32)
    with image_at(durable_ground) as image:
        image.flush()
        with shim.fault("pwrite", 0, errno.EOPNOTSUPP) as met:
            image.pwrite(marker, 700, fua=True)
        assert met.fired
        assert met.counts["fdatasync"] == 1
        assert reached_the_device(durable_ground, marker)
        shim.arm("pwrite", 0, errno.EOPNOTSUPP)
        shim.also("fdatasync", 0, errno.EIO)
        with pytest.raises(ImageIOError) as caught:
            image.pwrite(marker, 700, fua=True)
        shim.disarm()
        assert caught.value.errno == errno.EIO


# -------------------------------------------------------- short, interrupted, too long


@pytest.mark.preload
@at([PLACES[0], PLACES[1], PLACES[6]])
@directness
@pytest.mark.parametrize("action", [SHORT, errno.EINTR], ids=["short", "EINTR"])
def test_short_and_interrupted_calls_are_made_whole(
    ground: Ground, shim: FaultShim, action: int, *, direct: bool
) -> None:
    ground.fill(noise(65536))
    model = bytearray(ground.content())
    requests = [(0, 16384), (4096, 32768)]
    if not direct or action != SHORT:
        # A transfer past the cache is short by whole sectors only.
        requests += [(512, 8192), (1, 10_000), (4095, 3), (5000, 700), (12_288, 4096)]
    with image_at(ground, "none" if direct else "writeback") as image:
        fired = 0
        for number, ((offset, length), position) in enumerate(
            itertools.product(requests, range(4))
        ):
            with shim.fault("pread", position, action, times=2) as met:
                assert image.pread(length, offset) == model[offset : offset + length]
            fired += met.times
            data = noise(length, number)
            with shim.fault("pwrite", position, action, times=2) as met:
                assert image.pwrite(data, offset) == length
            model[offset : offset + length] = data
            fired += met.times
            buffers = [bytearray(length // 3), bytearray(length - length // 3)]
            with shim.fault("pread", position, action, times=2) as met:
                assert image.preadv(buffers, offset) == length
            assert b"".join(buffers) == data
            with shim.fault("pwrite", position, action, times=2):
                assert image.pwritev(buffers, offset) == length
        assert fired > len(requests)
        assert image.pread(len(model), 0) == model
    assert ground.content() == model


@at([PLACES[0], PLACES[1], PLACES[2]])
@directness
def test_a_file_that_was_cut_behind_our_back_is_an_error(ground: Ground, *, direct: bool) -> None:
    """Never zeros, and never bytes that are not there."""
    ground.fill(noise(65536))
    with image_at(ground, "none" if direct else "writeback") as image:
        for size in (40_000, 8192, 8191, 0):
            os.truncate(ground.path, size)
            assert image.size == 65536
            for offset, length in ((size, 1), (size - 1, 2), (0, 65536), (60_000, 4096)):
                if offset < 0:
                    continue
                with pytest.raises(ImageIOError) as caught:
                    image.pread(length, offset)
                assert caught.value.errno == errno.EIO
            assert image.pread(size // 2, 0) == noise(65536)[: size // 2]


@at(PLACES)
@directness
def test_a_write_beyond_the_end_writes_nothing(ground: Ground, *, direct: bool) -> None:
    direct = direct and ground.place.name != "tmpfs"
    ground.fill(noise(20_000))
    before = ground.content()
    with image_at(ground, "none" if direct else "writeback") as image:
        size = image.size
        for offset, length in (
            (size, 1),
            (size - 1, 2),
            (size - 4096, 8192),
            (size + 4096, 4096),
            (0, size + 1),
            ((1 << 62), 512),
        ):
            for call in (
                lambda offset=offset, length=length: image.pwrite(bytes(length), offset),
                lambda offset=offset, length=length: image.zero(length, offset),
                lambda offset=offset, length=length: image.zero(length, offset, unmap=True),
                lambda offset=offset, length=length: image.trim(length, offset),
            ):
                with pytest.raises(ImageIOError) as caught:
                    call()
                assert caught.value.errno == errno.ENOSPC
    assert ground.content() == before


@at(PLACES)
def test_a_read_only_image_is_never_written(ground: Ground) -> None:
    ground.fill(noise(20_000))
    before = ground.content()
    with image_at(ground, mode="r") as image:
        for call in (
            lambda: image.pwrite(b"x", 0),
            lambda: image.pwritev([b"x" * 4096], 0),
            lambda: image.zero(4096, 0),
            lambda: image.trim(4096, 0),
            lambda: image.resize(100),
        ):
            with pytest.raises(ImageIOError) as caught:
                call()
            assert caught.value.errno == errno.EBADF
        image.flush()
    assert ground.content() == before


@at(FILES)
def test_resize_grows_with_zeros_and_shrinks_in_every_cache_mode(ground: Ground) -> None:
    ground.fill(noise(20_000))
    with image_at(ground) as image:
        for cache in ("writeback", "none", "directsync"):
            if ground.place.name != "tmpfs":
                image.reopen(cache=cache)
            for size in (8191, 8192, 100_001, 0, 65_536, 20_000):
                image.resize(size)
                assert image.size == ground.path.stat().st_size == size
                if size:
                    image.pwrite(b"end", size - 3)
                    assert image.pread(100, size - 3) == b"end"
                with pytest.raises(ImageIOError):
                    image.pwrite(b"x", size)
        assert image.pread(19_997, 0).count(0) >= 19_900


@at(DIRECT_PLACES)
def test_a_descriptor_that_becomes_direct_under_a_request_is_read_through_a_bounce(
    ground: Ground,
) -> None:
    """A request prepared for the page cache can reach the kernel after the switch."""
    ground.fill(noise(65536))
    data = ground.content()
    file = ground.open(direct=False)
    flags = fcntl.fcntl(file.fd, fcntl.F_GETFL)
    fcntl.fcntl(file.fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    assert is_direct(file.fd)
    for offset, length in ((1, 3), (511, 4097), (0, 4096), (4096, 65536 - 4096)):
        assert file.pread(length, offset) == data[offset : offset + length]
        assert file.pwrite(data[offset : offset + length], offset) == length
    file.release()
    assert ground.content() == data


def test_what_a_file_refuses_stays_the_callers(tmp_path: Path) -> None:
    fd = dup_of(tmp_path, os.O_RDONLY)
    with pytest.raises(ImageIOError) as caught:
        HostFile(fd, "folder")
    assert caught.value.errno == errno.EINVAL
    assert close_owned(fd) == 0
