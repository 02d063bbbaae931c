"""Tests marked `preload` run under the shim, and whatever becomes of them is told here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_TESTS = """
import os, time
import pytest
from tests.support.faultshim import FaultShim

preload = pytest.mark.preload

@preload
def test_passes(shim): assert shim.available
def test_beside(): assert not FaultShim().available
@preload
def test_fails(): assert 6 * 7 == 41
@preload
def test_skips(): pytest.skip("because")
@preload
@pytest.mark.xfail
def test_expected(): assert False
@preload
def test_dies(): os.abort()
@preload
@pytest.mark.parametrize("word", ["a b", "[x]"])
def test_after_the_death(shim, word): assert shim.available
@preload
@pytest.mark.timeout(1)
def test_hangs(): time.sleep(100)
@preload
@pytest.mark.timeout(1)
def test_hangs_in_c():
    import ctypes, signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    ctypes.CDLL(None).sleep(100)
@preload
def test_last(shim): assert shim.available
"""


#: This process leaves most of them to others, as a worker of pytest-xdist does.
_SHARED_TESTS = """
import time
import pytest

pytestmark = [pytest.mark.preload, pytest.mark.timeout(1)]

def test_own(shim): assert shim.available
@pytest.mark.parametrize("number", range(12))
def test_of_others(number): time.sleep(0.5)
def test_own_again(shim): assert shim.available
"""
_SHARED = """
import pytest
from tests.support.faultshim import FaultShim

class Others:
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item):
        return True if "others" in item.name else None

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not FaultShim().available:
        config.pluginmanager.register(Others())
"""


def outcomes_in(folder: Path, *modules: str) -> tuple[dict[str, str], str]:
    """What pytest says of each test there, and all that it says."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.fspath(Path(__file__).resolve().parents[2])
    environment["PYTEST_PLUGINS"] = "tests.support.preload"
    environment["FDSTASH_PRELOAD_GRACE"] = "2"
    # This run may itself be under the shim, which the inner one must not be.
    entries = environment.pop("LD_PRELOAD", "").split()
    others = [entry for entry in entries if "faultshim" not in entry]
    if others:
        environment["LD_PRELOAD"] = " ".join(others)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *modules],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = re.findall(r"::(test_.+?) (PASSED|FAILED|SKIPPED|XFAIL)", done.stdout)
    return dict(found), done.stdout


def test_every_outcome_reaches_the_parent(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(_TESTS)
    # A module that ends with such a test is left like any other.
    (tmp_path / "test_next.py").write_text("def test_in_the_next_module(): pass\n")
    outcomes, said = outcomes_in(tmp_path, "test_inner.py", "test_next.py")
    assert outcomes == {
        "test_passes": "PASSED",
        "test_beside": "PASSED",
        "test_fails": "FAILED",
        "test_skips": "SKIPPED",
        "test_expected": "XFAIL",
        "test_dies": "FAILED",
        "test_after_the_death[a b]": "PASSED",
        "test_after_the_death[[x]]": "PASSED",
        "test_hangs": "FAILED",
        "test_hangs_in_c": "FAILED",
        "test_last": "PASSED",
        "test_in_the_next_module": "PASSED",
    }, said
    assert "assert (6 * 7) == 41" in said
    assert "ended with -6" in said
    assert "Timeout (>1.0s)" in said
    assert "in test_hangs_in_c" in said


def test_a_child_may_run_the_tests_of_others_for_longer_than_a_test_may_take(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_inner.py").write_text(_SHARED_TESTS)
    (tmp_path / "conftest.py").write_text(_SHARED)
    outcomes, said = outcomes_in(tmp_path, "test_inner.py")
    assert outcomes == {"test_own": "PASSED", "test_own_again": "PASSED"}, said
