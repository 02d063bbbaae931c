"""A verified load: threads that read and write cells, and miss no failure."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, Protocol, Self

from fdstash.bench.content import Content
from fdstash.bench.inflight import RequestLog
from fdstash.buffers import AlignedBuffer
from fdstash.errors import Error

__all__ = ["Load", "Requestable"]

_FLUSH_EVERY = 4096  # turns of one thread
_PAUSE = 0.001  # seconds after a failure, as a guest would not retry without end
#: After so many turns a thread sleeps for a while (seconds): a load that keeps the
#: interpreter's lock taken would measure how threads wait for that.
_BURST = 32
_THINK = 0.001
_MESSAGES = 5


class Requestable(Protocol):
    """What serves the load: an image, or what stands in for one."""

    def pread(self, n: int, offset: int) -> bytes:
        """As `Image.pread`."""

    def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        """As `Image.preadv`."""

    def pwrite(self, data: Any, offset: int) -> int:
        """As `Image.pwrite`."""

    def flush(self) -> None:
        """As `Image.flush`."""


class _Worker(threading.Thread):
    """One thread: reads each of its cells in turn, verifies it, and writes it every other time.

    Aligned blocks go through aligned memory, everything else through whatever
    memory Python has.
    """

    def __init__(self, load: Load, numbers: list[int]) -> None:
        super().__init__(name="fdstash-load", daemon=True)
        self.load = load
        self.numbers = numbers
        self.log = RequestLog()
        self.failed = 0
        self.wrong = 0
        self.writing = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`, on its thread
            self.error = error
        finally:
            self.writing = False
            self.log.close()

    def _work(self) -> None:
        load = self.load
        numbers = self.numbers
        turn = 0
        rng = random.Random(self.numbers[0])  # noqa: S311 - repeatable, nothing secret
        with AlignedBuffer(load.block_bytes) as buffer:
            while not load.stopping:
                number = numbers[turn % len(numbers)]
                turn += 1
                good = self._read(number, buffer)
                if good and load.writes and rng.getrandbits(1):
                    self._write(number, buffer)
                if load.writes and not turn % _FLUSH_EVERY:
                    self._flush()
                if not turn % _BURST:
                    time.sleep(_THINK)

    def _read(self, number: int, buffer: AlignedBuffer) -> bool:
        """Whether the cell may be written next: it was read, and was not wrong."""
        load = self.load
        offset, length = load.content.cells[number]
        start = perf_counter_ns()
        try:
            if length == load.block_bytes:
                got = load.image.preadv([buffer], offset)
                end = perf_counter_ns()
                data = buffer[:got]
            else:
                data = load.image.pread(length, offset)
                end = perf_counter_ns()
        except (Error, OSError) as error:
            self._failure(start, f"read of {length} bytes at {offset}", error)
            return False
        self.log.add(start, end)
        expected = load.content.expected(number)
        if expected is None or data == expected:
            return True
        self.wrong += 1
        load.say(f"wrong bytes in the {length} at {offset}")
        load.content.spoiled(number)
        return False

    def _write(self, number: int, buffer: AlignedBuffer) -> None:
        load = self.load
        data: Any = load.content.next(number)
        if data is None:
            return
        self.writing = True
        if load.writes_held:
            self.writing = False
            return
        offset = load.content.cells[number].offset
        if len(data) == load.block_bytes:
            buffer[:] = data
            data = buffer
        start = perf_counter_ns()
        try:
            load.image.pwrite(data, offset)
        except (Error, OSError) as error:
            load.content.spoiled(number)
            self._failure(start, f"write of {len(data)} bytes at {offset}", error)
        else:
            self.log.add(start, perf_counter_ns())
            load.content.written(number)
        self.writing = False

    def _flush(self) -> None:
        start = perf_counter_ns()
        try:
            self.load.image.flush()
        except (Error, OSError) as error:
            self._failure(start, "flush", error)
        else:
            self.log.add(start, perf_counter_ns())

    def _failure(self, start: int, what: str, error: BaseException) -> None:
        self.log.add(start, perf_counter_ns())
        self.failed += 1
        self.load.say(f"{what}: {error}")
        time.sleep(_PAUSE)


class Load:
    """`threads` threads on one image; started by entering the context, ended by leaving it.

    Every cell belongs to one thread. `writes`: whether it writes what the content
    lets it write.
    """

    def __init__(
        self,
        image: Requestable,
        content: Content,
        *,
        threads: int,
        block_bytes: int,
        seed: int,
        writes: bool,
    ) -> None:
        self.image = image
        self.content = content
        self.block_bytes = block_bytes
        self.writes = writes
        self.writes_held = False
        self.stopping = False
        self.messages: list[str] = []
        order = list(range(len(content.cells)))
        random.Random(seed).shuffle(order)  # noqa: S311 - a repeatable order, nothing secret
        shares = [order[first::threads] for first in range(threads)]
        self._workers = [_Worker(self, share) for share in shares if share]

    @property
    def logs(self) -> list[RequestLog]:
        """One for each thread."""
        return [worker.log for worker in self._workers]

    @property
    def failed(self) -> int:
        """Requests that raised an error."""
        return sum(worker.failed for worker in self._workers)

    @property
    def wrong(self) -> int:
        """Reads that returned other bytes than the cell holds."""
        return sum(worker.wrong for worker in self._workers)

    def say(self, message: str) -> None:
        """Keep a message, if it is one of the first."""
        if len(self.messages) < _MESSAGES:
            self.messages.append(message)

    def hold_writes(self) -> None:
        """Let no write begin, and wait for those under way: the image is to be read-only."""
        self.writes_held = True
        while any(worker.writing for worker in self._workers):
            time.sleep(0.0001)

    def resume_writes(self) -> None:
        """Let writes begin again."""
        self.writes_held = False

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping = True
        for worker in self._workers:
            worker.join()
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error
