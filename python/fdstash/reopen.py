"""The transaction: all files of all images, or none.

    acquire, prove     may fail: nothing has changed
    hold the gate      only for what makes writes in flight wrong; may time out
    flush, prepare     may fail: nothing has changed
    commit             an exchange of descriptions, its own inverse
    release            ask and close the old descriptions

The stash of each swap is the journal: it holds the new descriptions before the
commit and the old ones after it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Literal

from fdstash.cache import cache_mode
from fdstash.change import Change, Outcome
from fdstash.datapath import remaining
from fdstash.errors import Error, FormatError, OptionError, ReopenError
from fdstash.names import Resolver
from fdstash.path_change import PathChange
from fdstash.report import ReopenReport
from fdstash.slot_change import SlotChange
from fdstash.stash import FDStash
from fdstash.state import ImageState
from fdstash.swap import SwapError

__all__ = ["backing_path", "change_for", "run", "writable_mode"]

#: A gate that closed within this time, nanoseconds, left others no time to interfere.
_SHORT = 1_000_000

log = logging.getLogger("fdstash")


def writable_mode(mode: str) -> bool:
    """Whether an image opened in `mode` (``r`` or ``r+``) can be written."""
    if mode not in ("r", "r+"):
        raise OptionError(f"mode must be 'r' or 'r+', not {mode!r}", option="mode")
    return mode == "r+"


def backing_path(
    backing: str | os.PathLike[str] | Literal[False] | None,
) -> str | Literal[False] | None:
    """What `Source.backing` is for that option of `open` and `Image.reopen`."""
    return backing if backing is None or backing is False else os.fsdecode(backing)


def change_for(  # noqa: PLR0917 - called on every reopen; keywords cost a microsecond
    state: ImageState,
    mode: str | None = None,
    cache: str | None = None,
    path: str | os.PathLike[str] | None = None,
    backing: str | os.PathLike[str] | Literal[False] | None = None,
    stash: FDStash | None = None,
    resolver: Resolver | None = None,
    prepare: Callable[[], object] | None = None,
    spare: FDStash | None = None,
) -> Change:
    """The change that these options of `Image.reopen` ask for.

    `spare`: as `stash`, but looked at only where F_SETFL does not serve.
    """
    writable = state.graph.writable if mode is None else writable_mode(mode)
    wanted = state.cache if cache is None else cache_mode(cache)
    target = None if path is None else os.fspath(path)
    moved = target is not None and target != state.graph.path
    detached = state.graph.source.backing is False
    if not moved and (backing is None or (backing is False and detached)):
        return SlotChange(
            state,
            writable=writable,
            cache=wanted,
            stash=stash,
            spare=spare,
            by_path=target is not None,
            prepare=prepare,
        )
    below = False if backing is None and detached else backing_path(backing)
    source = state.graph.source._replace(
        resolver=resolver or state.graph.source.resolver, backing=below
    )
    if moved and target is not None:
        source = source._replace(file=target, name=target)
    return PathChange(
        state,
        source,
        writable=writable,
        cache=wanted,
        stash=spare if stash is None else stash,
        prepare=prepare,
        keep=not moved,
    )


def run(changes: Sequence[Change], until: float | None) -> list[ReopenReport]:
    """Carry out all changes or none, and report each.

    `until` (`time.monotonic`; None: no limit) bounds opens and the gate. The caller
    holds the lock of every image. Raises `ReopenError`; whatever is raised, every
    image is as it was before, unless the error says otherwise.
    """
    if not changes:
        return []
    course = _Course(changes, until)
    try:
        course.take()
    except BaseException as error:
        whole = _undo(changes)
        if not isinstance(error, Exception):
            raise
        image = course.at.state.name
        raise _reopen_error(error, course.phase, image, rolled_back=whole) from error
    finally:
        for change in changes:
            change.state.core.release()
    outcomes = [change.finish(until) for change in changes]
    course.times.append(perf_counter_ns())
    return [
        _report(outcome, course.times, count)
        for outcome, count in zip(outcomes, course.in_flight, strict=True)
    ]


class _Course:
    """The steps of a reopen up to its commit, and how far it has come."""

    def __init__(self, changes: Sequence[Change], until: float | None) -> None:
        self.changes = changes
        self.until = until
        self.phase = "acquire"
        self.at = changes[0]  #: the change that is being driven
        self.times = [perf_counter_ns()]  #: when each phase began, nanoseconds
        self.in_flight: list[int] = []  #: requests of each image, just before the commit

    def take(self) -> None:
        """All steps, for every image. May fail anywhere; `_undo` then brings all back."""
        for change in self._each():
            change.acquire(self.until)
        self._enter("prove")
        for change in self._each():
            change.prove(self.until)
        self._enter("gate")
        for change in self._each():
            classes = change.classes()
            if classes:
                change.state.core.hold(classes, remaining(self.until))
        self._enter("prepare")
        self._prepare()
        self._enter("commit")
        self.in_flight = [change.state.core.in_flight() for change in self.changes]
        for change in self._each():
            change.commit()
        for change in self._each():
            change.settle()
        self.times.append(perf_counter_ns())

    def _prepare(self) -> None:
        for change in self._each():
            change.before_commit(self.until)
        # Where the gate took time, or the caller's code ran, much may have happened.
        waited = self.times[-1] - self.times[-2]
        if waited > _SHORT or any(change.prepare for change in self.changes):
            for change in self._each():
                change.prove_again()

    def _enter(self, phase: str) -> None:
        self.times.append(perf_counter_ns())
        self.phase = phase

    def _each(self) -> Iterator[Change]:
        for change in self.changes:
            self.at = change
            yield change


def _report(outcome: Outcome, times: Sequence[int], in_flight: int) -> ReopenReport:
    for name, code in outcome.close_errors:
        log.warning("closing the former descriptor of %s: %s", name, os.strerror(code))
    for warning in outcome.warnings:
        log.warning("%s: %s", outcome.files[0].name, warning)
    return ReopenReport(
        files=outcome.files,
        routes=outcome.routes,
        phases=times,
        requests_in_flight=in_flight,
        files_changed=outcome.files_changed,
        close_errors=outcome.close_errors,
        warnings=outcome.warnings,
    )


def _undo(changes: Sequence[Change]) -> bool:
    """Bring every image back; whether that succeeded."""
    whole = True
    for change in reversed(changes):
        try:
            change.rollback()
        except Error:
            whole = False
            log.exception("%s: the rollback failed", change.state.name)
    for change in changes:
        change.abandon()
    return whole


def _reopen_error(error: Exception, phase: str, image: str, *, rolled_back: bool) -> ReopenError:
    """What a user gets: phase and file, and the errno that tells the reason.

    Where it is not known which file it was, the image's own stands for all.
    """
    if isinstance(error, ReopenError):
        error.rolled_back = rolled_back
        error.file = error.file or image
        return error
    file: str | None = None
    code = errno.EIO
    message = str(error)
    if isinstance(error, SwapError):
        code, message, file = error.errno, error.message, error.file
    elif isinstance(error, TimeoutError) and error.errno is None:
        code = errno.ETIMEDOUT
        message = {
            "gate": "requests in flight did not end in time",
        }.get(phase, "an open did not return in time; it goes on by itself and is closed then")
    elif isinstance(error, FormatError) and not isinstance(error, OSError):
        code, file = errno.EINVAL, error.file
    elif isinstance(error, OSError):
        code = error.errno or errno.EIO
        message = error.strerror or message
        file = error.filename if isinstance(error.filename, str) else None
    elif phase == "prepare":
        code = errno.ECANCELED
        message = f"prepare raised {type(error).__name__}: {error}"
    return ReopenError(
        code, message, file, phase=phase, file=file or image, rolled_back=rolled_back
    )
