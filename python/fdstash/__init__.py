"""fdstash: open disk images, and reopen them under load without losing them.

Python decides, C moves the bytes, and a stashed descriptor means that no decision
can lose the image. See `open`, `Image.reopen` and `FDStash`.
"""

import logging as _logging

from fdstash._version import __version__
from fdstash.backing import Backing
from fdstash.buffers import AlignedBuffer
from fdstash.checking import check
from fdstash.copying import convert
from fdstash.errors import (
    ClosedError,
    Error,
    FormatError,
    ImageIOError,
    LockError,
    NotAFileError,
    OptionError,
    RefusedError,
    ReopenError,
    UnsupportedFormatError,
)
from fdstash.extents import Extent
from fdstash.formats.check import CheckReport
from fdstash.formats.create import create
from fdstash.graph import probe
from fdstash.hostfile import FileInfo
from fdstash.image import Image, open  # noqa: A004 - as io and gzip do
from fdstash.limits import Limits
from fdstash.names import Beneath, anywhere
from fdstash.opening import raise_nofile
from fdstash.queue import Completion, Queue
from fdstash.report import ReopenReport
from fdstash.several import reopen_all
from fdstash.stash import FDStash
from fdstash.waiting import pending_opens

__all__ = [
    "AlignedBuffer",
    "Backing",
    "Beneath",
    "CheckReport",
    "ClosedError",
    "Completion",
    "Error",
    "Extent",
    "FDStash",
    "FileInfo",
    "FormatError",
    "Image",
    "ImageIOError",
    "Limits",
    "LockError",
    "NotAFileError",
    "OptionError",
    "Queue",
    "RefusedError",
    "ReopenError",
    "ReopenReport",
    "UnsupportedFormatError",
    "__version__",
    "anywhere",
    "check",
    "convert",
    "create",
    "open",
    "pending_opens",
    "probe",
    "raise_nofile",
    "reopen_all",
]

_logging.getLogger("fdstash").addHandler(_logging.NullHandler())
