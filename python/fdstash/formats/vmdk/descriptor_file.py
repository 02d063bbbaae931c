"""Where the descriptor of a VMDK is: a file of its own, or within a sparse extent."""

from __future__ import annotations

import errno
import re
import secrets
from dataclasses import replace

from fdstash.errors import FormatError, os_error
from fdstash.formats.base import FileChild, ReadAt
from fdstash.formats.vmdk import sparse_header
from fdstash.formats.vmdk.descriptor import MAX_BYTES, Descriptor, parse
from fdstash.formats.vmdk.hosted_extent import read_header
from fdstash.formats.vmdk.layout import SECTOR
from fdstash.formats.vmdk.magic import descriptor_confidence, sparse_variant

__all__ = ["DescriptorFile"]

_HEAD = 2048
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_RESERVED_CIDS = (0, 0xFFFFFFFE, 0xFFFFFFFF)


class DescriptorFile:
    """The descriptor as it was read, and the one thing that is ever written to it."""

    parsed: Descriptor

    def __init__(self, file: FileChild, read: ReadAt) -> None:
        """Raises `FormatError` for what holds none."""
        self._file = file
        #: The file that holds the descriptor is an extent, the only one.
        self.embedded = False
        self._start = 0
        self._text = self._read(read)
        self.parsed = self._parse(self._text)

    def reread(self, read: ReadAt) -> DescriptorFile:
        """The descriptor as it is now."""
        return DescriptorFile(self._file, read)

    def take_over(self, fresh: DescriptorFile) -> None:
        """Become that one, which has the same layout."""
        self._text, self.parsed = fresh._text, fresh.parsed

    def line(self, number: int) -> int | None:
        """Where extent line `number` is in the file, bytes."""
        lines = self.parsed.lines
        return self._start + lines[number] if lines else None

    def _read(self, read: ReadAt) -> bytes:
        """The bytes; anything else and anything too long is refused unread."""
        file = self._file
        head = read(file, _HEAD, 0)
        if head.startswith(sparse_header.MAGIC):
            return self._read_embedded(read)
        variant = sparse_variant(head)
        if variant is not None or not descriptor_confidence(head):
            what = "it starts neither like a descriptor nor with a known magic"
            raise FormatError(
                f"this is {f'an extent ({variant})' if variant else f'no VMDK: {what}'}; "
                "name the descriptor, not an extent",
                file=file.name,
                offset=0,
                field="magic",
            )
        size = file.size
        if size >= MAX_BYTES:
            raise FormatError(
                f"a descriptor has less than {MAX_BYTES} bytes, and this file has {size}",
                file=file.name,
                field="descriptor",
            )
        return head if size <= len(head) else read(file, size, 0)

    def _read_embedded(self, read: ReadAt) -> bytes:
        header = read_header(self._file, read)
        self.embedded = header.capacity > 0
        self._start = header.descriptor_offset * SECTOR
        text = b""
        if self._start:
            # As many bytes as a descriptor may have at most.
            text = read(self._file, header.descriptor_size * SECTOR - 1, self._start)
        if not text.strip(b"\0 \r\n"):
            raise FormatError(
                "this extent holds no descriptor; name the descriptor that names it",
                file=self._file.name,
                offset=28,
                field="descriptorOffset",
            )
        return text

    def _parse(self, text: bytes) -> Descriptor:
        try:
            return parse(text, self._file.name)
        except FormatError as error:
            if self._start and error.offset is not None:
                error.offset += self._start
            raise

    def renew_cid(self) -> None:
        """Put a new random CID in the place of the old one, in as many digits.

        By it, images that have this one as their parent see that it was written
        to. A descriptor without a CID is left as it is. Raises `FormatError` when
        the old CID is no longer where it was.
        """
        place = self.parsed.cid_place
        if place is None:
            return
        at = self._start + place.offset
        # Not the digits that were parsed, where a reopen met a write on its way.
        held = self._file.pread(len(place.digits), at)
        if not _HEX.fullmatch(held):
            raise FormatError(
                "another program has written to the descriptor; open the image again",
                file=self._file.name,
                offset=at,
                field="CID",
            )
        digits = _new_cid(held)
        if self._file.pwrite(digits, at) != len(digits):
            raise os_error(errno.EIO, self._file.name, "the new CID was not written whole")
        end = place.offset + len(digits)
        self._text = self._text[: place.offset] + digits + self._text[end:]
        self.parsed = replace(
            self.parsed, cid=int(digits, 16), cid_place=place._replace(digits=digits)
        )


def _new_cid(old: bytes) -> bytes:
    """A CID that is not the old one and means nothing special, in as many digits."""
    while True:
        digits = secrets.token_hex(4)[: len(old)].encode("ascii")
        if int(digits, 16) not in (*_RESERVED_CIDS, int(old, 16)):
            return digits
