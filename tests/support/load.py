"""Threads with a bound on how long they may take: a verified load, and a worker to wait for."""

from __future__ import annotations

import errno
import os
import queue
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from fdstash import Image

__all__ = ["PATIENCE", "Hang", "Load", "Worker"]

T = TypeVar("T")

PATIENCE = 120.0 if os.environ.get("FDSTASH_SANITIZER") else 30.0
"""Seconds after which a thread counts as hanging."""

_BLOCK = 4096
_LONGEST = 3 * _BLOCK
#: Seconds between rounds: a reopen of a hundred calls would else wait as often for its turn.
_BREATH = 0.0001


class Hang(Exception):
    """A thread did not come back; the message says where it is."""

    def __init__(self, what: str, thread: threading.Thread) -> None:
        frame = sys._current_frames().get(thread.ident or 0)
        where = "".join(traceback.format_stack(frame)[-4:]) if frame else "it has ended\n"
        super().__init__(f"{what} hangs:\n{where}")


class Worker:
    """One daemon thread that makes calls for another, which waits only so long."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def call(self, function: Callable[[], T], patience: float = PATIENCE) -> T:
        """What `function` returns or raises on that thread. Raises `Hang`."""
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                errors.append(error)
            done.set()

        self._calls.put(run)
        if not done.wait(patience):
            raise Hang(self._thread.name, self._thread)
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        self._calls.put(None)
        self._thread.join(PATIENCE)


class Load:
    """Reads and writes an image without pause, and knows every byte of it.

    Aligned and unaligned blocks in turn. `model` holds the bytes; while the load is paused, its
    owner may use image and model. `failures` says what went wrong.
    """

    def __init__(self, image: Image, model: bytearray, *, seed: int, writing: bool) -> None:
        self.image = image
        self.model = model
        self.writing = writing
        self.rounds = 0
        self.requests = 0
        self.refused = 0
        self.failures: list[str] = []
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._pause_wanted = True
        self._idle = False
        self._ended = False
        self._awaited = 0
        self._thread = threading.Thread(target=self._run, name="the load", daemon=True)
        self._thread.start()

    def pause(self, patience: float = PATIENCE) -> None:
        """Returns once no request of the load is in flight. Raises `Hang`."""
        with self._changed:
            self._pause_wanted = True
            if not self._changed.wait_for(lambda: self._idle, patience):
                raise Hang("a request of the load", self._thread)

    def resume(self) -> None:
        with self._changed:
            self._pause_wanted = False
            self._idle = False
            self._changed.notify_all()

    def wait_rounds(self, rounds: int, patience: float = PATIENCE) -> None:
        """Wait for that many more; while it runs. Raises `Hang`."""
        with self._changed:
            self._awaited = self.rounds + rounds
            if not self._changed.wait_for(lambda: self.rounds >= self._awaited, patience):
                raise Hang("a request of the load", self._thread)

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise Hang("a request of the load", self._thread)

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._pause_wanted and not self._ended:
                    self._idle = True
                    self._changed.notify_all()
                    self._changed.wait()
                if self._ended:
                    return
            self._round()
            time.sleep(_BREATH)
            self.rounds += 1
            if self.rounds == self._awaited:
                with self._changed:
                    self._changed.notify_all()

    def _round(self) -> None:
        for aligned in (True, False):
            if self.writing:
                self._write(*self._place(aligned=aligned))
            self._read(*self._place(aligned=aligned))

    def _place(self, *, aligned: bool) -> tuple[int, int]:
        size = len(self.model)
        if aligned:
            offset = self._random.randrange(0, size - _LONGEST, _BLOCK)
            return offset, self._random.randrange(_BLOCK, _LONGEST + 1, _BLOCK)
        offset = self._random.randrange(size - _LONGEST)
        return offset, self._random.randrange(1, _LONGEST)

    def _write(self, offset: int, length: int) -> None:
        data = self._random.randbytes(length)
        self.requests += 1
        try:
            done = self.image.pwrite(data, offset)
        except OSError as error:
            if error.errno == errno.EBADF:
                self.refused += 1
            else:
                self._failed(f"write of {length} at {offset}: {error!r}")
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the request has failed
            self._failed(f"write of {length} at {offset}: {error!r}")
            return
        self.model[offset : offset + length] = data
        if done != length:
            self._failed(f"write of {length} at {offset} did only {done}")

    def _read(self, offset: int, length: int) -> None:
        self.requests += 1
        try:
            found = self.image.pread(length, offset)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(f"read of {length} at {offset}: {error!r}")
            return
        if found != self.model[offset : offset + length]:
            self._failed(f"wrong bytes in a read of {length} at {offset}")

    def _failed(self, text: str) -> None:
        if len(self.failures) < 10:
            self.failures.append(text)
