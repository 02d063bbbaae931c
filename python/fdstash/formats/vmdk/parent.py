"""The parent of a new image: its CID, and the words by which the image names it."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from fdstash.errors import FormatError, OptionError, os_error
from fdstash.formats.options import check_text
from fdstash.formats.vmdk import sparse_header
from fdstash.formats.vmdk.descriptor import MAX_BYTES, NO_PARENT, parse
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.magic import SPARSE_MAGICS

__all__ = ["Parent", "read_parent"]

_AN_EXTENT = "this is an extent, which has no CID; name the descriptor instead"


class Parent(NamedTuple):
    """What an image says of its parent."""

    hint: str  #: the file name, relative to the image's folder unless absolute
    cid: int  #: as it was when the image was made


def read_parent(backing_file: object, child: str) -> Parent:
    """The parent that an image at the path `child` is to have.

    Only the parent's descriptor is read. Raises `OptionError` for a name that no
    descriptor can hold, `FormatError` for a file that is no VMDK or has no CID,
    and `ImageIOError`.
    """
    hint = check_text(backing_file, "backing_file")
    path = os.path.join(os.path.dirname(child), hint)
    if os.path.exists(child) and os.path.exists(path) and os.path.samefile(child, path):
        raise OptionError("an image cannot be its own parent", option="backing_file")
    found = parse(_descriptor(path), path)
    if found.cid is None or found.cid == NO_PARENT:
        raise FormatError(
            "the parent has no CID, by which the new image could know it again",
            file=path,
            field="CID",
        )
    return Parent(hint, found.cid)


def _descriptor(path: str) -> bytes:
    """The bytes of the descriptor of the image at `path`, embedded or not."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path, "open the backing file") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise os_error(errno.EINVAL, path, "a backing file is a regular file")
        head = os.pread(fd, sparse_header.HEADER_BYTES, 0)
        if head.startswith(sparse_header.MAGIC):
            header = sparse_header.parse(head, path)
            sparse_header.check(header, path, status.st_size)
            if header.descriptor_offset == 0:
                raise FormatError(_AN_EXTENT, file=path, offset=28, field="descriptorOffset")
            length = header.descriptor_size * SECTOR - 1  # less than is too much
            return os.pread(fd, length, header.descriptor_offset * SECTOR)
        if head.startswith(SPARSE_MAGICS):
            raise FormatError(_AN_EXTENT, file=path, offset=0, field="magic")
        return os.pread(fd, MAX_BYTES, 0)
    except OSError as error:
        raise os_error(error.errno or errno.EIO, path, "read the backing file") from error
    finally:
        os.close(fd)
