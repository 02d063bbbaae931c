"""Descriptors made to exhaust the reader: each is answered within a second and 64 MiB."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fdstash.formats.vmdk.descriptor import MAX_BYTES, MAX_EXTENTS

# Under a sanitizer neither limit means anything.
pytestmark = pytest.mark.slow

HEAD = b'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'
ROOM = MAX_BYTES - len(HEAD) - 1
SECONDS = 2.0
MEMORY = 64 << 20

# Opens the file as what it is recognised as. Addresses are limited to what the
# process has by then and 64 MiB; the time is that of the processor, so that a
# busy machine does not fail the test.
READER = """
import json, resource, sys, time
from fdstash.formats import registry
from tests.support.children import MemoryOpener, PathChild
from tests.support.effort import seconds_here

file = PathChild(sys.argv[1], sys.argv[1], 0, writable=False)
opener = MemoryOpener(size=int(sys.argv[2]))
with open("/proc/self/statm") as statm:
    held = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + int(sys.argv[3]), resource.RLIM_INFINITY))
start = time.process_time()
try:
    head, tail = file.pread(registry.HEAD_BYTES, 0), file.pread(512, max(file.size - 512, 0))
    name = registry.probe(head, tail, file.size, file.name)
    image = registry.driver(name).open(file, opener, writable=True, options={})
    found = {"extents": len(image.segments())}
except ValueError as error:
    found = {"error": type(error).__name__, "text": str(error)[-300:], "field": error.field}
found["seconds"] = time.process_time() - start
found["may"] = seconds_here(float(sys.argv[4]))
print(json.dumps(found))
"""


def read(path: Path, extent_size: int = 1 << 62) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), str(extent_size), str(MEMORY), str(SECONDS)],
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["seconds"] < found["may"]
    return found


def filled(unit: bytes) -> bytes:
    return (unit * (ROOM // len(unit) + 1))[:ROOM]


def numbered(line: str) -> Iterator[bytes]:
    room = ROOM
    for number in range(MAX_EXTENTS):
        text = line.format(number).encode()
        room -= len(text)
        if room < 0:
            return
        yield text


WHOLE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "as many extents as fit": (lambda: b"RW 1 ZERO\n" * 70000, "extents"),
    "as many extents as are allowed": (lambda: b"RW 1 ZERO\n" * MAX_EXTENTS, "access"),
    "extents of one file": (lambda: b"".join(numbered('RW 1 FLAT "a" {}\n')), None),
    "extents of one region": (lambda: b'RW 1 FLAT "a" 0\n' * 60000, "offset"),
    "extents of many files": (lambda: b"".join(numbered('RW 1 FLAT "{}"\n')), None),
    "one line": (lambda: filled(b"x"), "line"),
    "a line of quotes": (lambda: b"RW 1 FLAT " + filled(b'"')[10:], "file name"),
    "a line of quotes and blanks": (lambda: b"RW 1 FLAT " + filled(b'" ')[10:], "file name"),
    "a name without end": (lambda: b'RW 1 FLAT "' + filled(b"x")[11:], "file name"),
    "a name before many blanks": (
        lambda: b'RW 1 FLAT "a"' + filled(b" ")[14:] + b"x",
        None,
    ),
    "blanks between words": (lambda: b"RW" + filled(b" ")[3:] + b"1", "line"),
    "a number without end": (lambda: b"RW " + filled(b"9")[13:] + b' FLAT "a"', "sectors"),
    "an offset without end": (lambda: b'RW 1 FLAT "a" ' + filled(b"9")[14:], "offset"),
    "many entries": (lambda: filled(b"a=\n"), "line"),
    "equals signs": (lambda: filled(b"="), "line"),
    "returns": (lambda: filled(b"\r"), "extents"),
    "empty lines": (lambda: filled(b"\n"), "extents"),
    "comments": (lambda: filled(b"#\n"), "extents"),
    "NULs": (lambda: filled(b"\0"), "extents"),
    "bytes that are no text": (lambda: filled(b"\xff"), "line"),
    "an encoding without end": (lambda: b"encoding=" + filled(b"\xff")[9:], "encoding"),
    "many encodings": (lambda: filled(b"encoding=x\n"), None),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_descriptor_of_full_length_is_answered_at_once(what: str, tmp_path: Path) -> None:
    make, field = WHOLE[what]
    path = tmp_path / "disk.vmdk"
    path.write_bytes(HEAD + make())
    assert path.stat().st_size < MAX_BYTES
    found = read(path)
    if field is not None:
        assert found["error"] == "FormatError"
        assert found["field"] == field


def test_a_million_extents_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(HEAD + b'RW 1 FLAT "a" 0\n' * 1_000_000)
    found = read(path)
    assert (found["error"], found["field"]) == ("FormatError", "descriptor")
    assert f"less than {MAX_BYTES} bytes" in found["text"]


def test_a_descriptor_of_a_gibibyte_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    with path.open("wb") as file:
        file.write(HEAD)
        file.truncate(1 << 30)
    found = read(path)
    assert (found["error"], found["field"]) == ("FormatError", "descriptor")


def test_files_that_are_too_short_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(HEAD + b"".join(numbered('RW 1 FLAT "{}"\n')))
    found = read(path, extent_size=511)
    assert (found["error"], found["field"]) == ("FormatError", "sectors")
    path.write_bytes((HEAD + b'RW 1 FLAT "a" 0\n')[: len(HEAD) // 2])
    assert read(path)["error"] == "FormatError"
