"""A load on an NBD export: fio's nbd engine, and what its JSON says.

fio goes on after a request that failed, and counts it; it stops where the connection is lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fdstash.bench.programs import end, last_words, need_program
from fdstash.bench.words import Words
from fdstash.errors import Error

__all__ = ["Measured", "NbdLoad", "percentile"]

#: Seconds that fio may take to begin, and after its time to end.
_PATIENCE = 30
#: And in which a server whose connection has ended must have ended.
_DYING = 1.0
_MARK = "started"


@dataclass(frozen=True)
class Measured:
    """What one load has found. Times are nanoseconds."""

    iops: float = 0.0
    requests: int = 0
    failed: int = 0
    longest: int = 0
    #: Values and how often, to fio's precision.
    latency: Counter[int] = field(default_factory=Counter)

    def percentile(self, percent: float) -> int:
        """The value that `percent` of all do not exceed; 0 without any."""
        return percentile(self.latency, percent)


def percentile(latency: Counter[int], percent: float) -> int:
    """The value that `percent` of all do not exceed; 0 without any."""
    wanted = max(1.0, sum(latency.values()) * percent / 100)
    seen = 0
    for value in sorted(latency):
        seen += latency[value]
        if seen >= wanted:
            return value
    return 0


class NbdLoad:
    """fio on the export under the empty name at `socket`, from the start to the end of the block.

    `alive` raises where the server has ended, or does within so many seconds; it is asked where fio
    fails.
    """

    def __init__(
        self, socket: str, words: Words, seconds: float, alive: Callable[[float], None]
    ) -> None:
        self._alive = alive
        self._seconds = seconds
        self._folder = tempfile.TemporaryDirectory(prefix="fdstash-fio-")
        self._errors = os.path.join(self._folder.name, "errors")
        try:
            with open(self._errors, "wb") as errors:
                self._process = subprocess.Popen(  # noqa: S603 - fio, as asked for
                    [need_program("fio"), *_arguments(socket, words, seconds)],
                    cwd=self._folder.name,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    stdin=subprocess.DEVNULL,
                )
        except BaseException:
            self._folder.cleanup()
            raise

    def wait_until_begun(self) -> None:
        """Return once the first job sends requests, or has ended."""
        mark = os.path.join(self._folder.name, _MARK)
        until = time.monotonic() + _PATIENCE
        while not os.path.exists(mark) and self._process.poll() is None:
            if time.monotonic() > until:
                self._alive(_DYING)
                raise Error(f"fio has not begun within {_PATIENCE} s")
            time.sleep(0.002)

    def result(self) -> Measured:
        """Wait for the end. Raises what `alive` raises, and `Error` where fio failed."""
        try:
            output, _ = self._process.communicate(timeout=self._seconds + _PATIENCE)
        except subprocess.TimeoutExpired as error:
            self._alive(_DYING)
            raise Error(f"requests were not answered within {_PATIENCE} s") from error
        if self._process.returncode != 0:
            self._alive(_DYING)
            raise Error(f"fio: {last_words(self._errors) or self._process.returncode}")
        return _measured(output.decode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._process.poll() is None:
                end(self._process, 2)
            if self._process.stdout is not None:
                self._process.stdout.close()
        finally:
            self._folder.cleanup()


def _arguments(socket: str, words: Words, seconds: float) -> list[str]:
    arguments = {
        "name": "load",
        "ioengine": "nbd",
        "uri": f"nbd+unix:///?socket={socket}",
        "rw": words.rw,
        "bs": words.block_bytes,
        "iodepth": words.depth,
        "numjobs": words.jobs,
        "runtime": f"{round(1000 * seconds)}ms",
        "rwmixread": words.read_percent,
        "randseed": words.seed,
        "continue_on_error": "all",
        "lat_percentiles": 1,
        "exec_prerun": f"touch {_MARK}",
        "output-format": "json+",
    }
    if words.fsync:
        arguments["fsync"] = words.fsync
    if words.size is not None:
        arguments["size"] = words.size
    if words.rate:
        arguments["rate_iops"] = _rates(words)
    flags = ["--thread", "--time_based", "--norandommap"]
    return flags + [f"--{name}={value}" for name, value in arguments.items()]


def _rates(words: Words) -> str:
    """Of a job's reads and writes. fio knows no fractions, and takes 0 for no limit."""
    shares = (words.reading, 100 - words.reading)
    return ",".join(str(max(1, round(words.rate * part / 100 / words.jobs))) for part in shares)


def _measured(output: str) -> Measured:
    try:
        jobs = json.loads(output[output.index("{") :])["jobs"]
    except (ValueError, KeyError) as error:
        raise Error("fio has not told what it found") from error
    latency: Counter[int] = Counter()
    directions: list[dict[str, Any]] = [job[rw] for job in jobs for rw in ("read", "write")]
    for each in directions:
        for value, count in each["lat_ns"].get("bins", {}).items():
            latency[int(value)] += count
    return Measured(
        iops=sum(each["iops"] for each in directions),
        requests=sum(each["total_ios"] for each in directions),
        failed=sum(job.get("total_err", 0) for job in jobs),
        longest=max((each["lat_ns"]["max"] for each in directions), default=0),
        latency=latency,
    )
