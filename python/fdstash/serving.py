"""The thread that serves what a queue meets and only a driver can do."""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any

from fdstash import needs
from fdstash._ffi import ffi, lib
from fdstash.errors import ClosedError, Error
from fdstash.needs import NEEDS
from fdstash.state import ImageState

__all__ = ["Server"]

_log = logging.getLogger("fdstash")


class Server(threading.Thread):
    """Serves the requests of a core queue (`fdstash_queue *`) until that is stopped.

    Tables are loaded and clusters allocated here, so that the queue's other requests go on
    meanwhile.
    """

    def __init__(self, state: ImageState, mark: Callable[[int, int], None], handle: Any) -> None:
        super().__init__(name="fdstash-driver", daemon=True)
        self._state = state
        self._mark = mark
        self._handle = handle

    def run(self) -> None:
        request = ffi.new("fdstash_request *")
        while (number := lib.fdstash_queue_next(self._handle, -1, request)) >= 0:
            lib.fdstash_queue_answer(self._handle, number, self._result(request))

    def _result(self, request: Any) -> int:
        try:
            return self._serve(request)
        except ClosedError:
            return -errno.ESHUTDOWN  # as of a request that had not begun
        except Error as error:
            # A completion has room for an errno alone.
            _log.warning("%s: %s", self._state.name, error)
            return -(getattr(error, "errno", None) or errno.EIO)
        except BaseException:  # noqa: BLE001 - whoever waits for it would wait for ever
            _log.exception("%s: a request that the driver could not serve", self._state.name)
            return -errno.EIO

    def _serve(self, request: Any) -> int:
        """As the methods of `Image`: what needs no driver any more is not given to it."""
        core, present = self._state.core, lambda: self._state.graph.clusters
        n, offset, flags = request.length, request.offset, request.flags
        if flags & lib.FDSTASH_MARK:
            self._mark(n, offset)
            flags &= ~lib.FDSTASH_MARK
        iov = ffi.new("fdstash_iovec[]", [(request.buffer, n)])
        match request.operation:
            case lib.FDSTASH_OP_READ:
                rc: int = lib.fdstash_image_preadv(core.handle, iov, 1, offset)
                return needs.read(core, iov, offset) if rc == NEEDS else rc
            case lib.FDSTASH_OP_WRITE:
                rc = lib.fdstash_image_pwritev(core.handle, iov, 1, offset, flags)
                return needs.write(core, present, iov, offset, flags) if rc == NEEDS else rc
            case lib.FDSTASH_OP_ZERO:
                rc = lib.fdstash_image_zero(core.handle, n, offset, flags)
                return needs.zero(core, present, n, offset, flags) if rc == NEEDS else rc
            case lib.FDSTASH_OP_TRIM:
                rc = lib.fdstash_image_trim(core.handle, n, offset)
                return needs.trim(core, present, n, offset) if rc == NEEDS else rc
            case lib.FDSTASH_OP_STATUS:
                return needs.status(core, request.buffer, n, offset)
            case _:
                rc = lib.fdstash_image_flush(core.handle)
                if rc == NEEDS:
                    needs.flush(core, present)
                    rc = 0
                return rc
