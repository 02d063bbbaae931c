"""A reopen of the disk in the middle of what the guest reads from it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

import fdstash
from examples.pc.bios_disk import BiosDisk

__all__ = ["LiveReopen"]

PATIENCE = 60.0  # seconds, for what takes milliseconds


class LiveReopen:
    """Starts with the guest's next read, and lasts while `READS` of them are served.

    `change(prepare)` is called on a thread of its own, and hands `prepare` to the
    reopen. That is where the reopen waits, with writes held, so that reads are seen
    to be served meanwhile, in every run the same ones. The read after those comes
    when the reopen is done.
    """

    READS = 3

    def __init__(
        self, disk: BiosDisk, change: Callable[[Callable[[], None]], fdstash.ReopenReport]
    ) -> None:
        self._disk = disk
        self._change = change
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._in_the_middle = threading.Event()
        self._may_end = threading.Event()
        self._reads_before: int | None = None
        self._report: fdstash.ReopenReport | None = None
        self._error: Exception | None = None
        self.reads_meanwhile = 0

    def __enter__(self) -> Self:
        self._disk.before_read = self._before_read
        return self

    def __exit__(self, *exception: object) -> None:
        self._disk.before_read = None
        if self._reads_before is not None:
            self._end()

    @property
    def report(self) -> fdstash.ReopenReport:
        """What the reopen reported; raises what it raised."""
        if self._error is not None:
            raise self._error
        if self._report is None:
            raise RuntimeError("the guest has read nothing, or the reopen did not end")
        return self._report

    def _before_read(self) -> None:
        if self._reads_before is None:
            self._reads_before = self._disk.reads
            self._thread.start()
            self._in_the_middle.wait(PATIENCE)
        elif self._disk.reads - self._reads_before >= self.READS:
            self._end()

    def _end(self) -> None:
        if not self._may_end.is_set():
            self.reads_meanwhile = self._disk.reads - (self._reads_before or 0)
        self._may_end.set()
        self._thread.join(PATIENCE)

    def _prepare(self) -> None:
        self._in_the_middle.set()
        self._may_end.wait(PATIENCE)

    def _run(self) -> None:
        try:
            self._report = self._change(self._prepare)
        except Exception as error:  # noqa: BLE001 - `report` raises it
            self._error = error
        finally:
            self._in_the_middle.set()  # also when it failed before it came to that
