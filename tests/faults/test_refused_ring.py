"""The kernel refuses io_uring: at once, from some moment on, or for one call."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import tier
from tests.support.need import need_program, plain_environment
from tests.support.seccomp import IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP

ROOT = Path(__file__).parents[2]
ALL = (IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER)
BOUND = pytest.mark.parametrize("bound", [[], ["bound"]], ids=["unbound", "bound"])

pytestmark = pytest.mark.slow


def served(path: Path, words: Sequence[object], under: Sequence[str] = ()) -> tuple[str, str]:
    """What the queue had at first, and at last. Fails where a request did, or a wait hangs."""
    command = [*under, sys.executable, "-m", "tests.support.refused_ring", str(path)]
    done = subprocess.run(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=plain_environment() if under else None,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    had, engine = done.stdout.split()
    return had, engine


@BOUND
@pytest.mark.parametrize("calls", [ALL, ALL[1:2], *([ALL[1:], ALL[2:]] * tier.FULL)], ids=str)
def test_a_ring_is_refused_before_it_is_made(
    tmp_path: Path, calls: Sequence[int], bound: list[str]
) -> None:
    words = [",".join(map(str, calls)), errno.EPERM, "before", *bound]
    assert served(tmp_path / "disk", words)[1] == "threads"


@BOUND
@pytest.mark.parametrize(
    "code", [errno.EPERM, errno.EAGAIN, *([errno.ENOMEM, errno.EBUSY] * tier.FULL)]
)
@pytest.mark.parametrize("calls", [ALL, *([ALL[1:2]] * tier.FULL)], ids=str)
@pytest.mark.parametrize("submitted", [["submitted"], *([[]] * tier.FULL)], ids=str)
def test_a_ring_is_refused_under_a_load(
    tmp_path: Path, calls: Sequence[int], code: int, bound: list[str], submitted: list[str]
) -> None:
    words = [",".join(map(str, calls)), code, "turn:100", *bound, *submitted]
    assert served(tmp_path / "disk", words) == ("True", "threads")


@BOUND
def test_a_ring_that_registers_nothing_more_goes_on(tmp_path: Path, bound: list[str]) -> None:
    had, _ = served(tmp_path / "disk", [IO_URING_REGISTER, errno.EPERM, "turn:50", *bound])
    assert had == "True"


#: Calls of a run, and which of them fail: each of the first, and some of those under load.
CALLS = {
    "io_uring_setup": (1, 2, 3),
    "io_uring_register": (1, 2, 3, 4),
    "io_uring_enter": (1, 2, 40),
    "pipe2": (1,),
}
POSITIONS = [(call, position) for call, all_ in CALLS.items() for position in all_]


@BOUND
@pytest.mark.parametrize(("call", "position"), POSITIONS if tier.FULL else POSITIONS[::3])
@pytest.mark.parametrize("code", ["ENOMEM", *(["EPERM", "EAGAIN"] * tier.FULL)])
def test_one_call_fails(
    tmp_path: Path, call: str, position: int, code: str, bound: list[str]
) -> None:
    strace = need_program("strace", "strace")
    inject = f"inject={call}:error={code}:when={position}"
    under = [strace, "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject]
    _, engine = served(tmp_path / "disk", ["0", 0, "never", *bound], under)
    assert engine in ("io_uring", "threads")
