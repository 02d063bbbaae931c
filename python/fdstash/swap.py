"""The new descriptions of a graph's files, and their exchange with the slots."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

from fdstash._ffi import ffi, lib
from fdstash.errors import Error, ImageIOError
from fdstash.hostfile import HostFile, access_name
from fdstash.waiting import call_within

__all__ = ["ROUTES", "ROUTE_NAMES", "Swap", "SwapError"]

#: Routes by name; the values are bits, tried in this order.
ROUTES = {
    "setfl": lib.FDSTASH_ROUTE_SETFL,
    "stash": lib.FDSTASH_ROUTE_STASH,
    "proc": lib.FDSTASH_ROUTE_PROC,
    "path": lib.FDSTASH_ROUTE_PATH,
}
#: What a report says of each file.
ROUTE_NAMES = {lib.FDSTASH_ROUTE_KEEP: "keep"} | {bit: name for name, bit in ROUTES.items()}

_EVERY_ROUTE = lib.FDSTASH_ROUTE_SETFL | lib.FDSTASH_ROUTE_PROC | lib.FDSTASH_ROUTE_PATH


class SwapError(Error):
    """Why a swap cannot be made: errno, the file's name, and what was found."""

    def __init__(self, code: int, message: str, file: str | None) -> None:
        super().__init__(code, message, file)
        self.errno = code
        self.message = message
        self.file = file


