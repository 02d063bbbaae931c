"""Opens an image in a process of its own, within a second and 64 MiB: what hostile ones get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["opened"]

SECOND = 1.0
MEMORY = 64 << 20

# Memory is limited to what the process has by then and 64 MiB. A busy machine does not fail the
# test by the time that others take: waiting is looked at apart from working, and working beside a
# yardstick.
_OPENER = """
import json, os, resource, sys, threading, time
import fdstash
from tests.support.effort import seconds_here

path, mode, memory, places = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])

def told(error):
    return {
        "error": type(error).__name__,
        "family": [c.__name__ for c in type(error).__mro__],
        "errno": getattr(error, "errno", None),
        "file": getattr(error, "file", None),
        "field": getattr(error, "field", None),
        "text": str(error)[-500:],
    }

def outcome(call, *arguments):
    try:
        found = call(*arguments)
    except (fdstash.Error, OSError) as error:
        return told(error)
    return found.strip(b"\\0")[:8].decode("latin-1") if isinstance(found, bytes) else found

before = sorted(os.listdir("/proc/self/fd"))
with open("/proc/self/statm") as statm:
    held = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + memory, resource.RLIM_INFINITY))
work, wall = time.process_time(), time.monotonic()
try:
    with fdstash.open(path, mode) as image:
        found = {"opened": image.size, "reads": [], "writes": []}
        for place in places:
            offset = place if place >= 0 else image.size + place
            found["reads"].append(outcome(image.pread, 4096, offset))
            if mode == "r+":
                found["writes"].append(outcome(image.pwrite, b"written", offset))
except (fdstash.Error, OSError) as error:
    found = told(error)
found["work"], found["wall"] = time.process_time() - work, time.monotonic() - wall
found["may"] = seconds_here(float(sys.argv[5]))
found["leaked"] = len(os.listdir("/proc/self/fd")) - len(before)
print(json.dumps(found))
"""


def opened(path: Path, mode: str, places: list[int] | None = None) -> dict[str, Any]:
    """What became of it, and of reads and writes at `places`; from the end where negative.

    Either `opened` with the size, `reads` and `writes`, or what the error says. A read is the
    first letters of what was read, zeros around them left out.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _OPENER,
            str(path),
            mode,
            str(MEMORY),
            json.dumps(places or []),
            str(SECOND),
        ],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["leaked"] == 0
    assert found["work"] < found["may"], found
    assert found["wall"] < 10 * found["may"], found
    return dict(found)
