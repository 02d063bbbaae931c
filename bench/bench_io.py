"""Does a Python user of `bench io` saturate what C programs saturate?

A request of ours beside one of fio and of `qemu-img bench`. "Disk" is ext4 with O_DIRECT on a
loop device over tmpfs: steady, and slow enough for the device to matter.
"""

from __future__ import annotations

import array
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fdstash
from bench.loads import FIO_RING, SECONDS, SIZE, Load, best, fio, ours, pairs, qemu_img
from bench.passes import BLOCK, random_offsets, twin
from bench.results import Target, question
from fdstash.bench.io import IoSettings
from tests.support import tier

ASKED = question(
    __file__,
    "What does a request of a load cost?",
    "fio, qemu-img bench, or our own raw image, as the row says",
)

EXTENTS = 32
#: Seventeen blocks: no neighbours, and all blocks in the end.
STRIDE = 17 * BLOCK
#: Requests of one run of qemu-img.
COUNTS = {"raw": 200_000, "vmdk": 40_000} if tier.FULL else {"raw": 10_000, "vmdk": 300}
#: The best of them is the peer. With io_uring 7.2 stops for good in a fifth of runs on a VMDK.
QEMU_ENGINES = ("io_uring", "threads") if tier.FULL else ("threads",)


class Place(NamedTuple):
    name: str
    images: dict[str, Path]
    cache: str

    @property
    def direct(self) -> bool:
        return self.cache == "none"

    def load(self, kind: str = "raw", **changes: Any) -> Load:
        image = self.images[kind]
        form = "raw" if kind == "raw" else "vmdk"
        made = {"runtime": SECONDS, "cache": self.cache} | changes
        return ours(IoSettings(image=str(image), format=form, **made))


@pytest.fixture(scope="module", params=["tmpfs", "disk"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    folder: Path = request.getfixturevalue(request.param)
    folder = folder / "io"
    folder.mkdir()
    images = {"raw": twin(folder, SIZE)}
    kinds = {
        "flat": {"subformat": "twoGbMaxExtentFlat", "extent_size": SIZE // EXTENTS},
        "sparse": {"subformat": "monolithicSparse"},
    }
    with fdstash.open(images["raw"], "r", format="raw") as raw:
        for name, options in kinds.items():
            images[name] = folder / name / "disk.vmdk"
            images[name].parent.mkdir()
            fdstash.create(images[name], "vmdk", SIZE, **options)
            with fdstash.open(images[name], "r+") as image:
                for offset in range(0, SIZE, 1 << 20):
                    image.pwrite(raw.pread(1 << 20, offset), offset)
    yield Place(request.param, images, "none" if request.param == "disk" else "writeback")
    for path in folder.rglob("*.*"):
        path.unlink()


def at_most(place: Place, tmpfs: float, disk: float) -> Target:
    """A rate of so much of the peer's is a cost of at most its inverse."""
    return Target("ratio", 1 / (disk if place.name == "disk" else tmpfs))


def timed(call: Callable[[], object], requests: int) -> Load:
    """What each of so many requests of a call cost."""

    def load() -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / requests

    return load


def test_fio_at_depth(benchmark: BenchmarkFixture, place: Place) -> None:
    direct = f"--direct={int(place.direct)}"
    flags, peer = best(
        (
            " ".join(flags),
            fio(place.images["raw"], "randread", "--ioengine=io_uring", direct, *flags),
        )
        for flags in FIO_RING
    )
    pairs(
        benchmark,
        ASKED,
        f"{place.name}, raw, 4 KiB random read, depth 32 / fio io_uring",
        place.load(),
        peer,
        target=at_most(place, 1.0, 0.97),
        flags=flags,
    )


def test_fio_one_at_a_time(benchmark: BenchmarkFixture, place: Place) -> None:
    direct = f"--direct={int(place.direct)}"
    pairs(
        benchmark,
        ASKED,
        f"{place.name}, raw, 4 KiB random read, depth 1 / fio psync",
        place.load(depth=1),
        fio(place.images["raw"], "randread", "--ioengine=psync", direct, depth=1),
        target=None if place.direct else Target("ratio", 1.0),
    )


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_fio_sequential_write(benchmark: BenchmarkFixture, place: Place) -> None:
    flags, peer = best(
        (
            " ".join(flags),
            fio(
                place.images["raw"], "write", "--ioengine=io_uring", "--direct=1", *flags,
                bs=65536, depth=8,
            ),
        )
        for flags in FIO_RING
    )  # fmt: skip
    pairs(
        benchmark,
        ASKED,
        f"{place.name}, raw, 64 KiB sequential write, depth 8 / fio io_uring",
        place.load(rw="write", block_bytes=65536, depth=8),
        peer,
        target=Target("ratio", 1 / 0.97),
        flags=flags,
    )


@pytest.mark.parametrize("kind", ["flat", "sparse"])
def test_vmdk_beside_raw(benchmark: BenchmarkFixture, place: Place, kind: str) -> None:
    pairs(
        benchmark,
        ASKED,
        f"{place.name}, VMDK {kind}, 4 KiB random read, depth 32 / our raw",
        place.load(kind),
        place.load(),
        target=Target("ratio", 1 / 0.95),
    )


@pytest.mark.parametrize("kind", ["raw", "flat", "sparse"])
def test_qemu_img(benchmark: BenchmarkFixture, place: Place, kind: str) -> None:
    form = "raw" if kind == "raw" else "vmdk"
    engine, peer = best(
        (
            engine,
            qemu_img(
                place.images[kind], form, engine, stride=STRIDE, count=COUNTS[form],
                direct=place.direct,
            ),
        )
        for engine in QEMU_ENGINES
    )  # fmt: skip
    pairs(
        benchmark,
        ASKED,
        f"{place.name}, {kind}, 4 KiB strided read, depth 32 / qemu-img bench",
        place.load(kind, rw="strided", stride=STRIDE),
        peer,
        target=at_most(place, 1.2, 0.97) if kind == "raw" else at_most(place, 4, 3),
        engine=engine,
    )


def test_read_many(benchmark: BenchmarkFixture, place: Place) -> None:
    count = 200_000 if tier.FULL else 10_000
    offsets = array.array("q", random_offsets(SIZE, count))
    memory = fdstash.AlignedBuffer(1000 * BLOCK)
    with (
        fdstash.open(place.images["raw"], "r", format="raw", cache=place.cache) as image,
        image.queue(32, bound=True) as queue,
    ):
        lists = [offsets[at : at + 1000] for at in range(0, count, 1000)]
        queue.pin(memory)
        pairs(
            benchmark,
            ASKED,
            f"{place.name}, raw, read_many from Python / bench io",
            timed(lambda: [queue.read_many(each, BLOCK, memory) for each in lists], count),
            place.load(),
            target=Target("ratio", 1 / 0.95),
        )
