"""Whatever is done to a host file in whatever order, it holds what a bytearray holds."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdstash import Image
from tests.support.disks import noise
from tests.support.ground import DIRECT_PLACES, Ground, at, directness, image_at
from tests.support.refusals import failed_with
from tests.support.tier import count

pytestmark = [pytest.mark.usefixtures("no_descriptor_leaks"), pytest.mark.root]

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
        assert failed_with(call) == errno.ENOSPC

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
            assert failed_with(lambda: self.image.resize(size)) == errno.ENOTSUP
            return
        self.image.resize(size)
        self.bytes[:] = self.bytes[:size].ljust(size, b"\0")

    def check(self) -> None:
        assert self.image.size == len(self.bytes)
        assert self.image.pread(len(self.bytes) + 1, 0) == self.bytes
        assert self.ground.content() == self.bytes


@at(DIRECT_PLACES)
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
