"""Every call of a request that allocates, or changes entries, fails once.

The error reaches the caller, nothing outside of the request changes, and once the fault is
gone the same request, and a flush, do what they should.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

import fdstash
from fdstash import Image
from tests.support import tier
from tests.support.disks import SECTOR, noise
from tests.support.faultshim import FaultShim
from tests.support.kernel import open_descriptors
from tests.support.qemu_tools import qemu_img
from tests.support.sparse_disks import SparseDisk, make_cowd, make_delta
from tests.support.sparse_files import guest_bytes, sparse_trouble

pytestmark = [pytest.mark.preload, pytest.mark.slow, pytest.mark.timeout(900)]

SIZE = 1 << 20
EXTENT = 640 << 10
SUBJECTS: Mapping[str, Callable[[Path], SparseDisk]] = {
    "delta": lambda folder: make_delta(folder, SIZE, EXTENT),
    # No table is there yet, so that making one is part of it.
    "vmfsSparse": lambda folder: make_cowd(folder, [(1280, 8), (768, 1)]),
}
CLASSES = ("pwrite", "ftruncate", "fallocate", "fdatasync", "pread")
#: Positions of a class in one request at most.
MOST = 400
_MET: dict[str, int] = {}


class Request(NamedTuple):
    """What is done to an image, and to the model of its bytes; `place` is what it may change."""

    make: Callable[[Image], object]
    place: tuple[int, int] = (0, 0)
    data: bytes = b""
    before: Callable[[Image], object] | None = None
    latches: bool = False  #: what it has met the next flush tells as well


def _write(offset: int, n: int, *, fua: bool = False) -> Request:
    data = noise(n, offset + n)
    return Request(
        lambda image: image.pwrite(data, offset, fua=fua), (offset, n), data, latches=fua
    )


def _zero(offset: int, n: int, *, unmap: bool) -> Request:
    return Request(
        lambda image: image.zero(n, offset, unmap=unmap),
        (offset, n),
        bytes(n),
        lambda image: image.pwrite(noise(n // 2, 5), offset + n // 4),
    )


def _dirty(image: Image) -> None:
    image.pwrite(noise(1000, 1), 3000)
    image.pwrite(noise(1000, 2), EXTENT + 3000)


def _to_read_only(image: Image) -> None:
    image.reopen(mode="r")
    image.reopen(mode="r+")


REQUESTS: Mapping[str, Request] = {
    "a write into the middle of a hole": _write(70_000, 700),
    "a write over several grains": _write(100_000, 200_000),
    "a write over the border of extents": _write(EXTENT - 5000, 10_000),
    "a durable write": _write(70_000, 700, fua=True),
    "zeros": _zero(60_000, 150_000, unmap=False),
    "zeros, unmapped": _zero(60_000, 150_000, unmap=True),
    "a flush": Request(Image.flush, before=_dirty),
    "a reopen to read-only": Request(_to_read_only, before=_dirty, latches=True),
    "a cache mode that writes through": Request(
        lambda image: image.reopen(cache="writethrough"), before=_dirty, latches=True
    ),
}


class Bench:
    """A fresh image for each fault."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.origin = folder / "origin"
        self.origin.mkdir()
        self.name = SUBJECTS[kind](self.origin).path.name
        self.work = folder / "work"
        self.start = guest_bytes(self.origin / self.name)

    def fresh(self) -> Path:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.origin, self.work)
        return self.work / self.name


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fdstash-faults-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("kind", SUBJECTS)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_whose_call_fails(shim: FaultShim, folder: Path, name: str, kind: str) -> None:
    bench = Bench(kind, folder)
    request = REQUESTS[name]
    descriptors = open_descriptors()
    met = 0
    for call_class in CLASSES:
        for code in (errno.EIO, errno.ENOSPC):
            met += _every_position(shim, bench, request, call_class, code)
    assert open_descriptors() == descriptors
    assert met > 0
    _MET[f"{kind}: {name}"] = met
    tier.evidence("request_faults", {"faults": sum(_MET.values()), "by request": dict(_MET)})


def _every_position(
    shim: FaultShim, bench: Bench, request: Request, call_class: str, code: int
) -> int:
    """How many positions there were."""
    step = 1 if tier.FULL else 3
    for position in range(0, MOST, step):
        path = bench.fresh()
        model = bytearray(bench.start)
        with fdstash.open(path, "r+") as image:
            if request.before is not None:
                request.before(image)
                model[:] = image.pread(SIZE, 0)
            error: Exception | None = None
            with shim.fault(call_class, position, code) as result:
                try:
                    request.make(image)
                except (fdstash.Error, OSError) as failed:
                    error = failed
            if result.fired:
                _check_told(error, code, call_class)
                _check_bytes(image.pread(SIZE, 0), bytes(model), request)
                # The fault is gone.
                if request.latches:
                    with contextlib.suppress(OSError):
                        image.flush()
                request.make(image)
            else:
                assert error is None
            image.flush()
            offset, n = request.place
            model[offset : offset + n] = request.data
            assert image.pread(SIZE, 0) == model
        assert guest_bytes(path) == model
        assert list(sparse_trouble(path)) == []
        with fdstash.open(path, "r+") as image:
            assert image.pread(SIZE, 0) == model
        if not result.fired:
            ran = qemu_img("check", "-f", "vmdk", path)
            assert ran.status == 0, ran
            return position
    raise AssertionError("there is no end")


def _check_told(error: Exception | None, code: int, call_class: str) -> None:
    if error is None and (call_class, code) == ("fallocate", errno.ENOSPC):
        return  # zeros were written instead
    assert isinstance(error, OSError), (
        f"{call_class} failed with {errno.errorcode[code]}: {error!r}"
    )
    assert error.errno == code
    assert error.filename


def _check_bytes(found: bytes, before: bytes, request: Request) -> None:
    """Old or new, by sectors, where the request is; as before elsewhere."""
    offset, n = request.place
    after = before[:offset] + request.data + before[offset + n :]
    if found in (before, after):
        return
    for at in range(0, len(before), SECTOR):
        held = found[at : at + SECTOR]
        assert held in (before[at : at + SECTOR], after[at : at + SECTOR]), f"byte {at}"
