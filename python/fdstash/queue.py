"""`Queue`: many requests of an image at once."""

from __future__ import annotations

import atexit
import errno
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

from fdstash._ffi import check, ffi, lib, raise_for
from fdstash.errors import ClosedError, ImageIOError, OptionError
from fdstash.needs import NEEDS
from fdstash.requests import REASONS, check_range, integers, unpin
from fdstash.serving import Server
from fdstash.state import ImageState

__all__ = ["ENGINES", "Completion", "Queue"]

#: Names of `enum fdstash_engine`, those of `fio`.
ENGINES = {
    "auto": lib.FDSTASH_ENGINE_AUTO,
    "io_uring": lib.FDSTASH_ENGINE_URING,
    "threads": lib.FDSTASH_ENGINE_THREADS,
    "psync": lib.FDSTASH_ENGINE_SYNC,
}
_NAMES = {number: name for name, number in ENGINES.items()}

#: What `_mark` of an image is: called before its first write.
Mark = Callable[[int, int], None]


class Completion(NamedTuple):
    """What became of a request."""

    tag: Any  #: what was given with it
    result: int  #: bytes moved; 0 for flush, zero and trim; or ``-errno``


class Queue:
    """At most `depth` requests of an image at once; made by `Image.queue`.

    `read` and its kin take a request up, `submit` starts what was taken up, `wait` submits and
    collects. A buffer stays pinned until its completion was collected: it cannot be resized,
    and must not be written to. Requests are done in any order: one that depends on another is
    to be made when that has completed, `flush` too. What a reopen holds waits here as it does
    elsewhere, and a reopen waits for no one to collect.

    One thread at a time uses a queue, else `RuntimeError`; `fileno` and `in_flight` are for any
    thread. After `close`, or of an image that is closed, methods raise `ClosedError`;
    completions of requests that were in flight when the image was closed can be collected.
    """

    def __init__(
        self, state: ImageState, mark: Mark, depth: int, engine: str, *, bound: bool = False
    ) -> None:
        """`bound`: the thread that submits first is the only one that ever uses it.

        Raises `OptionError`; `ImageIOError` (EOPNOTSUPP) for an engine that is refused.
        """
        self._handle: Any = None
        if engine not in ENGINES:
            raise OptionError(f"engine is one of {', '.join(ENGINES)}", option="engine")
        if not 1 <= depth <= lib.FDSTASH_MAX_DEPTH:
            raise OptionError(f"depth is 1 to {lib.FDSTASH_MAX_DEPTH}", option="depth")
        out, why = ffi.new("fdstash_queue **"), ffi.new("int *")
        handle = state.core.handle
        flags = lib.FDSTASH_QUEUE_BOUND if bound else 0
        rc = lib.fdstash_queue_new(handle, depth, ENGINES[engine], flags, out, why)
        if rc == -errno.EOPNOTSUPP:
            raise ImageIOError(-rc, f"io_uring is not to be had: errno {why[0]}", state.name)
        check(rc, state.name, "queue")
        self._handle = out[0]
        self._state = state
        self._image_mark = mark
        self._depth = depth
        self._owner = threading.Lock()
        self._request = ffi.new("fdstash_request *")
        self._completions = ffi.new("fdstash_completion[]", depth)
        #: By id: the tag, and the view that pins the buffer.
        self._taken: list[tuple[Any, Any] | None] = [None] * depth
        #: Views of requests whose number is not known.
        self._orphans: list[Any] = []
        self._pinned: Any = None
        self._server: Server | None = None
        _living[id(self)] = self

    # -- what it is

    @property
    def depth(self) -> int:
        """How many requests it takes up at once."""
        return self._depth

    @property
    def engine(self) -> str:
        """What moves bytes that are not in the page cache; may become ``threads`` later."""
        return _NAMES[lib.fdstash_queue_engine(self._open())]

    @property
    def in_flight(self) -> int:
        """Requests taken up and not collected."""
        count: int = lib.fdstash_queue_in_flight(self._open())
        return count

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._handle is None

    def fileno(self) -> int:
        """An eventfd, readable when `wait(0)` may have something: for event loops.

        It belongs to the queue; `wait` clears it.
        """
        return check(lib.fdstash_queue_fd(self._open()), self._state.name)

    def pin(self, buffer: Any) -> bool:
        """Have the kernel look the pages of a buffer up once, for requests that lie in it.

        Worth it for memory that many requests past the page cache use; others go on as before.
        Whether it was done: not without io_uring, beyond RLIMIT_MEMLOCK, or a second time; then
        all goes on as before. The buffer cannot be resized until the queue is closed.
        """
        view = ffi.from_buffer("char[]", buffer, require_writable=True)
        with self._owned() as handle:
            if lib.fdstash_queue_engine(handle) != lib.FDSTASH_ENGINE_URING:
                return False
            rc = lib.fdstash_queue_pin(handle, view, len(view))
            if rc in (-errno.EBUSY, -errno.ENOMEM, -errno.EOPNOTSUPP, -errno.EFAULT, -errno.EINVAL):
                return False
            self._check(rc)
            self._pinned = view
            return True

    # -- requests

    def read(self, buffer: Any, offset: int, tag: Any = None) -> None:
        """Fill a writable buffer; the result is short only at the end of the image.

        This and its kin raise `BlockingIOError` when `depth` requests are taken up.
        """
        view = ffi.from_buffer("char[]", buffer, require_writable=True)
        self._add(lib.FDSTASH_OP_READ, view, len(view), offset, tag=tag)

    def write(self, data: Any, offset: int, tag: Any = None, *, fua: bool = False) -> None:
        """Write all of a buffer. `fua`: durable when it completes."""
        view = ffi.from_buffer("char[]", data)
        flags = lib.FDSTASH_FUA if fua else 0
        self._add(lib.FDSTASH_OP_WRITE, view, len(view), offset, tag=tag, flags=flags)

    def flush(self, tag: Any = None) -> None:
        """Make writes durable that had completed when it was submitted."""
        self._add(lib.FDSTASH_OP_FLUSH, ffi.NULL, 0, 0, tag=tag)

    def zero(
        self, n: int, offset: int, tag: Any = None, *, unmap: bool = False, fua: bool = False
    ) -> None:
        """As `Image.zero`."""
        flags = (lib.FDSTASH_FUA if fua else 0) | (lib.FDSTASH_UNMAP if unmap else 0)
        self._add(lib.FDSTASH_OP_ZERO, ffi.NULL, n, offset, tag=tag, flags=flags)

    def trim(self, n: int, offset: int, tag: Any = None) -> None:
        """As `Image.trim`."""
        self._add(lib.FDSTASH_OP_TRIM, ffi.NULL, n, offset, tag=tag)

    def submit(self) -> int:
        """Start what was taken up; returns how many requests are in flight."""
        with self._owned() as handle:
            while self._goes_on(count := lib.fdstash_queue_submit(handle)):
                pass
            return int(count)

    def wait(self, min: int = 1, timeout: float | None = None) -> list[Completion]:  # noqa: A002
        """Submit, and wait for `min` completions, or all there will be, or `timeout` seconds.

        Returns all that are there, which may be more, or after the timeout fewer.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._owned() as handle:
            while True:
                left = -1 if until is None else int(max(0.0, until - time.monotonic()) * 1e9)
                count = lib.fdstash_queue_wait(handle, min, left, self._completions, self._depth)
                if not self._goes_on(count):
                    return list(self._collected(count))

    def read_many(self, offsets: Any, size: int, into: Any) -> int:
        """Read `size` bytes at each of `offsets` into `into`, one after the other.

        `offsets` is a buffer of 64-bit integers. Runs as a whole without the interpreter's
        lock. Returns the bytes moved; raises the first error once all have completed.
        """
        view = ffi.from_buffer("char[]", into, require_writable=True)
        return self._run(lib.FDSTASH_OP_READ, offsets, size, view, 0)

    def write_many(self, offsets: Any, size: int, data: Any, *, fua: bool = False) -> int:
        """Write `size` bytes of `data` at each of `offsets`, one after the other, as `read_many`.

        Where ranges overlap, the order is not said.
        """
        flags = lib.FDSTASH_FUA if fua else 0
        return self._run(
            lib.FDSTASH_OP_WRITE, offsets, size, ffi.from_buffer("char[]", data), flags
        )

    # -- the end

    def close(self) -> None:
        """Wait for what was submitted, drop all else, free. Twice is nothing."""
        if self._handle is None:
            return
        with self._owned() as handle:
            try:
                while self._goes_on(lib.fdstash_queue_drain(handle)):
                    pass
            except ClosedError:
                pass  # in a forked child, where nothing of it runs
            self._handle = None
            lib.fdstash_queue_stop(handle)
            if self._server is not None:
                self._server.join()
            lib.fdstash_queue_free(handle)
            self._taken, self._orphans, self._pinned = [], [], None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._handle is not None:
            try:
                warnings.warn("unclosed queue", ResourceWarning, stacklevel=2, source=self)
            finally:  # the warning may be an error, and buffers are about to be freed
                self.close()

    def drive(self, call: Callable[[Any], int]) -> int:
        """Make a call of the core that waits for requests of this queue, until it has done.

        For what is built upon queues, in this package: `call` gets the core's queue, serves
        nothing by itself, and is made again after a signal, or once there is a driver. Returns
        what it returned, or raises for it.
        """
        with self._owned() as handle:
            while self._goes_on(rc := call(handle)):
                pass
            return rc

    def before_write(self, n: int, offset: int) -> None:
        """Let the format mark the image as written to, if it is not; for the same."""
        if not self._state.marked:
            self._image_mark(n, offset)

    # -- within

    def _open(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("the queue is closed")
        return handle

    @contextmanager
    def _owned(self) -> Iterator[Any]:
        handle = self._open()
        if not self._owner.acquire(blocking=False):
            raise RuntimeError("another thread is using this queue")
        try:
            yield handle
        finally:
            self._owner.release()

    def _add(
        self, operation: int, view: Any, n: int, offset: int, *, tag: Any, flags: int = 0
    ) -> None:
        number = -1
        try:
            self._state.check_open()
            check_range(n, offset)
            if operation not in (lib.FDSTASH_OP_READ, lib.FDSTASH_OP_FLUSH):
                self.before_write(n, offset)
            with self._owned() as handle:
                request = self._request
                request.buffer, request.length, request.offset = view, n, offset
                request.operation, request.flags = operation, flags
                number = 0
                number = lib.fdstash_queue_add(handle, request)
                if number < 0:
                    self._refuse(number)
                self._taken[number] = (tag, view)
        except BaseException:
            if number < 0:
                # Whoever keeps the error, and with it these frames, keeps no buffer pinned.
                unpin(view)
            else:
                # An interrupt came about when it was taken up.
                self._orphans.append(view)
            raise

    def _refuse(self, code: int) -> None:
        if code == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, f"{self._depth} requests are taken up")
        if code == -errno.EINVAL:
            largest = lib.FDSTASH_MAX_REQUEST
            raise ImageIOError(-code, f"a request has at most {largest} bytes", self._state.name)
        self._check(code)

    def _run(self, operation: int, offsets: Any, size: int, view: Any, flags: int) -> int:
        state = self._state
        places = None
        try:
            state.check_open()
            places = integers(offsets)
            if not 0 < size <= lib.FDSTASH_MAX_REQUEST or len(view) < len(places) * size:
                raise ImageIOError(
                    errno.EINVAL,
                    f"{len(places)} requests of {size} bytes do not fit a buffer of {len(view)}",
                    state.name,
                )
            if operation == lib.FDSTASH_OP_WRITE and len(places):
                self.before_write(size, 0)
            batch = ffi.new("fdstash_batch *")
            batch.offsets, batch.count = places, len(places)
            batch.buffer, batch.size = view, size
            batch.operation, batch.flags = operation, flags
            self._run_batch(batch)
        finally:
            unpin(view)
            unpin(places)
        moved: int = batch.moved
        return moved

    def _run_batch(self, batch: Any) -> None:
        with self._owned() as handle:
            try:
                while self._goes_on(rc := lib.fdstash_queue_run(handle, batch)):
                    pass
            except BaseException:
                # The buffer is in use until none of them runs.
                batch.count = batch.next
                while batch.running and self._goes_on(lib.fdstash_queue_run(handle, batch)):
                    pass
                raise
        if rc == -errno.EAGAIN:
            raise BlockingIOError(-rc, "other requests have taken all the room of the queue")
        if batch.error < 0:
            raise_for(batch.error, self._state.name, REASONS.get(-batch.error))

    def _goes_on(self, rc: int) -> bool:
        """Whether the call is to be made again."""
        if rc == NEEDS:
            if self._server is None:
                server = Server(self._state, self._image_mark, self._handle)
                self._server = server if server.begin() else None
            return True
        if rc == -errno.EINTR:
            return True
        if rc != -errno.EAGAIN:
            self._check(rc)
        return False

    def _check(self, rc: int) -> int:
        if rc == -errno.EBUSY:
            raise RuntimeError("another thread is using this queue")
        return check(rc, self._state.name, "queue")

    def _collected(self, count: int) -> Iterator[Completion]:
        for completion in self._completions[0:count]:
            taken, self._taken[completion.id] = self._taken[completion.id], None
            if taken is not None:  # else nobody was told that it was taken up
                yield Completion(taken[0], completion.result)


#: Those that may have to be closed at the end of the interpreter, by id. Without a lock, which
#: a thread might hold at a fork: to enter one and to list all are each one step.
_living: weakref.WeakValueDictionary[int, Queue] = weakref.WeakValueDictionary()


@atexit.register
def _close_all() -> None:
    """While the thread of a driver can still run: `__del__` would wait for it for ever."""
    for living in _living.valuerefs():
        queue = living()
        with suppress(RuntimeError):  # a daemon thread is using it, and holds it to the last
            if queue is not None:
                queue.__del__()
