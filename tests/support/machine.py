"""An image against a model of its bytes: any order of requests; `ImageMachine` adds reopens.

A trimmed byte may read as it was or as zero, and reads so from then on until it is written again.
At the end `qemu-img` compares the image with a raw twin made of the model's bytes.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fdstash
from fdstash import Image
from tests.support.disks import SECTOR
from tests.support.kernel import descriptor_count
from tests.support.qemu_tools import qemu_img
from tests.support.seen import assert_as_kernel_says

__all__ = [
    "CACHES",
    "MODES",
    "RequestMachine",
    "around",
    "lengths",
    "offsets",
    "run_machine",
    "seeds",
]

MODES = ("r", "r+")
CACHES = ("writeback", "none", "writethrough", "directsync", "unsafe")


def around(edges: Sequence[int], end: int) -> st.SearchStrategy[int]:
    """Offsets up to `end`, and others at and near `edges`."""
    near = st.builds(
        lambda edge, shift: max(0, edge + shift), st.sampled_from(edges), st.integers(-600, 600)
    )
    return st.integers(0, end) | near | st.sampled_from(edges)


# What each machine says of itself.
offsets: st.SearchStrategy[int] = st.runner().flatmap(lambda machine: machine.offsets)
lengths: st.SearchStrategy[int] = st.runner().flatmap(lambda machine: machine.lengths)
seeds = st.integers(0, 1 << 16)


class RequestMachine(RuleBasedStateMachine):
    """One image of the format `layout`, in a folder of its own, in which `make` puts its files."""

    layout: str
    lengths = st.sampled_from([1, 511, 512, 513, 4096, 4097, 40_000]) | st.integers(1, 9000)
    offsets: st.SearchStrategy[int]

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.homes = 0
        self.path, self.model = self.make(self.fresh_home())
        self.unknown = bytearray(len(self.model))
        self.before = descriptor_count()
        self.mode, self.cache = "r+", "writeback"
        self.image = self.open()

    def make(self, home: Path) -> tuple[Path, bytearray]:
        """The image to open, and its bytes."""
        raise NotImplementedError

    #: The names of the image's other files, beneath its folder.
    others: Sequence[str] = ()
    #: Those among `others` that are never written.
    only_read: Sequence[str] = ()

    def is_only_read(self, name: str) -> bool:
        """Whether a file of that name is only read, whatever the image's mode."""
        return name in {str(self.path.parent / each) for each in self.only_read}

    def never_written(self, offset: int, n: int) -> bool:
        """Whether a part of the range must not be written."""
        return False

    def open(self, **options: Any) -> Image:
        return fdstash.open(self.path, self.mode, format=self.layout, cache=self.cache, **options)

    def fresh_home(self) -> Path:
        self.homes += 1
        home = self.root / f"home-{self.homes}"
        home.mkdir()
        return home

    @property
    def files(self) -> list[Path]:
        return [self.path, *(self.path.parent / name for name in self.others)]

    def place(self, offset: int, n: int) -> tuple[int, int]:
        """A range within the image."""
        offset %= len(self.model)
        return offset, min(n, len(self.model) - offset)

    def put(self, offset: int, data: bytes, mark: int = 0) -> None:
        self.model[offset : offset + len(data)] = data
        self.unknown[offset : offset + len(data)] = bytes([mark]) * len(data)

    def check(self, found: bytes | bytearray, offset: int) -> None:
        """The model's bytes; what was trimmed is known from now on."""
        at, end = offset, offset + len(found)
        while at < end:
            start = self.unknown.find(1, at, end)
            start = end if start < 0 else start
            self.same(found[at - offset : start - offset], at)
            at = self.unknown.find(0, start, end)
            at = end if at < 0 else at
            trimmed = found[start - offset : at - offset]
            for number, byte in enumerate(trimmed, start=start):
                assert byte in (0, self.model[number]), f"byte {number} is {byte} after a trim"
            self.put(start, trimmed)

    def same(self, found: bytes | bytearray, offset: int) -> None:
        wanted = self.model[offset : offset + len(found)]
        if found != wanted:
            pairs = enumerate(zip(found, wanted, strict=True), start=offset)
            at, (got, want) = next(each for each in pairs if each[1][0] != each[1][1])
            raise AssertionError(f"byte {at} is {got}, not {want}")

    def change(self, request: Callable[[], object], offset: int, n: int) -> bool:
        """Whether the request was made; it must be refused as the mode and the end say."""
        code = errno.EBADF if self.mode == "r" else errno.ENOSPC
        if self.mode == "r" or offset + n > len(self.model):
            with pytest.raises(fdstash.ImageIOError) as caught:
                request()
            assert caught.value.errno == code
            return False
        if not self.never_written(offset, n):
            request()
            return True
        try:
            request()
        except fdstash.ImageIOError as error:
            assert error.errno == errno.EROFS
            self.check(self.image.pread(n, offset), offset)  # nothing of it was done
            return False
        return True

    @rule(offset=offsets, n=lengths, seed=seeds, fua=st.booleans())
    def write(self, offset: int, n: int, seed: int, *, fua: bool) -> None:
        offset %= len(self.model)
        data = random.Random(seed).randbytes(n)
        if self.change(lambda: self.image.pwrite(data, offset, fua=fua), offset, n):
            self.put(offset, data)

    @rule(offset=offsets, parts=st.lists(lengths, min_size=1, max_size=4), seed=seeds)
    def pwritev(self, offset: int, parts: Sequence[int], seed: int) -> None:
        offset %= len(self.model)
        data = [random.Random(seed + i).randbytes(n) for i, n in enumerate(parts)]
        if self.change(lambda: self.image.pwritev(data, offset), offset, sum(parts)):
            self.put(offset, b"".join(data))

    @rule(offset=offsets, n=lengths)
    def read(self, offset: int, n: int) -> None:
        found = self.image.pread(n, offset)
        assert len(found) == max(0, min(n, len(self.model) - offset))
        self.check(found, offset)

    @rule(offset=offsets, parts=st.lists(lengths, min_size=1, max_size=4))
    def preadv(self, offset: int, parts: Sequence[int]) -> None:
        buffers = [memoryview(bytearray(n + 1))[1:] for n in parts]
        got = self.image.preadv(buffers, offset)
        assert got == max(0, min(sum(parts), len(self.model) - offset))
        found = b"".join(buffers)
        self.check(found[:got], offset)

    @rule(offset=offsets, n=lengths, unmap=st.booleans(), fua=st.booleans())
    def zero(self, offset: int, n: int, *, unmap: bool, fua: bool) -> None:
        offset, n = self.place(offset, n)
        if self.change(lambda: self.image.zero(n, offset, unmap=unmap, fua=fua), offset, n):
            self.put(offset, bytes(n))

    @rule(offset=offsets, n=lengths)
    def trim(self, offset: int, n: int) -> None:
        offset, n = self.place(offset, n)
        if self.change(lambda: self.image.trim(n, offset), offset, n):
            self.put(offset, bytes(self.model[offset : offset + n]), 1)

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @precondition(lambda self: self.mode == "r+")
    @rule(size=st.integers(1, 150_000))
    def resize(self, size: int) -> None:
        if self.layout == "vmdk":
            with pytest.raises(fdstash.ImageIOError) as caught:
                self.image.resize(size)
            assert caught.value.errno == errno.ENOTSUP
            return
        self.image.resize(size)
        for bytes_ in (self.model, self.unknown):
            bytes_[size:] = bytes(max(0, size - len(bytes_)))

    # -- what holds after every step

    @invariant()
    def says_what_the_kernel_says(self) -> None:
        assert_as_kernel_says(self.image)
        found = {(file.device, file.inode) for file in self.image.files}
        assert found == {(s.st_dev, s.st_ino) for s in map(os.stat, self.files)}
        for file in self.image.files:
            assert file.mode == ("r" if self.is_only_read(file.name) else self.mode)
        assert (self.image.mode, self.image.cache) == (self.mode, self.cache)
        assert self.image.size == len(self.model)

    @invariant()
    def holds_a_slot_and_a_lock_for_each_file(self) -> None:
        wanted = self.before + 2 * len(self.files)
        deadline = time.monotonic() + 2
        while descriptor_count() != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert descriptor_count() == wanted

    @invariant()
    def serves_the_bytes_of_the_model(self) -> None:
        found = self.image.pread(len(self.model) + 1, 0)
        assert len(found) == len(self.model)
        self.check(found, 0)

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.image.close()
            shutil.rmtree(self.root)
        assert descriptor_count() == self.before

    def finish(self) -> None:
        """At the end all bytes are those of the model, for QEMU too."""
        self.check(self.image.pread(len(self.model), 0), 0)
        self.image.flush()
        ran = qemu_img("compare", "-U", "-f", self.layout, "-F", "raw", self.path, self.twin())
        assert ran.status == 0, ran

    def twin(self) -> Path:
        """A raw image of the model's bytes."""
        twin = self.root / "twin"
        twin.write_bytes(self.model.ljust(-(-len(self.model) // SECTOR) * SECTOR, b"\0"))
        return twin


def run_machine(make: Callable[[], RequestMachine], examples: int, steps: int = 40) -> None:
    run_state_machine_as_test(
        make,  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
