"""The fault matrix of open, extract_fds and close: nothing leaks, and errors are clear."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fdstash import Error, FDStash, Image
from tests.support.diskset import DiskSet, disagreements, wrong_bytes
from tests.support.faultshim import FaultShim
from tests.support.kernel import getfl, open_descriptors
from tests.support.load import PATIENCE, Worker
from tests.support.matrix import descriptor_changes, errno_is_clear, undisturbed
from tests.support.positions import SYNC, Position, Tally, attempt, count_calls

__all__ = ["Lifecycle", "Source"]

_NO_FAULT = Position("any", -1, errno.EIO)


@dataclass(frozen=True)
class Source:
    """How an image is opened: from where, and with which options."""

    name: str
    mode: str = "r+"
    cache: str = "writeback"
    stash: str | None = None
    """``all``: every description; ``other``: one that does not fit; ``locks``: also for locks."""
    descriptor: bool = False
    probe: bool = False
    growing: bool = False
    """Each time with more descriptors than this process ever had."""


class Lifecycle:
    """One call at a time, and what must hold after it."""

    def __init__(self, shim: FaultShim, where: str, disks: DiskSet, source: Source) -> None:
        self.findings: list[str] = []
        self._shim = shim
        self._where = where
        self._disks = disks
        self._source = source
        self._model = bytearray(disks.guest_bytes())
        self._worker = Worker("the call")
        self._owned = ExitStack()
        self._stash = self._make_stash()
        self._held = _content(self._stash)
        self._fd: int | None = None
        if source.descriptor:
            self._fd = os.open(disks.path(), os.O_RDWR)
            self._owned.callback(os.close, self._fd)

    def close(self) -> None:
        self._owned.close()
        self._worker.close()

    def _make_stash(self) -> FDStash | None:
        if self._source.stash is None:
            return None
        if self._source.stash == "all":
            return self._owned.enter_context(self._disks.stash())
        stash = self._owned.enter_context(FDStash())
        for name in self._disks.files():
            stash.add(name, os.open(name, os.O_RDONLY))
            if self._source.stash == "locks":
                stash.add(f"lock:{name}", os.open(name, os.O_RDONLY))
        return stash

    def _open(self) -> Image:
        source = self._source
        options: dict[str, Any] = {"cache": source.cache, "stash": self._stash}
        if source.probe:
            options["format"] = None
        if self._fd is not None:
            options |= {"file": self._fd, "name": self._disks.path()}
        return self._disks.open(source.mode, **options)

    def _call(self, position: Position, action: Callable[[], Any]) -> Any:
        return self._worker.call(lambda: attempt(self._shim, position, action), PATIENCE)

    def _run(
        self,
        kind: str,
        tally: Tally,
        prepare: Callable[[ExitStack], Callable[[], Any]],
        examine: Callable[[Position, Any, BaseException | None, dict[int, str]], Iterator[str]],
    ) -> None:
        """Each position: what `prepare` gives is called, and `examine` says what is wrong."""

        def once(position: Position) -> tuple[list[str], BaseException | None, Any]:
            with ExitStack() as stack:
                action = prepare(stack)
                before = open_descriptors()
                result, error, met = self._call(position, action)
                found = _all(examine(position, result, error, before))
                if error is not None and not isinstance(error, Error):
                    found.append(f"no error of this package: {error!r}")
                elif error is not None and not errno_is_clear(error, position):
                    found.append("the error does not say what was refused")
            return found, error, met

        with undisturbed():
            # What only the first does, such as an import, is not of the call.
            counts: dict[str, int] = {}
            for _ in range(2):
                found, error, met = once(_NO_FAULT)
                assert not found, f"without a fault: {found} {error}"
                counts = count_calls(met)
            for position in tally.plan(counts, self._where, kind):
                found, error, met = once(position)
                tally.add(self._where, kind, position, fired=met.fired, failed=error is not None)
                if found:
                    outcome = "succeeded" if error is None else f"failed: {error!r}"
                    self.findings.append(f"{position}, {outcome}: {'; '.join(found)}")
                if len(self.findings) >= 20:
                    break

    # ----------------------------------------------------------------------- open

    def fail_open(self, tally: Tally) -> None:
        def prepare(stack: ExitStack) -> Callable[[], Image]:
            if self._source.growing:
                self._owned.callback(os.close, os.dup(0))
            return self._open

        def examine(
            position: Position,
            image: Image | None,
            error: BaseException | None,
            before: dict[int, str],
        ) -> Iterator[str]:
            if image is not None:
                yield from self._whole(image)
            yield from descriptor_changes(before)
            yield from self._lock_trouble(None)
            if _content(self._stash) != self._held:
                yield "the stash does not hold what it held"
            if error is not None:
                yield from self._whole(self._open())

        self._run(f"open by {self._source.name}", tally, prepare, examine)

    def _lock_trouble(self, mode: str | None) -> Iterator[str]:
        # A description that the stash holds too has two descriptors, each of which shows its locks.
        of_the_system = self._source.stash == "locks"
        return self._disks.lock_trouble(mode, of_the_system=of_the_system)

    def _whole(self, image: Image) -> Iterator[str]:
        """An image that was opened, whatever has failed meanwhile; closes it."""
        with image:
            yield from disagreements(image, self._disks)
            yield from wrong_bytes(image, self._model, self._disks)
            yield from self._lock_trouble(image.mode)
            for cache in ("none", "writeback"):
                image.reopen(cache=cache)
                yield from disagreements(image, self._disks)
                yield from wrong_bytes(image, self._model, self._disks)

    # ---------------------------------------------------------------- extract_fds

    def fail_extract(self, tally: Tally, *, again: bool) -> None:
        """`again`: into a stash that holds them already."""

        def prepare(stack: ExitStack) -> Callable[[], FDStash]:
            image = stack.enter_context(self._open())
            stash = stack.enter_context(FDStash())
            stash.give("another", os.open(os.devnull, os.O_RDONLY))
            if again:
                image.extract_fds(stash)
            self._target, self._image = stash, image
            return lambda: image.extract_fds(stash)

        def examine(
            position: Position, result: None, error: BaseException | None, before: dict[int, str]
        ) -> Iterator[str]:
            files = self._disks.files()
            wanted = ["another", *(files if again or error is None else [])]
            if sorted(self._target.names()) != sorted(wanted):
                yield f"the stash holds {self._target.names()}, not {wanted}"
            more = len(files) if error is None and not again else 0
            if len(open_descriptors()) != len(before) + more:
                yield from descriptor_changes(before)
            yield from disagreements(self._image, self._disks)
            yield from wrong_bytes(self._image, self._model, self._disks)
            yield from self._lock_trouble(self._source.mode)
            self._image.extract_fds(self._target)
            flags = {fd.name: [getfl(fd.fd)] for fd in self._image.files}
            if {n: f for n, f in _content(self._target).items() if n != "another"} != flags:
                yield f"then extract_fds gives {_content(self._target)}, not {flags}"

        self._run(f"extract_fds{' again' if again else ''}", tally, prepare, examine)

    # ---------------------------------------------------------------------- close

    def fail_close(self, tally: Tally) -> None:
        def prepare(stack: ExitStack) -> Callable[[], None]:
            self._before = open_descriptors()
            image = self._image = self._open()
            stack.callback(image.close)
            for extent in image.extents() if self._source.mode == "r+" else ():
                image.pwrite(self._model[extent.offset : extent.offset + 1], extent.offset)
            return image.close

        def examine(
            position: Position, result: None, error: BaseException | None, before: dict[int, str]
        ) -> Iterator[str]:
            if not self._image.closed:
                yield "it is not closed"
            yield from descriptor_changes(self._before)
            yield from self._lock_trouble(None)
            told = isinstance(error, OSError) and error.errno == errno.EIO
            lost = position.call_class in SYNC and position.action == errno.EIO
            if told != lost:
                yield f"it raised {error!r}"
            with self._disks.open("r+") as image:
                yield from wrong_bytes(image, self._model, self._disks)

        self._run(f"close of {self._source.name}", tally, prepare, examine)


def _all(findings: Iterator[str]) -> list[str]:
    """What is wrong; an exception, such as that of an open which must work, ends it."""
    found = []
    try:
        for finding in findings:
            found.append(finding)  # noqa: PERF402 - what came before an exception counts too
    except Exception as error:  # noqa: BLE001 - told with the others
        found.append(f"then {error!r}")
    return found


def _content(stash: FDStash | None) -> dict[str, list[int]]:
    """Flags of what a stash holds, by name."""
    content: dict[str, list[int]] = {}
    if stash is None:
        return content
    for name in stash.names():
        fds = stash.dup_all(name)
        content[name] = [getfl(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
    return content
