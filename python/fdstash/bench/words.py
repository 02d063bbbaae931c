"""What a load is: the words of fio that `bench io` and `bench reopen` share."""

from __future__ import annotations

from dataclasses import dataclass

from fdstash.cache import CACHE_MODES
from fdstash.errors import OptionError
from fdstash.queue import ENGINES

__all__ = ["PATTERNS", "Words"]

#: What `rw` may be: the pattern, and the percentage of reads (None: `read_percent`).
PATTERNS: dict[str, tuple[str, int | None]] = {
    "read": ("sequential", 100),
    "write": ("sequential", 0),
    "rw": ("sequential", None),
    "randread": ("random", 100),
    "randwrite": ("random", 0),
    "randrw": ("random", None),
    "strided": ("strided", 100),
}


@dataclass(frozen=True)
class Words:
    """An image and the load on it. `image` None makes one in `folder`."""

    image: str | None = None
    format: str | None = None
    rw: str = "randread"
    block_bytes: int = 4096
    depth: int = 32
    jobs: int = 1  #: each with a part of the image of its own
    runtime: float | None = None  #: seconds
    size: int | None = None  #: bytes of the image that are used
    cache: str = "writeback"  #: the mode to begin with
    engine: str = "auto"
    read_percent: int = 50  #: of rw and randrw
    stride: int | None = None  #: bytes from one block to the next, of ``strided``
    rate: float = 0  #: requests a second, of all jobs; latency then counts from when one is due
    fsync: int = 0  #: a flush after so many writes of a job; 0: none
    verify: bool = False  #: blocks are looked at when they are read
    seed: int = 1
    every: float = 0.01  #: seconds between two reopens, on average
    folder: str | None = None

    def check(self) -> None:
        """Raises `OptionError`."""
        for name in ("block_bytes", "depth", "jobs"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1", option=name)
        for name, words in (("rw", PATTERNS), ("engine", ENGINES), ("cache", CACHE_MODES)):
            if getattr(self, name) not in words:
                raise OptionError(f"{name} is one of {', '.join(words)}", option=name)
        if not 0 <= self.read_percent <= 100:
            raise OptionError("read_percent is 0 to 100", option="read_percent")
        if self.stamped and self.block_bytes % 16:
            raise OptionError("verified blocks are a multiple of 16 bytes", option="block_bytes")
        if (self.stride is None) == (self.rw == "strided"):
            raise OptionError("strided, and nothing else, has a stride", option="stride")
        if self.stride is not None and (self.stride < 1 or self.stride % self.block_bytes):
            raise OptionError("a stride is a multiple of the block size", option="stride")
        if self.rate < 0 or (self.runtime is not None and self.runtime <= 0) or self.every <= 0:
            raise OptionError("times and rates are not negative", option="runtime")
        if self.fsync < 0:
            raise OptionError("fsync is a number of writes", option="fsync")

    @property
    def stamped(self) -> bool:
        """Whether blocks tell their place and generation."""
        return self.verify

    @property
    def reading(self) -> int:
        """The percentage of reads."""
        percent = PATTERNS[self.rw][1]
        return self.read_percent if percent is None else percent

    @property
    def writing(self) -> bool:
        """Whether there are writes."""
        return self.reading < 100
