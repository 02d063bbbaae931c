"""A disk behind cluster tables reads as a plain one, whatever is done to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fdstash
from fdstash import clusters
from fdstash.formats import registry
from tests.support import toy_format
from tests.support.disks import noise
from tests.support.tier import count

SIZE = 3 * toy_format.CLUSTER * toy_format.ENTRIES + 1000

offsets = st.integers(0, SIZE - 1)
lengths = st.one_of(
    st.integers(1, 600), st.integers(1, 6).map(lambda n: n * toy_format.CLUSTER), st.just(70_000)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "fua", "read"]), offsets, lengths),
        st.tuples(st.sampled_from(["zero", "unmap", "trim"]), offsets, lengths),
        st.tuples(
            st.sampled_from(["zero", "unmap", "trim"]),
            offsets.map(lambda n: n // toy_format.CLUSTER * toy_format.CLUSTER),
            lengths,
        ),
        st.tuples(
            st.sampled_from(["flush", "again", "readonly", "dsync", "writeback"]),
            st.just(0),
            st.just(1),
        ),
    ),
    min_size=1,
    max_size=40,
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(registry._DRIVERS, "toy", toy_format.Toy)
    monkeypatch.setattr(clusters, "PAGE_BYTES", 0)  # pages come and go all the time
    return


class Disk:
    """An image and the bytes that it must have."""

    def __init__(self, path: Path) -> None:
        self.path = toy_format.make(path, SIZE)
        self.data = bytearray(SIZE)
        self.image = fdstash.open(self.path, "r+")
        self.seed = 0

    def do(self, what: str, offset: int, n: int) -> None:
        n = min(n, SIZE - offset)
        image = self.image
        if what in ("write", "fua"):
            self.seed += 1
            new = noise(n, self.seed)
            assert image.pwrite(new, offset, fua=what == "fua") == n
            self.data[offset : offset + n] = new
        elif what in ("zero", "unmap"):
            image.zero(n, offset, unmap=what == "unmap")
            self.data[offset : offset + n] = bytes(n)
        elif what == "trim":
            image.trim(n, offset)
            now = image.pread(n, offset)
            for i, byte in enumerate(now):
                assert byte in (0, self.data[offset + i])
            self.data[offset : offset + n] = now
        elif what == "flush":
            image.flush()
            self.check_file()
        elif what == "again":
            image.close()
            self.image = fdstash.open(self.path, "r+")
        elif what == "readonly":
            image.reopen(mode="r")
            self.check_file()
            image.reopen(mode="r+")
        elif what in ("dsync", "writeback"):
            image.reopen(cache="writethrough" if what == "dsync" else "writeback")
        else:
            assert image.pread(n, offset) == self.data[offset : offset + n]

    def check_file(self) -> None:
        """What is on disk, by itself."""
        with fdstash.open(self.path, lock=False) as other:
            assert other.pread(SIZE, 0) == self.data


@settings(
    max_examples=count(2000),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps)
def test_any_steps(tmp_path: Path, steps: list[tuple[str, int, int]]) -> None:
    disk = Disk(tmp_path / "disk.toy")
    try:
        for step in steps:
            disk.do(*step)
        assert disk.image.pread(SIZE, 0) == disk.data
    finally:
        disk.image.close()
    disk.check_file()
