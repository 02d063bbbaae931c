"""An image against a model of its bytes: any order of requests, reopens and failures.

A trimmed byte may read as it was or as zero until it is written again. At the end `qemu-img`
compares the image with a raw twin made of the model's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
from fdstash import FDStash, Image, ReopenError
from tests.support.disks import SECTOR, ExtentSpec, make_flat, make_raw
from tests.support.kernel import descriptor_count
from tests.support.qemu_tools import qemu_img
from tests.support.seen import assert_as_kernel_says
from tests.support.tier import FULL

#: Sizes of no whole pages, one extent that starts inside its file.
_EXTENTS = tuple(
    ExtentSpec("RW", sectors, name=f"extent-{number}.bin", start=start)
    for number, (sectors, start) in enumerate([(37, 0), (129, 0), (91, 3), (25, 0), (61, 0)])
)
_RAW_SIZE = 100_003
_MODES = ("r", "r+")
_CACHES = ("writeback", "none", "writethrough", "directsync", "unsafe")

_edges = [0, 511, 512, 4095, 4096, *(sum(e.length for e in _EXTENTS[:n]) for n in range(1, 6))]
offsets = st.integers(0, 1 << 18) | st.builds(
    lambda edge, shift: max(0, edge + shift), st.sampled_from(_edges), st.integers(-600, 600)
)
lengths = st.sampled_from([1, 511, 512, 513, 4096, 4097, 40_000]) | st.integers(1, 9000)
seeds = st.integers(0, 1 << 16)
modes = st.sampled_from([None, *_MODES])
caches = st.sampled_from([None, *_CACHES])


class ImageMachine(RuleBasedStateMachine):
    """One image in a folder of its own; `layout` is raw or vmdk."""

    def __init__(self, layout: str, root: Path) -> None:
        super().__init__()
        self.layout = layout
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.homes = 0
        home = self.fresh_home()
        if layout == "vmdk":
            disk = make_flat(home, _EXTENTS, create_type="monolithicFlat")
            self.path, self.model = disk.path, bytearray(disk.guest_bytes())
        else:
            self.path = make_raw(home, _RAW_SIZE)
            self.model = bytearray(self.path.read_bytes())
        self.unknown = bytearray(len(self.model))
        self.before = descriptor_count()
        self.mode, self.cache = "r+", "writeback"
        self.image = self.open()

    def open(self, **options: Any) -> Image:
        return fdstash.open(self.path, self.mode, format=self.layout, cache=self.cache, **options)

    def fresh_home(self) -> Path:
        self.homes += 1
        home = self.root / f"home-{self.homes}"
        home.mkdir()
        return home

    @property
    def files(self) -> list[Path]:
        names = [e.name for e in _EXTENTS if e.name] if self.layout == "vmdk" else []
        return [self.path, *(self.path.parent / name for name in names)]

    @property
    def by_path(self) -> bool:
        """Whether `path=` with the image's own walks the same path again."""
        return self.image.files[0].path == str(self.path)

    def place(self, offset: int, n: int) -> tuple[int, int]:
        """A range within the image."""
        offset %= len(self.model)
        return offset, min(n, len(self.model) - offset)

    def put(self, offset: int, data: bytes, mark: int = 0) -> None:
        self.model[offset : offset + len(data)] = data
        self.unknown[offset : offset + len(data)] = bytes([mark]) * len(data)

    def check(self, found: bytes | bytearray, offset: int) -> None:
        wanted = self.model[offset : offset + len(found)]
        if found == wanted:
            return
        for at, (got, want) in enumerate(zip(found, wanted, strict=True)):
            allowed = got == want or (self.unknown[offset + at] and got == 0)
            assert allowed, f"byte {offset + at} is {got}, not {want}"

    def change(self, request: Callable[[], object], offset: int, n: int) -> bool:
        """Whether the request was made; it must be refused as the mode and the end say."""
        code = errno.EBADF if self.mode == "r" else errno.ENOSPC
        if self.mode == "r" or offset + n > len(self.model):
            with pytest.raises(fdstash.ImageIOError) as caught:
                request()
            assert caught.value.errno == code
            return False
        request()
        return True

    def reopen(self, mode: str | None, cache: str | None, **options: Any) -> None:
        self.image.reopen(mode=mode, cache=cache, **options)
        self.mode, self.cache = mode or self.mode, cache or self.cache

    @contextlib.contextmanager
    def refused(self, *codes: int) -> Iterator[None]:
        """A reopen that fails and changes nothing."""
        files = self.image.files
        with pytest.raises(ReopenError) as caught:
            yield
        assert caught.value.rolled_back
        assert caught.value.errno in codes, caught.value
        assert [f._replace(mode="", direct=False, fd=0) for f in self.image.files] == [
            f._replace(mode="", direct=False, fd=0) for f in files
        ]

    def prepare(self) -> None:
        """Reads are served while it runs, and a write from it is refused."""
        self.check(self.image.pread(700, 400), 400)
        if self.mode == "r+":
            with pytest.raises(fdstash.ImageIOError) as caught:
                self.image.pwrite(b"x", 0)
            assert caught.value.errno == errno.EDEADLK

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

    # -- reopens that succeed

    @rule(mode=modes, cache=caches, prepare=st.booleans())
    def reopen_options(self, mode: str | None, cache: str | None, *, prepare: bool) -> None:
        self.reopen(mode, cache, prepare=self.prepare if prepare else None)

    @rule(mode=modes, cache=caches)
    def reopen_own_path(self, mode: str | None, cache: str | None) -> None:
        self.reopen(mode, cache, path=self.path)

    @rule(mode=modes, cache=caches)
    def reopen_hard_link(self, mode: str | None, cache: str | None) -> None:
        home = self.fresh_home()
        for file in self.files:
            os.link(file, home / file.name)
        self.reopen(mode, cache, path=home / self.path.name)
        self.path = home / self.path.name

    @rule(mode=modes, cache=caches)
    def reopen_renamed(self, mode: str | None, cache: str | None) -> None:
        self.homes += 1
        target = self.path.with_name(f"renamed-{self.homes}.{self.layout}")
        self.path.rename(target)
        self.reopen(mode, cache, path=target)
        self.path = target

    @rule(mode=modes, cache=caches)
    def reopen_copy(self, mode: str | None, cache: str | None) -> None:
        home, files = self.fresh_home(), self.files
        for file in files:
            shutil.copyfile(file, home / file.name)
        if self.mode == "r+":  # the copy is old by now
            self.write(*self.place(4000, 3000), 7, fua=False)

        def bring_up_to_date() -> None:
            for file in files:
                (home / file.name).write_bytes(file.read_bytes())

        self.reopen(mode, cache, path=home / self.path.name, prepare=bring_up_to_date)
        for file in files:  # whoever still looks there is found out
            file.write_bytes(b"\xee" * file.stat().st_size)
        self.path = home / self.path.name

    @rule(mode=modes, cache=caches)
    def reopen_stash(self, mode: str | None, cache: str | None) -> None:
        with FDStash() as stash:
            for file in self.image.files:
                for access in (os.O_RDONLY, os.O_RDWR):
                    for direct in (0, os.O_DIRECT):
                        stash.add(file.name, os.open(file.name, access | direct))
            held = descriptor_count()
            self.reopen(mode, cache, stash=stash)
            assert descriptor_count() == held

    # -- reopens that fail

    @rule(mode=modes, cache=caches)
    def reopen_missing_path(self, mode: str | None, cache: str | None) -> None:
        with self.refused(errno.ENOENT):
            self.reopen(mode, cache, path=self.path.with_name("missing"))

    @precondition(lambda self: self.by_path)
    @rule(mode=modes, cache=caches, which=st.integers(0, 5))
    def reopen_other_inode(self, mode: str | None, cache: str | None, which: int) -> None:
        file = self.files[which % len(self.files)]
        aside = file.with_name("aside")
        file.rename(aside)
        try:
            shutil.copyfile(aside, file)
            with self.refused(errno.ESTALE):
                self.reopen(mode, cache, path=self.path)
        finally:
            aside.replace(file)

    @rule(mode=st.sampled_from(_MODES), cache=st.sampled_from(_CACHES), which=st.integers(0, 5))
    def reopen_wrong_stash(self, mode: str, cache: str, which: int) -> None:
        info = self.image.files[which % len(self.files)]
        other = self.root / "other"
        shutil.copyfile(info.name, other)
        flags = os.O_RDWR if mode == "r+" else os.O_RDONLY
        flags |= os.O_DIRECT if cache in ("none", "directsync") else 0
        with FDStash() as stash:
            stash.give(info.name, os.open(other, flags))
            with self.refused(errno.ESTALE):
                self.reopen(mode, cache, stash=stash)

    @rule(mode=modes, cache=caches, elsewhere=st.booleans())
    def reopen_prepare_raises(
        self, mode: str | None, cache: str | None, *, elsewhere: bool
    ) -> None:
        def refuse() -> None:
            raise KeyError("not now")

        path = None
        if elsewhere:
            home = self.fresh_home()
            for file in self.files:
                shutil.copyfile(file, home / file.name)
            path = home / self.path.name
        with self.refused(errno.ECANCELED):
            self.reopen(mode, cache, path=path, prepare=refuse)

    # -- another image of the same files

    @rule(mode=st.sampled_from(_MODES), cache=st.sampled_from(_CACHES))
    def close_and_open(self, mode: str, cache: str) -> None:
        self.image.close()
        assert descriptor_count() == self.before
        self.mode, self.cache = mode, cache
        self.image = self.open()

    @rule(mode=st.sampled_from(_MODES), cache=st.sampled_from(_CACHES))
    def open_from_stash(self, mode: str, cache: str) -> None:
        with FDStash() as stash:
            self.image.extract_fds(stash)
            assert sorted(stash.names()) == sorted(map(str, self.files))
            self.image.close()
            assert descriptor_count() == self.before + len(self.files)
            self.mode, self.cache = mode, cache
            away = self.path.parent.rename(self.root / "away")
            try:  # nothing is looked up where the stash has it
                self.image = self.open(stash=stash)
            finally:
                away.rename(self.path.parent)

    # -- what holds after every step

    @invariant()
    def says_what_the_kernel_says(self) -> None:
        assert_as_kernel_says(self.image)
        found = {(file.device, file.inode) for file in self.image.files}
        assert found == {(s.st_dev, s.st_ino) for s in map(os.stat, self.files)}
        assert all(file.mode == self.mode for file in self.image.files)
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
            self._compare_with_twin()
        finally:
            self.image.close()
            shutil.rmtree(self.root)
        assert descriptor_count() == self.before

    def _compare_with_twin(self) -> None:
        self.reopen("r+", None)
        for at in range(0, len(self.model), SECTOR):
            if any(self.unknown[at : at + SECTOR]):
                self.image.pwrite(self.model[at : at + SECTOR], at)
        self.image.flush()
        twin = self.root / "twin"
        twin.write_bytes(self.model.ljust(-(-len(self.model) // SECTOR) * SECTOR, b"\0"))
        ran = qemu_img("compare", "-U", "-f", self.layout, "-F", "raw", self.path, twin)
        assert ran.status == 0, ran


def _run(layout: str, root: Path, examples: int, steps: int = 40) -> None:
    run_state_machine_as_test(
        partial(ImageMachine, layout, root),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples * 50 if FULL else examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_the_image_is_its_model_on_tmpfs(layout: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        _run(layout, Path(folder), 20)


@pytest.mark.parametrize("layout", ["raw", "vmdk"])
def test_the_image_is_its_model_on_ext4(layout: str, ext4_mount: Callable[..., Path]) -> None:
    _run(layout, ext4_mount(), 10)
