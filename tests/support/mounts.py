"""Loop devices and mounts that always go away again, also after a run that was killed.

Everything lives beneath one folder named for the process that made it, so that a later run can
tell what a dead one left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.need import missing, need_program, need_root, plain_environment

__all__ = ["Workplace", "attach_loop", "detach_loop", "mount", "run", "sweep", "unmount"]

_PREFIX = "fdstash-hosts"
_FOLDER = re.compile(rf"/{_PREFIX}-(?P<pid>\d+)-(?P<started>\d+)(?=/|$)")


def run(*command: object, package: str = "util-linux") -> str:
    """Run a system program; OSError with what it said where it fails."""
    words = [str(word) for word in command]
    program = need_program(words[0], package)
    environment = plain_environment() | {"LC_ALL": "C"}
    done = subprocess.run(
        [program, *words[1:]], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise OSError(done.returncode, f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def mount(source: str, target: str | os.PathLike[str], kind: str, options: str = "rw") -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    try:
        run("mount", "-t", kind, "-o", options, source, os.fspath(target))
    except OSError as error:
        missing(f"mounting {kind} does not work here: {error}")


def unmount(target: str | os.PathLike[str]) -> None:
    """Unmount, at once if nobody uses it and else as soon as that ends."""
    try:
        run("umount", os.fspath(target))
    except OSError:
        with contextlib.suppress(OSError):
            run("umount", "-l", os.fspath(target))


def attach_loop(backing: str | os.PathLike[str], sector_size: int = 512) -> str:
    """A loop device over a file; its path."""
    command = ["losetup", "--find", "--show", "--sector-size", str(sector_size), os.fspath(backing)]
    for attempt in range(10):
        try:
            return run(*command)
        except OSError as error:
            # Another process may take the free device between finding and using it.
            if attempt == 9:
                missing(f"no loop device: {error}")
            time.sleep(0.05)
    raise AssertionError


def detach_loop(device: str) -> None:
    with contextlib.suppress(OSError):
        run("losetup", "--detach", device)


def _mounts_below(folder: str) -> list[str]:
    """Mount points in or at the folder, the latest first; nothing is looked up on them."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            target = line.split()[4].replace("\\040", " ")
            if target == folder or target.startswith(f"{folder}/"):
                found.append(target)
    return found[::-1]


def _loops_below(folder: str) -> list[str]:
    devices = json.loads(run("losetup", "--list", "--json") or "{}").get("loopdevices", [])
    return [
        device["name"]
        for device in devices
        if (device.get("back-file") or "").startswith(f"{folder}/")
    ]


def _clear(folder: str) -> None:
    devices = _loops_below(folder)  # asked first: what is unmounted hides their backing files
    for target in _mounts_below(folder):
        if target != folder:
            unmount(target)
    for device in devices:
        detach_loop(device)
    while folder in _mounts_below(folder):
        unmount(folder)
    # Never a tree: whatever could not be unmounted must not be emptied.
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _start_time(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return None


def sweep() -> list[str]:
    """Remove what runs that were killed have left; their folders."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        places = lines.read().split()
    places += run("losetup", "--list", "--noheadings").split()
    places += map(str, Path(tempfile.gettempdir()).glob(f"{_PREFIX}-*"))
    swept = set()
    for place in places:
        match = _FOLDER.search(place)
        if match and _start_time(int(match["pid"])) != int(match["started"]):
            swept.add(place[: match.end()])
    for folder in swept:
        _clear(folder)
    return sorted(swept)


class Workplace:
    """The folder of this process: a tmpfs, on which loop devices and mount points lie."""

    def __init__(self) -> None:
        need_root("mounts and loop devices")
        sweep()
        pid = os.getpid()
        self.folder = Path(tempfile.gettempdir()) / f"{_PREFIX}-{pid}-{_start_time(pid)}"
        mount("fdstash-hosts", self.folder, "tmpfs", "rw,mode=755")
        self._count = 0

    def fresh(self, name: str) -> Path:
        """A path beneath the folder that nobody has had."""
        self._count += 1
        return self.folder / f"{self._count}-{name}"

    def close(self) -> None:
        _clear(str(self.folder))
