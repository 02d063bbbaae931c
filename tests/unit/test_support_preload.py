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


def test_every_outcome_reaches_the_parent(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(_TESTS)
    # A module that ends with such a test is left like any other.
    (tmp_path / "test_next.py").write_text("def test_in_the_next_module(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
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
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            "test_inner.py",
            "test_next.py",
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    outcomes = dict(re.findall(r"::(test_.+?) (PASSED|FAILED|SKIPPED|XFAIL)", done.stdout))
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
    }, done.stdout
    assert "assert (6 * 7) == 41" in done.stdout
    assert "ended with -6" in done.stdout
    assert "Timeout (>1.0s)" in done.stdout
    assert "in test_hangs_in_c" in done.stdout
