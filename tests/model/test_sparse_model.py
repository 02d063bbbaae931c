"""Every kind of sparse VMDK that is written in place, against a model of its bytes."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

import fdstash
from fdstash import clusters
from tests.support.grain_tables import assert_tables_are_sound
from tests.support.machine import around, offsets, run_machine, seeds
from tests.support.qemu_tools import qemu_img
from tests.support.reopen_machine import ImageMachine
from tests.support.sparse_kinds import KINDS
from tests.support.tier import FULL
from tests.support.vmdk_peers import by_dissect, by_libvmdk

#: A sanitizer makes everything slow, and looks at each step.
RUNS = 300 if FULL else 2 if os.environ.get("FDSTASH_SANITIZER") else 5
_PAGE_BYTES = clusters.PAGE_BYTES


class SparseMachine(ImageMachine):
    """One disk of the kind `name`."""

    layout = "vmdk"
    lengths = st.sampled_from([1, 512, 513, 4096, 8192, 65536, 65537, 131_072, 300_000]) | (
        st.integers(1, 9000)
    )

    def __init__(self, name: str, root: Path) -> None:
        self.kind = kind = KINDS[name]
        self.own = [each for each in (*kind.sparse, *kind.flat) if each != "disk.vmdk"]
        self.others = [*self.own, *kind.parents]
        self.only_read = [*kind.only_read, *kind.parents]
        self.offsets = around(kind.edges, max(kind.edges))
        self.reads_all = False
        super().__init__(root)

    def make(self, home: Path) -> tuple[Path, bytearray]:
        return home / "disk.vmdk", self.kind.make(home)

    def never_written(self, offset: int, n: int) -> bool:
        end = offset + n
        return any(offset < each.stop and each.start < end for each in self.kind.never_written)

    @initialize(tight=st.booleans(), reads_all=st.booleans())
    def start(self, *, tight: bool, reads_all: bool) -> None:
        """`tight`: hardly a table stays in memory; `reads_all`: so after each step."""
        clusters.PAGE_BYTES = 0 if tight else _PAGE_BYTES
        self.reads_all = reads_all and len(self.model) < 6 << 20

    @invariant()
    def serves_the_bytes_of_the_model(self) -> None:
        if self.reads_all:
            super().serves_the_bytes_of_the_model()

    @rule(offset=offsets, n=lengths, seed=seeds)
    def through_a_file(self, offset: int, n: int, seed: int) -> None:
        offset, n = self.place(offset, n)
        with self.image.as_file() as file:
            file.seek(offset)
            self.check(file.read(n), offset)
        if self.mode == "r+":
            self.write(offset, n, seed, fua=False)

    @rule()
    def flush_and_look_at_the_files(self) -> None:
        """What is on disk by then is all there is."""
        self.image.flush()
        self.look_at_the_files()

    def look_at_the_files(self) -> None:
        with fdstash.open(self.path, lock=False) as other:
            self.check(other.pread(len(self.model), 0), 0)
        for name in self.kind.sparse:
            file = self.path if name == "disk.vmdk" else self.path.parent / name
            assert_tables_are_sound(file)

    def finish(self) -> None:
        self.check(self.image.pread(len(self.model), 0), 0)
        self.image.close()
        self.look_at_the_files()
        # Where the descriptor is in the extent it names that, for libvmdk.
        path = self.path.rename(self.path.with_name("disk.vmdk"))
        if self.kind.qemu:
            for words in (
                ("check", "-f", "vmdk", path),
                ("compare", "-f", "vmdk", "-F", "raw", path, self.twin()),
            ):
                ran = qemu_img(*words)
                assert ran.status == 0, ran
        if "libvmdk" in self.kind.peers:
            parents = [path.parent / name for name in self.kind.parents]
            self.same(by_libvmdk(path, parents), 0)
        if "dissect" in self.kind.peers:
            self.same(by_dissect(path), 0)

    def teardown(self) -> None:
        clusters.PAGE_BYTES = _PAGE_BYTES
        super().teardown()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KINDS)
def test_a_sparse_image_is_its_model(name: str) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run_machine(partial(SparseMachine, name, Path(folder)), RUNS)