class Swap:
    """One set of files, and what is to take the place of their descriptions.

    Owner: one reopen at a time.
    """

    def __init__(self, files: Sequence[HostFile]) -> None:
        """Allocate all that a commit needs. Raises `ImageIOError` (ENOMEM)."""
        handles = ffi.new("fdstash_file *[]", [file.handle for file in files])
        out = ffi.new("fdstash_swap **")
        rc = lib.fdstash_swap_new(handles, len(files), out)
        if rc < 0:
            raise ImageIOError(-rc, os.strerror(-rc))
        self._handle = ffi.gc(out[0], lib.fdstash_swap_free)
        self._files = files
        self._failure = ffi.new("fdstash_failure *")
        self._close_errors = ffi.new("int[]", len(files))
        self._close_errors_view = ffi.buffer(self._close_errors)
        self._routes = ffi.new("uint8_t[]", len(files))
        self._routes_view = ffi.buffer(self._routes)
        self._paths: dict[int, Any] | None = None
        self._flags = 0

    def want(self, flags: int, *, by_path: bool = False) -> None:
        """An access mode and perhaps O_DIRECT, for every file.

        `by_path` walks the paths again, also where nothing differs.
        """
        if self._paths is None:
            self._paths = {}
            for i, file in enumerate(self._files):
                if file.path is not None:
                    path = self._paths[i] = ffi.new("char[]", os.fsencode(file.path))
                    lib.fdstash_swap_set_path(self._handle, i, -100, path, 0)
        self._flags = flags
        routes = lib.FDSTASH_ROUTE_PATH if by_path else _EVERY_ROUTE
        lib.fdstash_swap_want(self._handle, flags, routes)

    def want_own(self, flags: int) -> None:
        """As `want`, of the descriptions that are there: `acquire` raises ENOTSUP for others."""
        self._flags = flags
        lib.fdstash_swap_want(self._handle, flags, lib.FDSTASH_ROUTE_SETFL)

    def provide(self, index: int, fd: int) -> None:
        """Use `fd`, an owned descriptor from a stash, for one file; takes it over."""
        lib.fdstash_swap_provide(self._handle, index, fd, lib.FDSTASH_ROUTE_STASH)

    def acquire(self, seconds: float | None) -> bool:
        """Open and check everything; whether `prove` was part of it already.

        It is where a server may have to be waited for: all that may hang is done
        on a thread, for at most `seconds`. Raises `SwapError` or `TimeoutError`;
        nothing has changed then. After a `TimeoutError` this object belongs to
        that thread and must not be used again.
        """
        rc = lib.fdstash_swap_acquire(self._handle, 0, self._failure)
        if rc == 0:
            return False
        if rc != -errno.EINPROGRESS:
            raise self._error()
        # After a timeout the thread still uses the core's object, and frees it with
        # what arrived.
        handle, failure = self._handle, self._failure

        def drop(_rc: int) -> None:
            ffi.release(handle)

        rc = call_within(seconds, lambda: _acquire_and_prove(handle, failure), drop)
        if rc < 0:
            raise self._error()
        return True

    def prove(self) -> None:
        """Prove what the exchange relies on. Raises `SwapError`."""
        if lib.fdstash_swap_prove(self._handle, self._failure) < 0:
            raise self._error()

    def exchange(self) -> None:
        """The commit, and its own inverse. Raises `SwapError`, having undone it."""
        if lib.fdstash_swap_exchange(self._handle, self._failure) < 0:
            raise self._error()

    def settle(self) -> None:
        """Ask the old descriptions for errors; the next flush returns them."""
        lib.fdstash_swap_settle(self._handle)

    def finish(self) -> tuple[tuple[str, int], ...]:
        """Close what is held: (file, errno) of each close that complained."""
        errors = self._close_errors
        lib.fdstash_swap_finish(self._handle, errors)
        if not any(self._close_errors_view[:]):
            return ()
        return tuple((file.name, -errors[i]) for i, file in enumerate(self._files) if errors[i] < 0)

    def abandon(self) -> None:
        """Close what is held, without a word."""
        lib.fdstash_swap_finish(self._handle, ffi.NULL)

    def release(self) -> None:
        """Free the core's object; an error that somebody keeps must not keep slots open."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)

    def pread(self, index: int, n: int, offset: int) -> bytes:
        """Read a file through its new description."""
        buffer = bytearray(n)
        got = lib.fdstash_swap_pread(self._handle, index, ffi.from_buffer(buffer), n, offset)
        if got < 0:
            raise ImageIOError(-got, os.strerror(-got), self._files[index].name)
        return bytes(memoryview(buffer)[:got])

    def routes(self) -> bytes:
        """The route of each file: one byte each, a key of `ROUTE_NAMES`."""
        lib.fdstash_swap_routes(self._handle, self._routes)
        routes: bytes = self._routes_view[:]
        return routes

    @property
    def changed(self) -> int:
        """How many files got another description or other flags."""
        count: int = lib.fdstash_swap_changed(self._handle)
        return count

    @property
    def classes(self) -> int:
        """Which classes of requests must be held for the exchange."""
        mask: int = lib.fdstash_swap_classes(self._handle)
        return mask

    def _error(self) -> SwapError:
        failure = self._failure
        index = failure.index
        file = self._files[index] if 0 <= index < len(self._files) else None
        flags = self._flags
        wanted = f"mode {access_name(flags)}" + (", O_DIRECT" if flags & os.O_DIRECT else "")
        how = ROUTE_NAMES.get(failure.route, "?")
        text = os.strerror(failure.error)
        message = {
            lib.FDSTASH_STEP_OPEN: f"no new description ({wanted}; route {how}): {text}",
            lib.FDSTASH_STEP_IDENTITY: f"the {how} leads to another file than the image's ({text})",
            lib.FDSTASH_STEP_MODE: f"the descriptor does not have {wanted} ({text})",
            lib.FDSTASH_STEP_SIZE: "the file is shorter than the image needs",
            lib.FDSTASH_STEP_ALIGNMENT: f"the file does not bear O_DIRECT ({text})",
            lib.FDSTASH_STEP_SLOT: "the image's own descriptor was closed or replaced by others"
            f" ({text})",
            lib.FDSTASH_STEP_LIMIT: "a descriptor number is at or above the soft RLIMIT_NOFILE",
            lib.FDSTASH_STEP_SYNC: f"flush before the exchange: {text}",
            lib.FDSTASH_STEP_EXCHANGE: f"the exchange of descriptors: {text}",
            lib.FDSTASH_STEP_MEMORY: text,
        }.get(failure.step, text)
        if failure.error == errno.EACCES and failure.step == lib.FDSTASH_STEP_OPEN:
            message += (
                "; the file's permissions do not let this process open it so (again),"
                " and no descriptor for it was passed in a stash"
            )
        if failure.error == errno.EMFILE:
            needed = 3 * len(self._files) + 1
            message += (
                f"; an image of {len(self._files)} files needs {needed} descriptors for this,"
                " and fdstash.raise_nofile() raises the limit"
            )
        return SwapError(failure.error, message, file.name if file else None)


def _acquire_and_prove(handle: Any, failure: Any) -> int:
    rc: int = lib.fdstash_swap_acquire(handle, 1, failure)
    if rc == 0:
        rc = lib.fdstash_swap_prove(handle, failure)
        if rc < 0:
            lib.fdstash_swap_finish(handle, ffi.NULL)
    return rc
