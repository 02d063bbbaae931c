"""`fdstash doctor`: what this machine gives."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import click

import fdstash
from fdstash import host, opening
from fdstash.cli.options import output_option
from fdstash.errors import Error

__all__ = ["doctor"]

_GOOD, _NOTE, _BAD = "ok", "note", "missing"


class _Finding(NamedTuple):
    """One thing looked at."""

    what: str
    state: str  #: `_GOOD`; `_NOTE`: works with less; `_BAD`: something cannot work
    text: str
    values: dict[str, Any]


@click.command()
@output_option
@click.argument("path", default=".")
@click.pass_obj
def doctor(limits: tuple[int, int], output: str, path: str) -> None:
    """Show what this machine gives to images in the folder of PATH.

    A small file is made there for a moment. The exit code is 1 when something is
    missing that reopening needs.
    """
    folder = path if os.path.isdir(path) else os.path.dirname(path) or "."
    findings = [_versions(), _python(), _io_uring(), _limits(limits), _proc()]
    findings += _on_file_system(folder)
    if output == "json":
        _write_json(findings, folder)
    else:
        _write_table(findings, folder)
    if any(finding.state == _BAD for finding in findings):
        sys.exit(1)


def _on_file_system(folder: str) -> list[_Finding]:
    """What needs a file in that folder."""
    try:
        with tempfile.TemporaryDirectory(prefix=".fdstash-doctor-", dir=folder) as own:
            image = os.path.join(own, "probe.raw")
            # Holes would tell nothing of alignment.
            with open(image, "xb") as file:
                file.write(b"\1" * (1 << 16))
                os.fsync(file.fileno())
            return [_direct(image), _locks(image), _beneath(own)]
    except OSError as error:
        if not os.path.isdir(folder):
            raise
        text = f"no file can be made here ({error.strerror}): nothing more is known"
        return [_Finding("folder", _NOTE, text, {"writable": False})]


def _versions() -> _Finding:
    values = {
        "fdstash": importlib.metadata.version("fdstash"),
        "core": fdstash.__version__,
        "cffi": importlib.metadata.version("cffi"),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "machine": platform.machine(),
    }
    text = ", ".join(f"{name} {value}" for name, value in values.items() if value)
    return _Finding("versions", _GOOD, text, values)


def _python() -> _Finding:
    built = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    values = {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free-threaded": built,
        "gil": enabled,
    }
    text = f"{values['implementation']} {values['version']}, "
    text += "free-threaded" if built else "with a GIL, which reads and writes release"
    if built and enabled:
        text += ", but the GIL is on"
    return _Finding("python", _GOOD, text, values)


def _io_uring() -> _Finding:
    found = host.uring()
    usable = found.state == "usable"
    values = {
        "built": found.state != "not built",
        "usable": usable,
        "errno": found.error,
        "engine": "io_uring" if usable else "threads",
        "setup": list(found.flags),
        "bound_setup": list(found.bound_flags),
    }
    why = os.strerror(found.error)
    text = {
        "usable": f"usable, and what queues use ({', '.join(found.bound_flags).lower()})",
        "refused": f"refused by the kernel or a sandbox ({why}): queues use threads instead",
        "not built": "not in this build (liburing was not found): queues use threads instead",
    }[found.state]
    return _Finding("io_uring", _GOOD if usable else _NOTE, text, values)


def _limits(limits: tuple[int, int]) -> _Finding:
    """An image of N files needs 3N+1 descriptors in a reopen, and 4N in a change of path."""
    in_use = len(os.listdir("/proc/self/fd"))
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in limits)
    values = {
        "soft": soft,
        "hard": hard,
        "in-use": in_use,
        "files-in-a-reopen": max(0, (soft - in_use - 1) // 3),
        "files-in-a-change-of-path": max(0, (soft - in_use) // 4),
        "files-at-the-hard-limit": max(0, (hard - in_use) // 4),
    }
    text = (
        f"soft {soft}, hard {hard}: images of up to {values['files-in-a-reopen']} files can be"
        f" reopened, of {values['files-in-a-change-of-path']} with another path"
    )
    if hard > soft:
        text += f"; of {values['files-at-the-hard-limit']} after fdstash.raise_nofile()"
    return _Finding("descriptors", _GOOD, text, values)


def _attempt(function: Callable[[], Any]) -> str:
    """Why `function` fails; empty when it does not."""
    try:
        function()
    except (Error, OSError) as error:
        return error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return ""


def _proc() -> _Finding:
    def open_again() -> None:
        with tempfile.TemporaryFile() as file:
            os.close(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC))

    why = _attempt(open_again)
    text = "usable: renamed and unlinked images can be reopened"
    if why:
        text = f"not usable ({why}): a changed mode needs the path or a stash"
    return _Finding("/proc/self/fd", _NOTE if why else _GOOD, text, {"usable": not why})


def _direct(path: str) -> _Finding:
    with open(path, "rb") as file:
        told = host.direct_alignment(file.fileno())
    try:
        with fdstash.open(path, "r", format="raw", cache="none") as image:
            limits = image.limits
    except (Error, OSError) as error:
        text = f"not borne by this file system ({error}): cache modes none and directsync fail"
        return _Finding("O_DIRECT", _NOTE, text, {"usable": False})
    source = "statx" if told else "probing"
    values = {
        "usable": True,
        "memory-alignment": limits.memory_alignment,
        "offset-alignment": limits.offset_alignment,
        "known-by": source,
    }
    text = (
        f"memory aligned to {limits.memory_alignment}, offsets to {limits.offset_alignment}"
        f" bytes (known by {source})"
    )
    return _Finding("O_DIRECT", _GOOD, text, values)


def _locks(path: str) -> _Finding:
    try:
        with fdstash.open(path, "r+", format="raw"):
            why = _attempt(lambda: fdstash.open(path, "r+", format="raw").close())
    except fdstash.LockError as error:
        text = f"not given by this file system ({error.strerror}): only lock=False opens images"
        return _Finding("image locks", _BAD, text, {"usable": False})
    if not why:
        text = "without effect on this file system: two programs can write to one image"
        return _Finding("image locks", _BAD, text, {"usable": False})
    text = "work: a second writer is refused, here and in QEMU"
    return _Finding("image locks", _GOOD, text, {"usable": True})


def _beneath(folder: str) -> _Finding:
    """Whether the kernel keeps the files that a header names in their folder."""
    anchor = opening.open_folder(folder)
    try:
        inside = _attempt(
            lambda: opening.close_owned(
                opening.open_in(anchor, "probe.raw", os.O_RDONLY, "probe.raw", beneath=True)
            )
        )
        outside = _attempt(
            lambda: opening.close_owned(
                opening.open_in(anchor, "../probe.raw", os.O_RDONLY, "../probe.raw", beneath=True)
            )
        )
    finally:
        opening.close_owned(anchor)
    values = {"openat2": not inside, "resolve-beneath": bool(outside) and not inside}
    if inside:
        text = f"refused ({inside}): images of several files cannot be opened by path"
        return _Finding("openat2", _BAD, text, values)
    text = "RESOLVE_BENEATH works: a header names files beneath its own folder only"
    return _Finding("openat2", _GOOD, text, values)


def _write_json(findings: list[_Finding], folder: str) -> None:
    found: dict[str, Any] = {"path": folder}
    for finding in findings:
        found[finding.what] = {**finding.values, "state": finding.state, "text": finding.text}
    click.echo(json.dumps(found, indent=4))


def _write_table(findings: list[_Finding], folder: str) -> None:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.table import Table  # noqa: PLC0415 - as above

    styles = {_GOOD: "green", _NOTE: "yellow", _BAD: "bold red"}
    table = Table(title=f"In {folder}", title_justify="left", box=None, pad_edge=False)
    for column in ("", "", ""):
        table.add_column(column, overflow="fold")
    table.show_header = False
    for finding in findings:
        style = styles[finding.state]
        table.add_row(f"[{style}]{finding.state}[/]", finding.what, finding.text)
    Console().print(table)
