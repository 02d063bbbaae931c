"""A queue under which the kernel begins to refuse io_uring: a program for one child each.

`python -m tests.support.refused_ring PATH CALLS ERRNO WHEN [bound]`: CALLS are numbers with
commas between; WHEN is before, or turn:N, after that many requests. Ends with 0 if every request
was done as it should, and the image still serves.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence

import fdstash
from fdstash import AlignedBuffer, Image, Queue
from tests.support.seccomp import refuse

__all__ = ["main"]

PARTS = 64
PART = 4096
DEPTH = 16
REQUESTS = 300


def _content(part: int, turn: int) -> bytes:
    return random.Random(part << 32 | turn).randbytes(PART)


class _Load:
    """Verified requests, each for a part that no other uses meanwhile."""

    def __init__(self, image: Image, queue: Queue, memory: AlignedBuffer) -> None:
        self.image, self.queue = image, queue
        with memoryview(memory) as view:
            self._places = [view[at : at + PART] for at in range(0, DEPTH * PART, PART)]
        self._rng = random.Random(1)
        self._turns = dict.fromkeys(range(PARTS), 0)
        self._free = list(range(DEPTH))
        self._busy: dict[int, tuple[int, str]] = {}

    def begin(self) -> None:
        while self._free:
            place = self._free.pop()
            used = {part for part, _ in self._busy.values()}
            part = self._rng.choice([each for each in range(PARTS) if each not in used])
            kind = self._rng.choice(("read", "write"))
            if kind == "write":
                self._turns[part] += 1
                self._places[place][:] = _content(part, self._turns[part])
                self.queue.write(self._places[place], part * PART, place)
            else:
                self.queue.read(self._places[place], part * PART, place)
            self._busy[place] = part, kind

    def end_some(self, number: int) -> int:
        done = self.queue.wait(number, timeout=60)
        assert len(done) >= number, "it waits without end"
        for place, result in done:
            part, kind = self._busy.pop(place)
            self._free.append(place)
            assert result == PART, (kind, part, result)
            if kind == "read":
                assert self._places[place] == _content(part, self._turns[part]), (kind, part)
        return len(done)

    def close(self) -> None:
        while self.queue.in_flight:
            self.end_some(1)
        self._places.clear()
        for part, turn in self._turns.items():
            assert self.image.pread(PART, part * PART) == _content(part, turn), part


def main(arguments: Sequence[str]) -> None:
    path, calls, error, when, *rest = arguments
    numbers = [int(call) for call in calls.split(",")]
    with open(path, "wb") as file:
        file.writelines(_content(part, 0) for part in range(PARTS))
    before = len(os.listdir("/proc/self/fd"))
    with fdstash.open(path, "r+", format="raw", cache="none") as image:
        if when == "before":
            refuse(numbers, int(error))
        with (
            AlignedBuffer(DEPTH * PART) as memory,
            image.queue(DEPTH, engine="auto", bound="bound" in rest) as queue,
        ):
            had_ring = queue.engine == "io_uring"
            load = _Load(image, queue, memory)
            done = 0
            while done < REQUESTS:
                load.begin()
                if when.startswith("turn:") and done >= int(when[5:]):
                    if "submitted" in rest:
                        queue.submit()
                    refuse(numbers, int(error))
                    when = "over"
                done += load.end_some(1)
            load.close()
            print(had_ring, queue.engine)
        image.reopen(cache="writeback")
        image.flush()
    assert len(os.listdir("/proc/self/fd")) == before


if __name__ == "__main__":
    main(sys.argv[1:])
