"""A guest whose disk is an image of many files, on our export, reopened every 10 ms."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import fdstash
from fdstash import Image
from fdstash.export import NbdServer
from tests.support.guest import Guest, stamped
from tests.support.qemu_tools import qemu_img
from tests.support.sparse_files import sparse_trouble
from tests.support.tier import FULL, count, evidence

EXTENTS = 64
EXTENT_SIZE = 1 << 20
SIZE = EXTENTS * EXTENT_SIZE
INTERVAL = 0.01  #: seconds from reopen to reopen
REOPENS = count(4000)  #: at least, while the guest writes and reads
ROUNDS = count(100)  #: likewise
WORKERS = 4  #: processes in the guest
WRITES = 100  #: of each of them in each round
PATIENCE = 1200.0 if FULL else 240.0

CACHES = ("none", "writeback", "directsync", "writethrough")


@pytest.fixture
def folder() -> Iterator[Path]:
    """On a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="fdstash-guest-", dir="/dev/shm") as made:
        yield Path(made)


class Reopener(threading.Thread):
    """Reopens the image, one of these after the other: another cache mode, mode and path, also
    while an extent's file has another name. The mode changes while the guest writes nothing.
    """

    def __init__(self, image: Image, folder: Path) -> None:
        super().__init__(name="reopener")
        self._image = image
        self._folder = folder
        self._chance = random.Random(4)
        self._names = itertools.count()
        self._over = threading.Event()
        self._step = threading.Lock()
        self._may_be_read_only = False
        self.made = dict.fromkeys(("cache", "mode", "path"), 0)
        self.failure: BaseException | None = None

    @property
    def total(self) -> int:
        return sum(self.made.values())

    def run(self) -> None:
        steps = [self._cache, self._away, self._mode, self._move]
        number, due = 0, time.monotonic()
        try:
            while not self._over.wait(max(0.0, due - time.monotonic())):
                due = max(due, time.monotonic()) + INTERVAL
                with self._step:
                    steps[number % len(steps)]()
                number += 1
        except BaseException as error:  # noqa: BLE001 - told by stop
            self.failure = error

    def _reopen(self, what: str, **options: str) -> None:
        self._image.reopen(**options)  # type: ignore[arg-type]
        self.made[what] += 1

    def _cache(self) -> None:
        others = [each for each in CACHES if each != self._image.cache]
        self._reopen("cache", cache=self._chance.choice(others))

    def _away(self) -> None:
        """A reopen while an extent is not where the descriptor says."""
        extent = self._chance.choice(sorted(self._folder.glob("disk-*.vmdk")))
        away = extent.rename(extent.with_name("away"))
        try:
            self._cache()
        finally:
            away.rename(extent)

    def _mode(self) -> None:
        if self._may_be_read_only:
            self._reopen("mode", mode="r" if self._image.mode == "r+" else "r+")
        else:
            self._cache()

    def _move(self) -> None:
        """All files get another folder, and the image is opened anew there."""
        self._folder = self._folder.rename(self._folder.with_name(f"moved-{next(self._names)}"))
        self._reopen("path", path=self._folder / "disk.vmdk")  # type: ignore[arg-type]

    def guest_writes(self, writes: bool) -> None:
        """After the return an image that the guest writes to is writable."""
        with self._step:
            self._may_be_read_only = not writes
            if writes and self._image.mode == "r":
                self._reopen("mode", mode="r+")

    def count_from_now(self) -> None:
        """Forgets what was made while the guest booted."""
        with self._step:
            self.made = dict.fromkeys(self.made, 0)

    @property
    def path(self) -> Path:
        return self._folder / "disk.vmdk"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        if self.failure is not None:
            raise self.failure


def threads() -> int:
    """Of this process, those of the core too."""
    return len(os.listdir("/proc/self/task"))


def check_files(path: Path, wanted: bytes) -> None:
    """The image reads as wanted to us and to QEMU, and is sound."""
    with fdstash.open(path) as again:
        assert again.pread(SIZE, 0) == wanted
    raw = path.with_name("wanted.raw")
    raw.write_bytes(wanted)
    ran = qemu_img("compare", "-f", "vmdk", "-F", "raw", path, raw)
    assert ran.status == 0, ran
    assert fdstash.check(path).clean
    if "SPARSE" in path.read_text():
        assert not list(sparse_trouble(path))
        ran = qemu_img("check", "-f", "vmdk", path)
        assert ran.status == 0, ran


@pytest.mark.timeout(PATIENCE + 120)
@pytest.mark.parametrize("kind", ["twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
def test_a_guest_writes_and_reads_its_disk_that_is_reopened(folder: Path, kind: str) -> None:
    files, where = folder / "files", str(folder / "nbd.sock")
    files.mkdir()
    fdstash.create(files / "disk.vmdk", "vmdk", SIZE, subformat=kind, extent_size=EXTENT_SIZE)
    failed: list[tuple[str, str, int]] = []
    rounds = {"writes": 0, "reads": 0}
    before = threads()
    with (
        fdstash.open(files / "disk.vmdk", "r+") as image,
        NbdServer(on_error=lambda *told: failed.append(told)) as server,
    ):
        assert len(image.files) == EXTENTS + 1
        server.add("e", image, writable=True)
        server.listen_unix(where)
        with (
            Reopener(image, files) as reopener,
            Guest(folder, where, SIZE, writes=WRITES, seed=7, patience=PATIENCE) as guest,
        ):
            started = 0.0

            def phase(name: str) -> str:
                nonlocal started
                assert reopener.failure is None, reopener.failure
                reopener.guest_writes(name == "writes")
                if not started:
                    started = time.monotonic()
                    reopener.count_from_now()
                enough = reopener.total > REOPENS and rounds["reads"] >= ROUNDS
                if enough and name == "writes":
                    return "end"
                rounds[name] += 1
                return "go"

            counts = guest.run(phase)
            seconds = time.monotonic() - started
        assert not failed
    found = {"boot_seconds": guest.boot_seconds, "load_seconds": seconds, **counts, **reopener.made}
    assert reopener.total > REOPENS
    assert all(reopener.made.values())
    assert counts["writes"] + counts["zeroes"] == WORKERS * WRITES * rounds["writes"]
    assert counts["flushes"] == WORKERS * rounds["writes"]

    check_files(reopener.path, stamped(guest.account()))
    limit = time.monotonic() + 20
    while threads() > before:
        assert time.monotonic() < limit
        time.sleep(0.01)
    evidence(f"guest-{kind}", found)
