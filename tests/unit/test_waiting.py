"""A call that may hang is left behind after its time, and what still arrives is disposed of."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from fdstash import pending_opens
from fdstash.waiting import call_within, finish_within
from tests.support.forked import reap, run_in_child


def _settle(condition: object, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while pending_opens() and time.monotonic() < until:
        time.sleep(0.002)
    assert not pending_opens(), condition


def test_a_call_that_returns_in_time_gives_its_result_or_raises_its_error() -> None:
    assert call_within(10, lambda: "result", lambda _: None) == "result"
    with pytest.raises(KeyError):
        call_within(10, lambda: {}["no such key"], lambda _: None)


def test_what_arrives_too_late_is_disposed_of() -> None:
    go_on, disposed = threading.Event(), []

    def late() -> str:
        go_on.wait(10)
        return "late"

    with pytest.raises(TimeoutError):
        call_within(0.01, late, disposed.append)
    assert pending_opens() == 1
    go_on.set()
    _settle("the call has returned")
    assert disposed == ["late"]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_what_hangs_in_the_parent_is_not_pending_in_a_child() -> None:
    go_on = threading.Event()

    def check() -> None:
        assert pending_opens() == 0
        with pytest.raises(TimeoutError):
            call_within(0.01, lambda: time.sleep(60), lambda _: None)
        assert pending_opens() == 1

    with pytest.raises(TimeoutError):
        call_within(0.01, lambda: go_on.wait(10), lambda _: None)
    reap(run_in_child(check))
    assert pending_opens() == 1
    go_on.set()
    _settle("the call has returned")


def test_what_arrives_after_an_interrupt_is_disposed_of() -> None:
    go_on, disposed = threading.Event(), []
    waiting = threading.get_ident()

    def interrupted() -> str:
        time.sleep(0.05)
        signal.pthread_kill(waiting, signal.SIGINT)
        go_on.wait(10)
        return "late"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_within(10, interrupted, disposed.append)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pending_opens() == 1
    go_on.set()
    _settle("the call has returned")
    assert disposed == ["late"]


def test_without_a_thread_a_call_is_refused_but_what_must_be_done_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    done = []
    with pytest.raises(BlockingIOError, match="no thread"):
        call_within(10, lambda: done.append("called"), lambda _: None)
    assert done == []
    finish_within(10, lambda: done.append("finished"), lambda _: None)
    assert done == ["finished"]
