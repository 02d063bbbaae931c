"""What the kernel says of this process's descriptors and of locks: each claim's other side."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = [
    "Lock",
    "access_mode",
    "description_locks",
    "descriptor_count",
    "descriptors_left",
    "getfl",
    "is_direct",
    "is_open",
    "no_descriptor_leak",
    "ofd_locks",
    "open_descriptors",
    "same_description",
]

#: Readings by which an answer about the locks must lead.
_LEAD = 6
#: Bytes of one piece of the listing, and of its longest line.
_PAGE, _LONGEST = 4096, 128
_O_PATH = 0o10000000
_F_DUPFD_QUERY = 1027
_LISTING = re.compile(r"/proc/\d+/fd")
_LOCK = re.compile(
    r"\d+: (?:-> )?(?P<type>\w+)\s+\w+\s+(?P<kind>READ|WRITE)\s+-?\d+\s+"
    r"(?P<major>[0-9a-f]+):(?P<minor>[0-9a-f]+):(?P<inode>\d+)\s+"
    r"(?P<start>\d+)\s+(?P<end>\d+|EOF)"
)


def open_descriptors() -> dict[int, str]:
    """Every descriptor of this process and what it stands for, the listing's own left out."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since; also the listing itself
            target = os.readlink(f"/proc/self/fd/{name}")
            if not _LISTING.fullmatch(target):
                found[int(name)] = target
    return found


def descriptor_count() -> int:
    """How many descriptors this process has."""
    return len(open_descriptors())


@contextlib.contextmanager
def no_descriptor_leak(patience: float = 2.0) -> Iterator[None]:
    """The block must leave the descriptors as they were.

    `patience`: seconds that a thread of the product may take to close what arrived too late.
    """
    before = open_descriptors()
    yield
    deadline = time.monotonic() + patience
    while (after := open_descriptors()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    opened = {fd: name for fd, name in after.items() if before.get(fd) != name}
    closed = {fd: name for fd, name in before.items() if after.get(fd) != name}
    assert after == before, f"opened: {opened}; closed: {closed}"


def is_open(fd: int) -> bool:
    """Whether the number stands for a descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError as error:
        assert error.errno == errno.EBADF
        return False
    return True


def getfl(fd: int) -> int:
    """F_GETFL: status flags and access mode of the description."""
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def access_mode(fd: int) -> str:
    """`r`, `w`, `r+`, or `path` for an O_PATH descriptor."""
    flags = getfl(fd)
    if flags & _O_PATH:
        return "path"
    return {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "r+"}[flags & os.O_ACCMODE]


def is_direct(fd: int) -> bool:
    """Whether the description has O_DIRECT."""
    return bool(getfl(fd) & os.O_DIRECT)


def same_description(a: int, b: int) -> bool:
    """Whether two descriptors of this process share one open file description.

    Asks F_DUPFD_QUERY; where the kernel (before 6.10) does not know it, moves the file offset.
    """
    try:
        return fcntl.fcntl(a, _F_DUPFD_QUERY, b) == 1
    except OSError:
        here, there = os.lseek(a, 0, os.SEEK_CUR), os.lseek(b, 0, os.SEEK_CUR)
        os.lseek(a, here + 1, os.SEEK_SET)
        moved = os.lseek(b, 0, os.SEEK_CUR)
        os.lseek(a, here, os.SEEK_SET)
        return moved == here + 1 and here == there


@dataclass(frozen=True, order=True)
class Lock:
    """A byte-range lock; `end` is its last byte, None where it has no end."""

    start: int
    end: int | None
    kind: str
    """READ (shared) or WRITE (exclusive)."""


def _parse(line: str, device: int | None = None, inode: int | None = None) -> Lock | None:
    match = _LOCK.search(line)
    if match is None or match["type"] != "OFDLCK" or "->" in line:
        return None
    if inode is not None and inode != int(match["inode"]):
        return None
    numbers = int(match["major"], 16), int(match["minor"], 16)
    if device is not None and device != os.makedev(*numbers):
        return None
    end = None if match["end"] == "EOF" else int(match["end"])
    return Lock(int(match["start"]), end, match["kind"])


def _locks(lines: Iterable[str], device: int | None = None, inode: int | None = None) -> list[Lock]:
    return sorted(lock for line in lines if (lock := _parse(line, device, inode)))


def _pieces(first: int = 1 << 20) -> Iterator[str]:
    """What each read of the listing of all locks gives; `first`: the most of the first, bytes."""
    fd = os.open("/proc/locks", os.O_RDONLY)
    try:
        size = first
        while piece := os.read(fd, size):
            yield piece.decode("ascii")
            if len(piece) < min(size, _PAGE - _LONGEST):
                break  # the end: one more read would tell again of what has been shifted past it
            size = 1 << 20
    finally:
        os.close(fd)


def ofd_locks(path: str | os.PathLike[str] | int) -> list[Lock]:
    """All OFD locks on the file, whoever holds them, one entry for each description."""
    status = os.stat(path)
    # The kernel's listing comes in pages. Locks of other programs that come or go between two
    # of them shift the rest, and an entry is there twice, or not at all. Who locks waits while
    # a page is made, and so there is nearly always one that comes then. So more than a page is
    # read with its ends at other places each time, until one answer leads.
    text = "".join(_pieces())
    if len(text) < _PAGE - _LONGEST:
        return _locks(text.splitlines(), status.st_dev, status.st_ino)
    seen: Counter[tuple[Lock, ...]] = Counter()
    while True:
        text = "".join(_pieces(random.randrange(1, _PAGE - _LONGEST)))
        seen[tuple(_locks(text.splitlines(), status.st_dev, status.st_ino))] += 1
        (most, times), (_, others) = [*seen.most_common(2), ((), 0)][:2]
        if times - others == _LEAD:
            return list(most)
        time.sleep(0.0005)


def description_locks(fd: int) -> list[Lock]:
    """The OFD locks that the description behind `fd` itself holds."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return _locks(lines)


@contextlib.contextmanager
def descriptors_left(number: int) -> Iterator[None]:
    """This process can open that many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_descriptors()
    free = (fd for fd in itertools.count() if fd not in taken)
    limit = next(itertools.islice(free, number, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
