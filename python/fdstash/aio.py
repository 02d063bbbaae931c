"""`Image.aio`: the requests of an image for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fdstash._ffi import raise_for
from fdstash.errors import ClosedError, ImageIOError
from fdstash.queue import Mark, Queue
from fdstash.requests import REASONS, check_range
from fdstash.state import ImageState

__all__ = ["AsyncImage"]

_DEPTH = 64


class _Lane:
    """One event loop's queue. Used on the loop's thread alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: Queue) -> None:
        self.loop = loop
        self.queue = queue
        self._room = asyncio.Semaphore(queue.depth)
        self._submitting = False
        loop.add_reader(queue.fileno(), self.collect)

    async def request(self, begin: Callable[[asyncio.Future[int]], None]) -> int:
        """The result of a request; one that is cancelled goes on, and is told to nobody."""
        await self._room.acquire()
        future: asyncio.Future[int] = self.loop.create_future()
        try:
            begin(future)
        except BaseException:
            self._room.release()
            raise
        if not self._submitting:
            # What is asked for in one turn of the loop is submitted together.
            self._submitting = True
            self.loop.call_soon(self._submit)
        return await future

    def _submit(self) -> None:
        self._submitting = False
        if not self.queue.closed:
            self.queue.submit()

    def collect(self) -> None:
        """Resolve what has completed."""
        for future, result in self.queue.wait(0):
            self._room.release()
            if not future.done():
                future.set_result(result)

    def close(self) -> None:
        """Of an image that is closed: everything has completed, or will with an error."""
        if self.queue.closed:
            return
        self.loop.remove_reader(self.queue.fileno())
        while self.queue.in_flight:
            for future, result in self.queue.wait():
                self._room.release()  # whoever waits for room is told that it is closed
                if not future.done():
                    future.set_result(result)
        self.queue.close()


class AsyncImage:
    """The requests of `Image` as coroutines, with their arguments, results and errors.

    Any event loop, and several: each has a queue of its own, in which at most 64 requests are
    in flight and further ones wait their turn. A task that is cancelled leaves its request to
    end by itself. For reopens under the loop use `asyncio.to_thread(img.reopen, ...)`.
    """

    def __init__(self, state: ImageState, mark: Mark) -> None:
        self._state = state
        self._mark = mark
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._lock = threading.Lock()

    async def pread(self, n: int, offset: int) -> bytes:
        """As `Image.pread`."""
        check_range(n, offset)
        buffer = bytearray(min(n, max(0, self._state.core.size - offset)))
        got = await self._request(lambda lane, tag: lane.queue.read(buffer, offset, tag))
        return bytes(memoryview(buffer)[:got])

    async def preadv(self, buffers: Sequence[Any], offset: int) -> int:
        """As `Image.preadv`."""
        return await self._each(buffers, offset, Queue.read)

    async def pwrite(self, data: Any, offset: int, *, fua: bool = False) -> int:
        """As `Image.pwrite`."""
        return await self._request(lambda lane, tag: lane.queue.write(data, offset, tag, fua=fua))

    async def pwritev(self, buffers: Sequence[Any], offset: int, *, fua: bool = False) -> int:
        """As `Image.pwritev`, but one buffer after the other."""
        return await self._each(buffers, offset, partial(Queue.write, fua=fua))

    async def zero(self, n: int, offset: int, *, unmap: bool = False, fua: bool = False) -> None:
        """As `Image.zero`."""
        await self._request(lambda lane, tag: lane.queue.zero(n, offset, tag, unmap=unmap, fua=fua))

    async def trim(self, n: int, offset: int) -> None:
        """As `Image.trim`."""
        await self._request(lambda lane, tag: lane.queue.trim(n, offset, tag))

    async def flush(self) -> None:
        """As `Image.flush`."""
        await self._request(lambda lane, tag: lane.queue.flush(tag))

    def close(self) -> None:
        """Of an image that is closed: let its queues go, each on its loop's thread."""
        with self._lock:
            lanes = list(self._lanes.values())
            self._lanes.clear()
        for lane in lanes:
            if lane.loop.is_closed():
                lane.queue.close()
            elif _is_running_here(lane.loop) or not lane.loop.is_running():
                lane.close()
            else:
                lane.loop.call_soon_threadsafe(lane.close)

    async def _each(self, buffers: Sequence[Any], offset: int, method: Any) -> int:
        done = 0
        for buffer in buffers:
            n = memoryview(buffer).nbytes
            got = await self._request(partial(_begin_one, method, buffer, offset + done))
            done += got
            if got < n:
                break
        return done

    async def _request(self, begin: Callable[[_Lane, asyncio.Future[int]], None]) -> int:
        lane = self._lane()
        result = await lane.request(lambda tag: begin(lane, tag))
        if result < 0:
            raise_for(result, self._state.name, REASONS.get(-result))
        return result

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        with self._lock:
            lane = self._lanes.get(loop)
            if lane is None:
                if self._state.closed:
                    raise ClosedError(f"the image {self._state.name!r} is closed")
                for other in [each for each in self._lanes if each.is_closed()]:
                    self._lanes.pop(other).queue.close()
                lane = _Lane(loop, self._queue())
                self._lanes[loop] = lane
            return lane

    def _queue(self) -> Queue:
        """One whose `submit` never waits, as ``auto`` may for a write: a loop must turn."""
        try:
            return Queue(self._state, self._mark, _DEPTH, "io_uring")
        except ImageIOError:
            return Queue(self._state, self._mark, _DEPTH, "threads")


def _begin_one(method: Any, buffer: Any, offset: int, lane: _Lane, tag: object) -> None:
    method(lane.queue, buffer, offset, tag)


def _is_running_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
