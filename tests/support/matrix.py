"""The fault matrix of reopens: one call fails, and the images must be whole in every respect."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import fdstash
from fdstash import ReopenError, ReopenReport
from fdstash.report import PHASES
from tests.support.faultshim import SHORT, FaultResult, FaultShim
from tests.support.kernel import open_descriptors, same_description
from tests.support.load import PATIENCE, Hang, Worker
from tests.support.positions import (
    SYNC,
    Position,
    Tally,
    attempt,
    count_calls,
    error_name,
)
from tests.support.subject import Kind, State, Subject

__all__ = ["Matrix", "descriptor_changes", "errno_is_clear", "undisturbed"]

#: What a failure may become on its way: the sequence number of a disk is part of its identity,
#: and flags that cannot be had are those of a wrong descriptor.
_BECOMES = {
    "ioctl": (errno.ESTALE,),
    "statx": (errno.ESTALE,),
    "F_GETFL": (errno.EBADF,),
}
_ROUNDS = 2


def errno_is_clear(error: BaseException, position: Position) -> bool:
    """Whether the error says what was refused."""
    if position.action == SHORT:
        return True
    code = getattr(error, "errno", None)
    return code == position.action or code in _BECOMES.get(position.call_class, ())


#: So that no destructor waits for them.
_left_hanging: list[object] = []


@dataclass
class _Before:
    states: list[State]
    descriptors: dict[int, str]
    duplicates: list[dict[int, int]]


class Matrix:
    """Images, each with the kind of its change; all change together.

    `findings` are the positions after which something was not as it must be.
    """

    def __init__(
        self,
        shim: FaultShim,
        pairs: Sequence[tuple[Subject, Kind]],
        patience: float = PATIENCE,
    ) -> None:
        self.findings: list[str] = []
        self.beyond_repair = False
        self._shim = shim
        self._pairs = list(pairs)
        self.subjects = [subject for subject, _ in pairs]
        self._worker = Worker("the reopen")
        self._patience = patience

    def close(self) -> None:
        """Also the subjects; not where a thread hangs in one, say."""
        if self.beyond_repair:
            _left_hanging.append(self)
            return
        self._worker.close()
        for subject in self.subjects:
            subject.close()

    def run(self, where: str, kind: str, tally: Tally) -> None:
        """Count the calls, then fail each in turn."""
        with undisturbed():
            calls = self.calls()
            for position in tally.plan(calls, where, kind):
                met, error = self.fail_at(position)
                tally.add(where, kind, position, fired=met.fired, failed=error is not None)
                if len(self.findings) >= 20 or self.beyond_repair:
                    break
        for subject in self.subjects:
            tally.requests += subject.load.requests
            self.findings += subject.lock_trouble(subject.image.mode, of_the_system=True)

    # ----------------------------------------------------------------- without faults

    def calls(self) -> dict[str, int]:
        """What the unfaulted change calls, by class, as far as it depends on nothing else."""
        counts: list[dict[str, int]] = []
        for _ in range(3):
            with ExitStack() as stack:
                self._make_ready(stack)
                reports, error, met = self._change(Position("any", -1, errno.EIO))
                if error is not None:
                    raise error
                self._pause()
                wrong = [*self._as_changed(), *self._sound()]
                if counts:  # the first may have to find out what the next ones know
                    wrong += self._routes(reports)
                assert not wrong, f"without a fault: {'; '.join(wrong)}"
                counts.append(count_calls(met))
        # What only the first does, such as an import, is not of the change.
        return {name: max(c.get(name, 0) for c in counts[1:]) for name in counts[1] | counts[2]}

    def _make_ready(self, stack: ExitStack) -> _Before:
        for subject, kind in self._pairs:
            subject.load.pause(self._patience)
            subject.load.refused = 0
            if kind.fresh or subject.disks.grows:
                subject.open_again(kind.mode[0], kind.cache[0])
            else:
                subject.restore(kind)
            subject.touch()
            if kind.stash:
                subject.stash()
            if kind.shared:
                stack.enter_context(subject.handed_out())
            subject.load.writing = kind.mode[0] == "r+"
            assert (subject.image.mode, subject.image.cache) == (kind.mode[0], kind.cache[0])
            trouble = list(subject.lock_trouble(kind.mode[0]))
            assert not trouble, trouble
        before = _Before([subject.state() for subject in self.subjects], {}, [])
        for state in before.states:
            duplicates = {file.fd: os.dup(file.fd) for file in state.files}
            for fd in duplicates.values():
                stack.callback(os.close, fd)
            before.duplicates.append(duplicates)
        before.descriptors = open_descriptors()
        for subject in self.subjects:
            subject.load.resume()
            subject.load.wait_rounds(1, self._patience)
        return before

    def _pause(self) -> None:
        for subject in self.subjects:
            subject.load.wait_rounds(_ROUNDS, self._patience)
        for subject in self.subjects:
            subject.load.pause(self._patience)

    def _reopen(self) -> Callable[[], list[ReopenReport]]:
        pairs = [(subject.image, subject.options(kind)) for subject, kind in self._pairs]
        timeout = self._pairs[0][1].timeout
        if len(pairs) == 1:
            image, options = pairs[0]
            return lambda: [image.reopen(**options, timeout=timeout)]
        return lambda: fdstash.reopen_all(pairs, timeout=timeout)

    def _change(self, position: Position) -> tuple[Any, BaseException | None, FaultResult]:
        reopen = self._reopen()
        outcome = self._worker.call(lambda: attempt(self._shim, position, reopen), self._patience)
        if outcome[1] is None:
            for subject, kind in self._pairs:
                subject.reopened(kind)
                subject.load.writing = kind.mode[1] == "r+"
        return outcome

    # -------------------------------------------------------------------- with a fault

    def fail_at(self, position: Position) -> tuple[FaultResult, BaseException | None]:
        """One position, and everything that must hold after it; what the change met."""
        try:
            with ExitStack() as stack:
                before = self._make_ready(stack)
                reports, error, met = self._change(position)
                self._pause()
                found = list(self._examine(position, before, reports, error, met))
                # The image is looked at once more, where nothing fails.
                if not found and error is not None:
                    found = [f"then without a fault: {text}" for text in self._follow_up()]
        except Hang as hang:
            self.beyond_repair = True
            self.findings.append(f"{position}: {hang}")
            raise
        except Exception as failure:  # noqa: BLE001 - a reopen to get ready, say
            found, met, error = [f"{type(failure).__name__}: {failure}"], FaultResult(), None
        if found:
            outcome = "succeeded" if error is None else f"failed: {type(error).__name__}: {error}"
            self.findings.append(f"{position}, {outcome}: {'; '.join(found)}")
            self._start_over()
        return met, error

    def _start_over(self) -> None:
        try:
            for subject in self.subjects:
                subject.load.pause(self._patience)
                self._worker.call(subject.start_over, self._patience)
        except Exception as error:  # noqa: BLE001 - an image that cannot be opened again, say
            self.findings.append(f"and it cannot be opened again: {error!r}")
            self.beyond_repair = True

    def _examine(
        self,
        position: Position,
        before: _Before,
        reports: Sequence[ReopenReport] | None,
        error: BaseException | None,
        met: FaultResult,
    ) -> Iterator[str]:
        if error is None:
            yield from self._as_changed()
            if len(open_descriptors()) != len(before.descriptors):
                yield from descriptor_changes(before.descriptors)
        else:
            yield from self._refusal(error, position, met)
            yield from self._as_before(before)
        yield from self._flushes(position, met)
        yield from self._sound()

    def _refusal(self, error: BaseException, position: Position, met: FaultResult) -> Iterator[str]:
        if not met.fired:
            yield "it failed, and nothing had been made to fail"
        if not isinstance(error, ReopenError):
            yield f"not a ReopenError: {error!r}"
            return
        if not error.rolled_back:
            yield "not rolled back"
        if error.phase not in PHASES:
            yield f"no phase: {error.phase!r}"
        if not errno_is_clear(error, position):
            yield f"the error says {error_name(error.errno)}"

    def _as_before(self, before: _Before) -> Iterator[str]:
        for (subject, kind), was, duplicates in zip(
            self._pairs, before.states, before.duplicates, strict=True
        ):
            yield from subject.lock_trouble(kind.mode[0])
            for field, old, new in zip(State._fields, was, subject.state(), strict=True):
                if old != new:
                    yield f"{field} went from {old} to {new}"
            for file in subject.image.files:
                kept = duplicates.get(file.fd)
                if kept is None or not same_description(file.fd, kept):
                    yield f"{file.name} is not on its old description"
            if subject.load.refused:
                yield f"{subject.load.refused} writes were refused"
        if open_descriptors() != before.descriptors:
            yield from descriptor_changes(before.descriptors)

    def _as_changed(self) -> Iterator[str]:
        for subject, kind in self._pairs:
            state = subject.state()
            if (state.mode, state.cache) != (kind.mode[1], kind.cache[1]):
                yield f"it is {state.mode}, cache={state.cache}"
            yield from subject.lock_trouble(kind.mode[1])
            if subject.load.refused and kind.mode[1] == "r+":
                yield f"{subject.load.refused} writes were refused"

    def _sound(self) -> Iterator[str]:
        for subject in self.subjects:
            yield from subject.trouble()

    def _flushes(self, position: Position, met: FaultResult) -> Iterator[str]:
        """A write-back error that a reopen has met is for the guest to hear, once."""
        expected = position.call_class in SYNC and position.action == errno.EIO and met.fired
        heard = []
        for _ in range(2):
            for subject in self.subjects:
                try:
                    subject.image.flush()
                except OSError as error:
                    heard.append(error.errno)
            if heard != [errno.EIO] * expected:
                yield f"flush says {heard}"
                return

    def _follow_up(self) -> Iterator[str]:
        """The same change, on what a failure has left."""
        for subject, kind in self._pairs:
            subject.load.writing = kind.mode[0] == "r+"
            subject.load.resume()
        reports, error, _ = self._change(Position("any", -1, errno.EIO))
        if error is not None:
            yield f"{type(error).__name__}: {error}"
            return
        self._pause()
        yield from self._routes(reports)
        yield from self._as_changed()
        yield from self._sound()

    def _routes(self, reports: Sequence[ReopenReport]) -> Iterator[str]:
        for report, (subject, kind) in zip(reports, self._pairs, strict=True):
            parents = subject.disks.parents  # only read, so others may do for them
            routes = {route for name, route in report.routes.items() if name not in parents}
            if routes != kind.routes:
                yield f"the routes are {dict(report.routes)}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No collection, whose calls would be counted; and the load lets others have their turn."""
    interval = sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        gc.enable()


def descriptor_changes(before: dict[int, str]) -> Iterator[str]:
    """Descriptors of this process that came, went, or lead elsewhere."""
    after = open_descriptors()
    for fd in before.keys() | after.keys():
        if before.get(fd) != after.get(fd):
            yield f"descriptor {fd} went from {before.get(fd)} to {after.get(fd)}"
