"""Threads that do everything to parts of an image of their own, and know every byte of them."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from fdstash import Image
from tests.support.disks import noise

__all__ = ["RegionLoad"]

_SMALL = 3000
_LARGE = 300_000


class _Worker(threading.Thread):
    """One region, [start, start + length of the model)."""

    def __init__(self, load: RegionLoad, number: int, start: int, model: bytearray) -> None:
        super().__init__(name=f"region-{number}", daemon=True)
        self.load = load
        self.start_offset = start
        self.model = model
        self.random = random.Random(number)
        self.requests = 0
        self.refused = 0
        self.failures: list[str] = []
        self.longest_request = 0.0

    def run(self) -> None:
        while not self.load.stopping.is_set() and not self.failures:
            self.turn()

    def turn(self) -> None:
        what = self.random.choice(("write", "write", "fua", "zero", "unmap", "trim", "flush"))
        offset, n = self._place()
        self._timed(what, offset, n, lambda: getattr(self, f"_{what}")(offset, n))
        offset, n = self._place()
        self._timed("read", offset, n, lambda: self._read(offset, n))

    def _place(self) -> tuple[int, int]:
        """Within the region."""
        size = len(self.model)
        offset = self.random.randrange(size)
        n = self.random.randint(1, self.random.choice((_SMALL, _SMALL, _LARGE)))
        return offset, min(n, size - offset)

    def _timed(self, what: str, offset: int, n: int, call: Callable[[], None]) -> None:
        self.requests += 1
        began = time.perf_counter()
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has failed
            if getattr(error, "errno", None) == errno.EBADF and self.load.may_be_refused:
                self.refused += 1
            else:
                self._failed(f"{what} of {n} at {offset + self.start_offset}: {error!r}")
        self.longest_request = max(self.longest_request, time.perf_counter() - began)

    def _failed(self, text: str) -> None:
        self.failures.append(f"{self.name}: {text}")

    def _write(self, offset: int, n: int, *, fua: bool = False) -> None:
        data = noise(n, self.random.randrange(1 << 30))
        done = self.load.image.pwrite(data, offset + self.start_offset, fua=fua)
        self.model[offset : offset + n] = data
        if done != n:
            self._failed(f"write of {n} at {offset + self.start_offset} did only {done}")

    def _fua(self, offset: int, n: int) -> None:
        self._write(offset, min(n, _SMALL), fua=True)

    def _zero(self, offset: int, n: int, *, unmap: bool = False) -> None:
        self.load.image.zero(n, offset + self.start_offset, unmap=unmap)
        self.model[offset : offset + n] = bytes(n)

    def _unmap(self, offset: int, n: int) -> None:
        self._zero(offset, n, unmap=True)

    def _trim(self, offset: int, n: int) -> None:
        """Each sector has its old bytes or zeros; from then on what it has."""
        self.load.image.trim(n, offset + self.start_offset)
        found = self.load.image.pread(n, offset + self.start_offset)
        for at in range(0, n, 512):
            part = found[at : at + 512]
            if any(part) and part != self.model[offset + at : offset + at + len(part)]:
                self._trimmed(found, offset)
                break
        self.model[offset : offset + n] = found

    def _trimmed(self, found: bytes, offset: int) -> None:
        """Byte by byte: grains need not begin where sectors of the request do."""
        for at, byte in enumerate(found):
            if byte not in (0, self.model[offset + at]):
                self._failed(f"a trim at {self.start_offset + offset} changed byte {at} otherwise")
                return

    def _flush(self, offset: int, n: int) -> None:
        self.load.image.flush()

    def _read(self, offset: int, n: int) -> None:
        found = self.load.image.pread(n, offset + self.start_offset)
        self.check(found, offset)

    def check(self, found: bytes, offset: int) -> None:
        """`found` must be what the region has at `offset`."""
        expected = self.model[offset : offset + len(found)]
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
            self._failed(
                f"wrong bytes from {self.start_offset + offset + at} on, in a read of "
                f"{len(found)} at {self.start_offset + offset}: {found[at : at + 8].hex()} for "
                f"{expected[at : at + 8].hex()}"
            )


class RegionLoad:
    """As many threads as regions (offset, length), which must not overlap.

    `may_be_refused`: EBADF is the answer of an image that is read-only meanwhile, and
    leaves all bytes as they were.
    """

    def __init__(
        self, image: Image, regions: Sequence[tuple[int, int]], *, may_be_refused: bool = False
    ) -> None:
        self.image = image
        self.may_be_refused = may_be_refused
        self.stopping = threading.Event()
        self._workers = [
            _Worker(self, number, start, bytearray(image.pread(length, start)))
            for number, (start, length) in enumerate(regions)
        ]

    def start(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def stop(self, timeout: float = 60) -> None:
        """TimeoutError if a request hangs."""
        self.stopping.set()
        for worker in self._workers:
            worker.join(timeout)
            if worker.is_alive():
                raise TimeoutError(f"{worker.name} is still in a request after {timeout} s")

    def assert_clean(self, at_least: int = 0) -> None:
        failures = [text for worker in self._workers for text in worker.failures]
        assert not failures, "\n".join(failures)
        assert self.requests >= at_least, f"only {self.requests} requests"

    def verify(self, disk: bytes) -> None:
        """`disk`: all bytes of the image. While stopped."""
        for worker in self._workers:
            start = worker.start_offset
            worker.check(disk[start : start + len(worker.model)], 0)
        self.assert_clean()

    @property
    def requests(self) -> int:
        return sum(worker.requests for worker in self._workers)

    @property
    def refused(self) -> int:
        return sum(worker.refused for worker in self._workers)

    @property
    def longest_request(self) -> float:
        """Seconds."""
        return max(worker.longest_request for worker in self._workers)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
