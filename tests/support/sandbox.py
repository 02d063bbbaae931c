"""Scripts in a child that cannot see certain folders, or that runs as another user.

The child is a fresh interpreter, which imports all of fdstash and whatever else it is told to,
and only then hides folders and gives up its privileges. So it works where the interpreter itself
lies in a folder that the other user may not enter.

A script finds `sock` (its end of the socket, or None) and `args`, and leaves what it found out in
`result`, which must be JSON. In place of a script, a function `f(sock, *args)` of an importable
module will do.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, cast

from tests.support.need import need_root

__all__ = ["NOBODY", "Identity", "Sandbox", "SandboxError", "run_as", "run_in_namespace"]

Script = str | Callable[..., object]


class Identity(NamedTuple):
    """Who the child runs as."""

    uid: int
    gid: int


NOBODY = Identity(65534, 65534)

_ROOT = Path(__file__).resolve().parents[2]
_START = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r});"
    " from tests.support.sandbox import _child; _child()"
)
# What is imported late, on a first use, would be out of reach by then.
_PRELOADED = (
    "array",
    "concurrent.futures.thread",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "errno",
    "fcntl",
    "linecache",
    "mmap",
    "resource",
    "select",
    "selectors",
    "struct",
    "tempfile",
    "threading",
    "tests.support.kernel",
)


class SandboxError(Exception):
    """The script failed; the message is the child's traceback."""


class Sandbox:
    """A running child. `sock` is this side's end of a Unix stream socket to it."""

    def __init__(
        self,
        script: Script,
        *args: object,
        hidden: Iterable[str | os.PathLike[str]] = (),
        identity: Identity | None = None,
        imports: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        need_root("a sandbox")
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # Not a pipe, which a long result would fill.
        self._result = os.fdopen(os.memfd_create("result"), "r+")
        order = {
            "script": textwrap.dedent(script) if isinstance(script, str) else None,
            "function": None if isinstance(script, str) else _reference(script),
            "args": args,
            "hidden": [os.path.realpath(folder) for folder in hidden],
            "identity": identity,
            "imports": list(imports),
            "path": sys.path,
            "sock": theirs.fileno(),
            "result": self._result.fileno(),
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[theirs.fileno(), self._result.fileno(), *pass_fds],
            )
        assert self._process.stdin is not None
        with self._process.stdin as stream:
            json.dump(order, stream)
        self._process.stdin = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def result(self, timeout: float = 60) -> Any:
        """Wait for the script; what it left in `result`. SandboxError if it failed."""
        try:
            _, said = self._process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, said = self._process.communicate()
            raise TimeoutError(f"the script took longer than {timeout} s\n{said}") from None
        finally:
            self.sock.close()
        with self._result:
            self._result.seek(0)
            found = self._result.read()
        if self._process.returncode != 0 or not found:
            raise SandboxError(f"the child ended with {self._process.returncode}\n{said}")
        outcome = json.loads(found)
        if "error" in outcome:
            raise SandboxError(outcome["error"])
        return outcome["result"]

    def close(self) -> None:
        """End the child if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self.sock, self._result, self._process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _reference(function: Callable[..., object]) -> list[str]:
    if "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} cannot be found by name in a child")
    return [function.__module__, function.__qualname__]


def run_in_namespace(
    script: Script,
    *args: object,
    hidden: Iterable[str | os.PathLike[str]],
    send: Callable[[socket.socket], object] | None = None,
    timeout: float = 60,
) -> Any:
    """Run as the same user where the folders in `hidden` are empty; the script's result.

    `send` is called with this side's end of the socket: `FDStash.send` of the stash to pass.
    """
    with Sandbox(script, *args, hidden=hidden) as child:
        return _talk(child, send, timeout)


def run_as(
    script: Script,
    *args: object,
    identity: Identity = NOBODY,
    hidden: Iterable[str | os.PathLike[str]] = (),
    send: Callable[[socket.socket], object] | None = None,
    timeout: float = 60,
) -> Any:
    """Run as another user, without capabilities or groups; otherwise as run_in_namespace."""
    with Sandbox(script, *args, hidden=hidden, identity=identity) as child:
        return _talk(child, send, timeout)


def _talk(child: Sandbox, send: Callable[[socket.socket], object] | None, timeout: float) -> Any:
    if send is not None:
        # A child that has died says why in its result.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            send(child.sock)
    return child.result(timeout)


# ------------------------------------------------------------------ in the child

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38


def _libc(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _import_everything(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)
    package = importlib.import_module("fdstash")
    for module in pkgutil.walk_packages(package.__path__, "fdstash.", onerror=lambda _: None):
        if not module.name.endswith("__main__"):
            # Some parts need packages that are optional.
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def _hide(folders: Sequence[str]) -> None:
    if not folders:
        return
    _libc("unshare", _CLONE_NEWNS)
    _libc("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    for folder in sorted(folders, key=len, reverse=True):
        options = ctypes.c_ulong(0), b"size=1m,mode=755"
        _libc("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", *options)


def _become(identity: Identity | None) -> None:
    if identity is None:
        return
    os.setgroups([])
    os.setresgid(*[identity.gid] * 3)
    os.setresuid(*[identity.uid] * 3)
    _libc("prctl", _PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    # As in a program that this user has started: /proc/self belongs to him.
    _libc("prctl", _PR_SET_DUMPABLE, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def _resolve(reference: Sequence[str]) -> Callable[..., object]:
    found: Any = importlib.import_module(reference[0])
    for name in reference[1].split("."):
        found = getattr(found, name)
    return cast(Callable[..., object], found)


def _child() -> NoReturn:
    order = json.load(sys.stdin)
    sys.path[:] = order["path"]
    sock = socket.socket(fileno=order["sock"])
    with os.fdopen(order["result"], "w") as stream:
        try:
            _import_everything([*_PRELOADED, *order["imports"]])
            function = _resolve(order["function"]) if order["function"] else None
            code = compile(order["script"] or "", "<script>", "exec")
            identity = order["identity"] and Identity(*order["identity"])
            _hide(order["hidden"])
            _become(identity)
            names: dict[str, Any] = {"sock": sock, "args": order["args"], "result": None}
            if function is not None:
                names["result"] = function(sock, *order["args"])
            else:
                exec(code, names)
            outcome = {"result": names["result"]}
        except BaseException:  # noqa: BLE001 - every end of the script is reported
            outcome = {"error": traceback.format_exc()}
        json.dump(outcome, stream)
    sock.close()
    sys.exit()
