"""How many instructions is the C side of a reopen, and of a request through the map?

Counted by callgrind, so that the answer does not depend on how busy the machine is, and compared
with `instructions.json` by tests/unit/test_instruction_counts.py. The count depends on the
compiler: the file has one baseline for each release series and architecture.

    python -m bench.instructions            print the counts beside the baseline
    python -m bench.instructions --record   make them the baseline
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, TypedDict

from tests.support.need import need_program

__all__ = ["RECORD", "Counts", "baselines", "count", "series"]

ROOT = Path(__file__).parents[1]
BASELINES = Path(__file__).with_name("instructions.json")
RECORD = "python -m bench.instructions --record"


class Case(NamedTuple):
    """What a program in `peers` is called with, after its folder, and how often it does it."""

    name: str
    program: str
    words: tuple[str, ...]
    times: int


CASES = (
    Case("setfl, 1 file", "reopen_instructions", ("setfl", "1"), 2),
    Case("setfl, 64 files", "reopen_instructions", ("setfl", "64"), 2),
    Case("proc, 1 file", "reopen_instructions", ("proc", "1"), 2),
    Case("proc, 64 files", "reopen_instructions", ("proc", "64"), 2),
    Case("raw, read 4 KiB", "mapped_instructions", ("raw", "read", "4096"), 512),
    Case("table, read 4 KiB", "mapped_instructions", ("table", "read", "4096"), 512),
    Case("table, write 4 KiB", "mapped_instructions", ("table", "write", "4096"), 512),
    Case("table, read 1 MiB", "mapped_instructions", ("table", "read", "1048576"), 512),
)


class Counts(TypedDict):
    """A baseline, and what it was recorded with."""

    compiler: str
    libc: str
    valgrind: str
    instructions: dict[str, int]  #: for one reopen, or one request


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def compiler() -> str:
    """The first line in which $CC, or cc, names itself."""
    return _output(*shlex.split(os.environ.get("CC", "cc")), "--version").splitlines()[0]


def series() -> str:
    """The key of `instructions.json`: compiler, its major version, architecture."""
    words = shlex.split(os.environ.get("CC", "cc"))
    name = "clang" if "clang" in compiler() else "gcc"
    major = _output(*words, "-dumpversion").split(".")[0]
    return f"{name} {major} {platform.machine()}"


def _environment() -> dict[str, str]:
    """Without flags that would make another library."""
    dropped = ("CFLAGS", "CPPFLAGS", "LDFLAGS", "LD_PRELOAD")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def _build(folder: Path) -> Path:
    """The core by CMake, as C users build it, and the programs on top; their folder."""
    cmake = need_program("cmake", "cmake")
    # No debug information: it changes no code, and not every valgrind reads every compiler's.
    words = ["-DFDSTASH_WITH_LIBURING=OFF", "-DBUILD_TESTING=OFF"]
    words += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DCMAKE_C_FLAGS_RELWITHDEBINFO=-O2 -DNDEBUG"]
    _run([cmake, "-S", str(ROOT), "-B", str(folder), *words])
    _run([cmake, "--build", str(folder), "--target", "fdstash", "--parallel", "2"])
    flags = ["-std=c11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-pthread"]
    include = f"-I{ROOT / 'csrc' / 'include'}"
    compiler_words = shlex.split(os.environ.get("CC", "cc"))
    for program in {case.program for case in CASES}:
        source = ROOT / "bench" / "peers" / f"{program}.c"
        files = [str(source), str(folder / "libfdstash.a"), "-o", str(folder / program)]
        _run([*compiler_words, *flags, include, *files])
    return folder


def _count(programs: Path, case: Case, folder: Path) -> int:
    log = folder / "callgrind.out"
    work = folder / case.name.replace(" ", "-")
    work.mkdir()
    valgrind = need_program("valgrind", "valgrind")
    words = ["--tool=callgrind", "--toggle-collect=counted", f"--callgrind-out-file={log}", "-q"]
    _run([valgrind, *words, str(programs / case.program), str(work), *case.words])
    summary = re.search(r"^(?:summary|totals): (\d+)", log.read_text(), re.MULTILINE)
    if summary is None:
        raise RuntimeError("callgrind has counted nothing")
    return int(summary[1]) // case.times


def count() -> Counts:
    """Build and count."""
    with tempfile.TemporaryDirectory(prefix="fdstash-instructions-") as name:
        folder = Path(name)
        programs = _build(folder / "build")
        counted = {case.name: _count(programs, case, folder) for case in CASES}
    return Counts(
        compiler=compiler(),
        libc=os.confstr("CS_GNU_LIBC_VERSION") or "unknown",
        valgrind=_output(need_program("valgrind", "valgrind"), "--version"),
        instructions=counted,
    )


def baselines() -> dict[str, Counts]:
    """What was recorded, by `series`."""
    found: dict[str, Counts] = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    return found


def main(words: list[str]) -> None:
    recorded = baselines()
    known = recorded.get(series())
    counted = count()
    for case, instructions in counted["instructions"].items():
        was = known["instructions"].get(case) if known else None
        change = f"{instructions / was - 1:+.1%}" if was else "new"
        print(f"{case:18} {instructions:9}  {change}")
    if words == ["--record"]:
        recorded[series()] = counted
        BASELINES.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
        print(f"recorded for {series()}")
    elif words:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
