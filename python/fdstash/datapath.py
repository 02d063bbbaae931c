"""The core's image and layer: the data path, its gate, and the switch of layers."""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fdstash._ffi import check, ffi, lib
from fdstash.errors import FormatError
from fdstash.hostfile import HostFile

__all__ = ["DataPath", "Layer", "Requests"]


class Requests(enum.IntFlag):
    """Classes of requests that the gate tells apart."""

    READS = lib.FDSTASH_READS
    WRITES = lib.FDSTASH_WRITES  #: aligned to the host page
    UNALIGNED_WRITES = lib.FDSTASH_UNALIGNED_WRITES  #: all others, metadata included
    FLUSHES = lib.FDSTASH_FLUSHES


class Layer:
    """A map and its files, immutable. `segments` are those of a `Format`."""

    def __init__(self, segments: Sequence[Any], files: Sequence[HostFile], name: str) -> None:
        """Build the core's map. Raises `FormatError` where it would not be one."""
        table = ffi.new("fdstash_segment[]", len(segments))
        for entry, segment in zip(table, segments, strict=True):
            entry.start = segment.start
            entry.length = segment.length
            entry.file_offset = segment.file_offset
            entry.file = segment.file
            entry.kind = segment.kind | (lib.FDSTASH_READONLY if segment.readonly else 0)
        map_out = ffi.new("fdstash_map **")
        failed = ffi.new("size_t *")
        rc = lib.fdstash_map_new(table, len(segments), map_out, failed)
        if rc == -errno.EINVAL:
            raise FormatError(f"segment {failed[0]} leaves a gap or overlaps", file=name)
        check(rc, name)
        handles = ffi.new("fdstash_file *[]", [file.handle for file in files])
        out = ffi.new("fdstash_layer **")
        rc = lib.fdstash_layer_new(
            map_out[0], handles, len(files), ffi.NULL, 0, ffi.NULL, out
        )
        if rc < 0:
            lib.fdstash_map_free(map_out[0])
            check(rc, name)
        self._handle = ffi.gc(out[0], lib.fdstash_layer_unref)

    @property
    def handle(self) -> Any:
        """The core's object."""
        return self._handle

    def release(self) -> None:
        """Drop this reference."""
        handle, self._handle = self._handle, None
        if handle is not None:
            ffi.release(handle)


class DataPath:
    """The core's image. Requests: any thread; the rest: the owner."""

    def __init__(self, layer: Layer, flags: int) -> None:
        out = ffi.new("fdstash_image **")
        check(lib.fdstash_image_new(layer.handle, flags, out))
        self._handle = ffi.gc(out[0], lib.fdstash_image_free)
        self.held = 0

    @property
    def handle(self) -> Any:
        """The core's object, for the calls of the hot path."""
        return self._handle

    @property
    def size(self) -> int:
        """Bytes."""
        size: int = lib.fdstash_image_size(self._handle)
        return size

    @property
    def flags(self) -> int:
        """`enum fdstash_image_flags`."""
        flags: int = lib.fdstash_image_flags(self._handle)
        return flags

    @flags.setter
    def flags(self, flags: int) -> None:
        lib.fdstash_image_set_flags(self._handle, flags)

    def in_flight(self) -> int:
        """Requests in flight now."""
        count: int = lib.fdstash_image_in_flight(self._handle)
        return count

    def enter(self, kind: int) -> int:
        """Begin a request of several calls; returns the ticket for `leave`."""
        return check(lib.fdstash_image_enter(self._handle, kind))

    def leave(self, ticket: int, kind: int) -> None:
        """End it."""
        lib.fdstash_image_leave(self._handle, ticket, kind)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A request that only looks: `close` and `grace` wait for it.

        What is asked of a file is asked within: outside, another thread may free it.
        """
        ticket = self.enter(lib.FDSTASH_READS)
        try:
            yield
        finally:
            self.leave(ticket, lib.FDSTASH_READS)

    def hold(self, mask: int, seconds: float | None) -> None:
        """Hold new requests of `mask` and wait for those in flight.

        Raises `TimeoutError` after `seconds`; then nothing is held that was not.
        """
        nanoseconds = -1 if seconds is None else max(0, int(seconds * 1e9))
        # Noted first: an interrupt right after the call must not leave it held.
        self.held |= mask
        if lib.fdstash_image_hold(self._handle, mask, 1, nanoseconds) < 0:
            raise TimeoutError

    def hold_flushes(self) -> None:
        """Let no flush return before `release`: an error may be on its way to it."""
        self.held |= lib.FDSTASH_FLUSHES
        lib.fdstash_image_hold(self._handle, lib.FDSTASH_FLUSHES, 0, 0)

    def release(self) -> None:
        """Let everything go on."""
        if self.held:
            lib.fdstash_image_release(self._handle)
            self.held = 0

    def flush(self) -> None:
        """Make completed writes durable. Raises `ImageIOError`."""
        check(lib.fdstash_image_flush(self._handle), None, "flush")

    def sync(self) -> None:
        """As `flush`, for a reopen: the next `flush` returns the error as well."""
        check(lib.fdstash_image_sync(self._handle), None, "flush")

    def switch(self, layer: Layer) -> None:
        """Publish another layer. The old one must be kept until `grace` says True."""
        old = lib.fdstash_image_switch(self._handle, layer.handle)
        # The graph that made the old layer holds a reference of its own.
        lib.fdstash_layer_unref(old)

    def grace(self, seconds: float) -> bool:
        """Wait until no request can still be using a former layer."""
        return bool(lib.fdstash_image_grace(self._handle, int(seconds * 1e9)) == 0)

    def close(self) -> None:
        """Refuse new requests, wait for those in flight, and let go of the layer."""
        lib.fdstash_image_close(self._handle)


def deadline(timeout: float | None) -> float | None:
    """The moment (`time.monotonic`) at which `timeout` seconds are over."""
    return None if timeout is None else time.monotonic() + timeout


def remaining(until: float | None) -> float | None:
    """Seconds left until then, at least 0."""
    return None if until is None else max(0.0, until - time.monotonic())
