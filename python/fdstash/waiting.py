"""Calls that may hang in the kernel, bounded: a FUSE or NFS server that stopped.

Such a call cannot be taken back. It goes on on a daemon thread, which disposes of
what still arrives; until then it counts as pending.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from fdstash.errors import os_error

__all__ = ["call_within", "finish_within", "pending_opens"]

_T = TypeVar("_T")

_lock = threading.Lock()
_pending = 0


def pending_opens() -> int:
    """How many opens have outlived their timeout and still hang in the kernel."""
    return _pending


def _count(change: int) -> None:
    global _pending  # noqa: PLW0603 - one count for the process, as documented
    with _lock:
        _pending += change


def _in_forked_child() -> None:
    # The threads of the calls that hang are not here, and one may have held the lock.
    global _lock, _pending  # noqa: PLW0603 - see there
    _lock = threading.Lock()
    _pending = 0


os.register_at_fork(after_in_child=_in_forked_child)


class _Call(Generic[_T]):
    """One call, its outcome, and who has to dispose of it."""

    def __init__(self, function: Callable[[], _T], dispose: Callable[[_T], None]) -> None:
        self.function = function
        self.dispose = dispose
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.abandoned = False
        self.result: _T
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            self.error = error
        with self.lock:
            self.done.set()
            abandoned = self.abandoned
        if abandoned:
            if self.error is None:
                self.dispose(self.result)
            _count(-1)

    def abandon(self) -> bool:
        """Leave the outcome to the thread; False when it has just arrived."""
        with self.lock:
            if self.done.is_set():
                return False
            self.abandoned = True
            _count(1)
            return True


class _NoThreadError(Exception):
    """There is no thread to be had."""


def call_within(
    seconds: float | None, function: Callable[[], _T], dispose: Callable[[_T], None]
) -> _T:
    """`function()`, or `TimeoutError` after `seconds` (None: no limit).

    After a timeout the call goes on, and `dispose` gets what it returns.
    """
    try:
        return _on_a_thread(seconds, function, dispose)
    except _NoThreadError as error:
        raise os_error(errno.EAGAIN, None, "no thread for a call that may hang") from error


def finish_within(
    seconds: float | None, function: Callable[[], _T], dispose: Callable[[_T], None]
) -> _T:
    """As `call_within`, for what has to be done: without a thread it is done on this one."""
    try:
        return _on_a_thread(seconds, function, dispose)
    except _NoThreadError:
        return function()


def _on_a_thread(
    seconds: float | None, function: Callable[[], _T], dispose: Callable[[_T], None]
) -> _T:
    if seconds is None:
        return function()
    call = _Call(function, dispose)
    try:
        threading.Thread(target=call.run, name="fdstash-open", daemon=True).start()
    except RuntimeError as error:
        raise _NoThreadError from error
    try:
        arrived = call.done.wait(seconds)
    except BaseException:  # an interrupt; what still arrives is nobody's
        if not call.abandon() and call.error is None:
            dispose(call.result)
        raise
    if not arrived and call.abandon():
        raise TimeoutError
    if call.error is not None:
        raise call.error
    return call.result
