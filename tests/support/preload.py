"""A pytest plugin: tests marked `preload` run under the fault shim.

Where the shim is not loaded, one child interpreter runs all such tests of a module with the shim
in LD_PRELOAD, and their reports are replayed here, as each one arrives.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from tests.support.faultshim import FaultShim, preload_environment

if TYPE_CHECKING:
    from _pytest.reports import BaseReport

_REPORTS = "FDSTASH_PRELOAD_REPORTS"
_GRACE = float(os.environ.get("FDSTASH_PRELOAD_GRACE", "15"))
"""Seconds that the start of a child and its own report of a timeout may take."""


class _Reporter:
    """In the child: writes every report to the parent's pipe."""

    def __init__(self, config: pytest.Config, stream: TextIO) -> None:
        self._config = config
        self._stream = stream

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        print(json.dumps(data), file=self._stream, flush=True)

    def pytest_unconfigure(self) -> None:
        self._stream.close()


class _Child:
    """In the parent: the interpreter that runs the marked tests of one module."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self._config = config
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--rootdir", str(config.rootpath), "--capture", config.option.capture]
        if config.inipath is not None:
            command += ["-c", str(config.inipath)]
        command += [item.nodeid for item in items]
        visible = config.option.capture == "no"
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until close
        environment = preload_environment()
        environment[_REPORTS] = str(write_end)
        environment.pop("PYTEST_XDIST_WORKER", None)
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=config.rootpath,
            pass_fds=[write_end],
            stdout=None if visible else self._output,
            stderr=None if visible else subprocess.STDOUT,
        )
        os.close(write_end)
        self._pipe = read_end
        self._received = b""
        self._awaited = {item.nodeid for item in items}

    def _lines(self, limit: float | None) -> Iterator[bytes]:
        """What the child writes, until it ends, or is silent for so long (seconds) that it hangs.

        Beside others (pytest-xdist) it runs their tests too, and may have many of them before it.
        """
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                yield line
                continue
            if not select.select([self._pipe], [], [], limit)[0]:
                self._process.send_signal(signal.SIGABRT)  # faulthandler tells where it was
                return
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return
            self._received += data

    def reports(self, nodeid: str, limit: float | None) -> Iterator[BaseReport]:
        """The reports of one test, up to that of its teardown; fewer if the child died."""
        for line in self._lines(limit):
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            if report.when == "teardown":
                self._awaited.discard(report.nodeid)
            if report.nodeid != nodeid:
                continue
            if isinstance(report.longrepr, list):  # a skip's tuple, as JSON has it
                report.longrepr = tuple(report.longrepr)
            yield report
            if report.when == "teardown":
                return

    def will_run(self, nodeid: str) -> bool:
        """Whether the report of this test is still to come."""
        return nodeid in self._awaited

    def close(self) -> str:
        """Wait for its end, and that of its fixtures; what it said."""
        os.close(self._pipe)
        if self._awaited:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._output:
            self._output.seek(0)
            said = self._output.read()[-8000:]
        return f"the interpreter under the shim ended with {self._process.returncode}\n{said}"


class _Runner:
    """In the parent: sends marked tests to a child, one module after the other."""

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._limit: float | None = None

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        """The child has the timer; here it only bounds what a hang in C would make endless."""
        if item.get_closest_marker("preload") is None:
            return None
        self._limit = settings.timeout + _GRACE
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if item.get_closest_marker("preload") is None:
            return None
        child = self._child_for(item)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        last = None
        for report in child.reports(item.nodeid, self._limit):
            last = report
            item.ihook.pytest_runtest_logreport(report=report)
        if last is None or last.when != "teardown":
            self._report_death(item, child)
        self._limit = None
        self._leave_module(item, nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _leave_module(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """End here what unmarked tests of the module have begun, if this was its last test."""
        setup = item.session._setupstate
        call = pytest.CallInfo.from_call(lambda: setup.teardown_exact(nextitem), "teardown")
        if call.excinfo is not None:
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
            item.ihook.pytest_runtest_logreport(report=report)

    def _child_for(self, item: pytest.Item) -> _Child:
        if self._child is None or not self._child.will_run(item.nodeid):
            self.pytest_sessionfinish()
            items = [
                other
                for other in item.session.items
                if other.path == item.path and other.get_closest_marker("preload") is not None
            ]
            self._child = _Child(item.config, items[items.index(item) :])
        return self._child

    def _report_death(self, item: pytest.Item, child: _Child) -> None:
        self._child = None
        message = child.close()
        report = pytest.TestReport(
            item.nodeid, item.location, {}, "failed", message, "call", user_properties=[]
        )
        item.ihook.pytest_runtest_logreport(report=report)

    def pytest_sessionfinish(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "preload: runs in a child interpreter under the fault shim (tests/faults/shim)"
    )
    reports = os.environ.pop(_REPORTS, None)
    if reports is not None:
        os.set_inheritable(int(reports), False)
        config.pluginmanager.register(_Reporter(config, os.fdopen(int(reports), "w")))
    elif not FaultShim().available:
        config.pluginmanager.register(_Runner())


@pytest.fixture
def shim() -> Iterator[FaultShim]:
    """The shim of this process; does nothing again when the test ends."""
    loaded = FaultShim()
    assert loaded.available, "mark the test `preload`"
    yield loaded
    loaded.reset()
