"""What a check of an image has found."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from fdstash.errors import FormatError, ImageIOError

__all__ = ["CheckReport", "Finding", "Repair", "Severity"]

#: Findings of one kind that are told one by one; the others are counted.
MOST_TOLD = 100


class Repair(enum.Enum):
    """What a check is to put right."""

    NOTHING = "nothing"
    LEAKS = "leaks"  #: space that nothing refers to
    ALL = "all"  #: that, and metadata that can be told from its copy


class Severity(enum.Enum):
    """What a finding means."""

    CORRUPTION = "corruption"  #: the guest's data are, or may come to be, wrong
    LEAK = "leak"  #: space is lost, and nothing else
    NOTE = "note"  #: worth knowing
    ERROR = "error"  #: something could not be looked at


class Finding(NamedTuple):
    """One thing that was found."""

    severity: Severity
    message: str  #: what is wrong, and what to do
    file: str
    offset: int | None = None  #: in the file, bytes
    field: str | None = None
    fixed: bool = False


@dataclass(slots=True)
class CheckReport:
    """The result of `fdstash.check`; the counts have `qemu-img check`'s meanings."""

    filename: str
    format: str
    findings: list[Finding] = field(default_factory=list)
    check_errors: int = 0
    corruptions: int = 0  #: that are left
    corruptions_fixed: int = 0
    leaks: int = 0  #: clusters, that are left
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    compressed_clusters: int = 0
    fragmented_clusters: int = 0  #: whose bytes do not follow those of the cluster before
    image_end: int = 0  #: bytes of all files that are in use

    @property
    def unclean(self) -> bool:
        """Whether a file was not closed by the program that wrote to it last."""
        return any(each.severity is Severity.NOTE and not each.fixed for each in self.findings)

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return not (self.check_errors or self.corruptions or self.leaks)

    def corrupt(
        self, message: str, file: str, offset: int | None, field: str, *, fixed: bool = False
    ) -> None:
        """Count a corruption, and tell it unless there are many."""
        self.corruptions += not fixed
        self.corruptions_fixed += fixed
        if self.corruptions + self.corruptions_fixed <= MOST_TOLD:
            self.findings.append(
                Finding(Severity.CORRUPTION, message, file, offset, field, fixed=fixed)
            )

    def leak(self, clusters: int, message: str, file: str, offset: int, *, fixed: bool) -> None:
        """Count leaked clusters that lie together."""
        self.leaks += 0 if fixed else clusters
        self.leaks_fixed += clusters if fixed else 0
        if sum(each.severity is Severity.LEAK for each in self.findings) < MOST_TOLD:
            self.findings.append(Finding(Severity.LEAK, message, file, offset, fixed=fixed))

    def note(self, message: str, file: str, offset: int, field: str, *, fixed: bool) -> None:
        """Tell what is worth knowing."""
        self.findings.append(Finding(Severity.NOTE, message, file, offset, field, fixed=fixed))

    @contextmanager
    def telling(self, file: str) -> Iterator[None]:
        """Count what is raised: bytes that are wrong, and files that cannot be read."""
        try:
            yield
        except FormatError as error:
            self.corrupt(error.message, error.file or file, error.offset, error.field or "")
        except ImageIOError as error:
            self.check_errors += 1
            self.findings.append(Finding(Severity.ERROR, error.strerror or str(error), file))
