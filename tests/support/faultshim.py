"""Controller of the preloaded fault shim (tests/faults/shim): builds it, loads it, arms it.

Arming is for the calling thread alone; rules by path are for the whole process. Tests marked
`preload` run in a child interpreter with the shim in LD_PRELOAD: see preload.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.compiler import compile_c

__all__ = [
    "EOF",
    "PAUSE",
    "SHORT",
    "FaultResult",
    "FaultShim",
    "build",
    "preload_environment",
    "run_preloaded",
]

SHORT = -1
"""pread, pwrite: half of it is done."""
EOF = -2
"""pread, pwrite: nothing is done, and 0 comes back."""
PAUSE = -3
"""The call waits until `resume`, then goes on."""

_SOURCES = Path(__file__).resolve().parent.parent / "faults" / "shim"
_FLAGS = (
    "-std=c11 -O2 -g -fPIC -shared -fvisibility=hidden -ftls-model=initial-exec"
    " -fno-builtin -U_FORTIFY_SOURCE -Wall -Wextra -Werror"
).split()


def build() -> Path:
    """The shim as a shared object."""
    return compile_c(sorted(_SOURCES.glob("*.[ch]")), "faultshim.so", _FLAGS, ["-ldl", "-lpthread"])


def preload_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """`environment` with the shim preloaded, last: a sanitizer must come before it."""
    result = dict(os.environ if environment is None else environment)
    before = result.get("LD_PRELOAD", "").replace(":", " ").split()
    shim = str(build())
    result["LD_PRELOAD"] = " ".join([*(entry for entry in before if entry != shim), shim])
    return result


def run_preloaded(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    timeout: float = 300,
    check: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter under the shim: `["-m", "pytest", ...]`, `["-c", ...]`, a script."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=preload_environment({**os.environ, **environment}),
        cwd=_SOURCES.parent.parent.parent,
        timeout=timeout,
        check=check,
        capture_output=True,
        text=True,
    )


@dataclass
class FaultResult:
    """What happened while the thread was armed; filled in when it is disarmed."""

    fired: bool = False
    times: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    trace: list[str] = field(default_factory=list)
    """Kinds of the calls, in order; the shim keeps the first 4096."""


class FaultShim:
    """The shim as loaded in this process; `available` says whether it is."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._functions: dict[str, Callable[..., Any]] = {}
        self.available = hasattr(library, "faultshim_arm")
        if self.available:
            self._declare(library)

    def _declare(self, library: ctypes.CDLL) -> None:
        text, number, long = ctypes.c_char_p, ctypes.c_int, ctypes.c_long
        for name, result, arguments in (
            ("arm", number, (text, long, number)),
            ("also", number, (text, long, number, long)),
            ("disarm", long, ()),
            ("count", long, (text,)),
            ("class", text, (number,)),
            ("traced", text, (long,)),
            ("trace_length", long, ()),
            ("within", number, (text,)),
            ("paused", number, ()),
            ("resume", None, ()),
            ("delay", number, (text, long)),
            ("refuse", number, (text, number)),
            ("clear", None, ()),
            ("path_hits", long, ()),
            ("path_waiting", long, ()),
        ):
            function = getattr(library, f"faultshim_{name}")
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function

    def _call(self, name: str, *arguments: object) -> int:
        if not self.available:
            raise RuntimeError("the fault shim is not preloaded (mark the test `preload`)")
        result = self._functions[name](*arguments)
        if isinstance(result, int) and result < 0:
            raise OSError(-result, f"{os.strerror(-result)}: faultshim_{name}{arguments}")
        return result or 0

    # ---------------------------------------------------------------- this thread

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Every name that a call class may have."""
        names: list[str] = []
        while name := self._functions["class"](len(names)):
            names.append(name.decode())
        return tuple(names)

    def arm(self, call_class: str, position: int, action: int, *, times: int = 1) -> None:
        """Fail this thread's calls `position` to `position + times - 1` of the class.

        `action` is an errno, SHORT, EOF or PAUSE. What was armed before is forgotten.
        """
        if times == 1:
            self._call("arm", call_class.encode(), position, action)
            return
        self._call("arm", call_class.encode(), -1, errno.EIO)
        self.also(call_class, position, action, times=times)

    def also(self, call_class: str, position: int, action: int, *, times: int = 1) -> None:
        """Arm a further fault beside the first, to fail the way back as well: two at most."""
        self._call("also", call_class.encode(), position, action, times)

    def disarm(self) -> FaultResult:
        """End it, also when nothing is armed."""
        times = self._call("disarm")
        counts = {name: self._call("count", name.encode()) for name in self.classes}
        kinds = itertools.takewhile(bool, map(self._functions["traced"], itertools.count()))
        trace = [kind.decode() for kind in kinds]
        return FaultResult(times > 0, times, counts, trace)

    @contextlib.contextmanager
    def fault(
        self, call_class: str, position: int, action: int, *, times: int = 1
    ) -> Iterator[FaultResult]:
        """`arm` and `disarm` around a block; the result is filled in at its end."""
        result = FaultResult()
        self.arm(call_class, position, action, times=times)
        try:
            yield result
        finally:
            result.__dict__.update(self.disarm().__dict__)

    def counting(self) -> contextlib.AbstractContextManager[FaultResult]:
        """Only count, and trace, the calls of the block."""
        return self.fault("any", -1, errno.EIO)

    trace = counting

    def within(self, library: str | None) -> None:
        """See memory calls only from the library whose path contains this; None: from anywhere."""
        self._call("within", library.encode() if library is not None else None)

    def sees_allocator(self) -> bool:
        """Whether malloc and posix_memalign reach the shim: a sanitizer keeps them to itself."""
        libc = ctypes.CDLL(None)
        memory = ctypes.c_void_p()
        with self.counting() as seen:
            libc.posix_memalign(ctypes.byref(memory), ctypes.c_size_t(64), ctypes.c_size_t(64))
        libc.free(memory)
        return seen.counts["posix_memalign"] > 0

    # ------------------------------------------------------------------- pauses

    def wait_paused(self, threads: int = 1, timeout: float = 10) -> None:
        """Wait until that many threads are in a pause (an armed call with PAUSE)."""
        self._wait_for("paused", threads, timeout)

    def resume(self) -> None:
        """Let every thread that is in a pause now go on."""
        self._call("resume")

    def _wait_for(self, what: str, number: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._call(what) < number:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._call(what)} of {number} threads {what}")
            time.sleep(0.001)

    # ------------------------------------------------------- opens of the process

    def delay(self, text: str, milliseconds: int) -> None:
        """Opens of a path that contains `text` wait first, in every thread, until `clear`."""
        self._call("delay", text.encode(), milliseconds)

    def refuse(self, text: str, error: int) -> None:
        """Opens of a path that contains `text` fail, in every thread, until `clear`."""
        self._call("refuse", text.encode(), error)

    def clear(self) -> None:
        """Drop the rules; opens that wait in one go on."""
        self._call("clear")

    @property
    def path_hits(self) -> int:
        """Opens that met a rule since the last `clear`."""
        return self._call("path_hits")

    def wait_open_hanging(self, opens: int = 1, timeout: float = 10) -> None:
        """Wait until that many opens wait in a delay."""
        self._wait_for("path_waiting", opens, timeout)

    def reset(self) -> None:
        """Back to a shim that does nothing, for this thread and the process."""
        self._call("disarm")
        self.resume()
        self.clear()
        self.within(None)
