"""The text of a VMDK descriptor: `parse` and `build`, and no opinion on its meaning.

Follows VMware's "Virtual Disk Format 5.0": lines of `key=value`, extent lines of
access, sectors, type, quoted file name and offset, comments after `#`, upper and
lower case alike. In the wild there are also further fields on extent lines, CRLF,
spaces around `=`, and NUL padding, all of which QEMU reads too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from fdstash.errors import FormatError
from fdstash.formats.base import shown
from fdstash.formats.vmdk import encoding as encodings

__all__ = [
    "MAX_BYTES",
    "MAX_ENTRIES",
    "MAX_EXTENTS",
    "MAX_NAME",
    "NO_PARENT",
    "CidPlace",
    "Descriptor",
    "ExtentLine",
    "build",
    "parse",
]

#: A descriptor of this many bytes or more is refused without being read.
MAX_BYTES = 1 << 20
#: Extent lines of one descriptor.
MAX_EXTENTS = 65536
#: Lines of `key=value` of one descriptor.
MAX_ENTRIES = 8192
#: Characters of a file name.
MAX_NAME = 4095
#: The parentCID of an image without a parent.
NO_PARENT = 0xFFFFFFFF

_EXTENT = re.compile(
    r"(RW|RDONLY|NOACCESS)[ \t]+([^ \t]+)[ \t]+([^ \t\"]+)(?:[ \t]+(.*))?", re.IGNORECASE
)
# What nearly every extent line is, and a disk may have thousands of them.
_USUAL = re.compile(
    rb"(RW|RDONLY) ([0-9]{1,15}) ([A-Z]+) \"([-A-Za-z0-9_. /]{1,250})\"(?: ([0-9]{1,15}))?"
)
# A name may hold quotes, which nothing escapes: it ends at the first quote that
# is followed by a number or by nothing, else at the first quote.
_NAME = re.compile(r'"(.*?)"(?=[ \t]+[0-9]|[ \t]*$)')
_NAME_BEFORE_FURTHER = re.compile(r'"([^"]*)"(?=[ \t])')
_OFFSET = re.compile(r"(-?[0-9][^ \t]*)[ \t]*")
_ENTRY = re.compile(r"([^ \t=\"]+)[ \t]*=[ \t]*(.*)")
_CID = re.compile(rb"[ \t]*CID[ \t]*=[ \t]*\"?([0-9a-f]{1,8})\"?[ \t\r]*", re.IGNORECASE)
_ENCODING = re.compile(
    rb"^[ \t]*encoding[ \t]*=[ \t]*\"?([^\"\r\n]{0,64})", re.IGNORECASE | re.MULTILINE
)
_DIGITS = re.compile(r"[0-9]{1,19}")  # int64


class ExtentLine(NamedTuple):
    """One extent line. The name is None where the line gives none."""

    access: str  #: RW, RDONLY or NOACCESS
    sectors: int  #: of 512 bytes
    type: str  #: upper case, whatever it is: FLAT, ZERO, SPARSE, ...
    name: str | None = None
    offset: int | None = None  #: in the file, sectors
    further: str = ""  #: what else the line holds


class CidPlace(NamedTuple):
    """Where in the file the digits of the CID are."""

    offset: int  #: bytes
    digits: bytes  #: as they stand there


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says."""

    create_type: str
    extents: tuple[ExtentLine, ...]
    cid: int | None = None  #: None where the line is missing or no number
    parent_cid: int = NO_PARENT
    version: str = "1"
    encoding: str | None = None  #: as written; None where there is no such line
    #: Further lines of the header, as (key, value), in order.
    settings: tuple[tuple[str, str], ...] = ()
    #: The `ddb.` lines, as (key, value), in order.
    database: tuple[tuple[str, str], ...] = ()
    cid_place: CidPlace | None = field(default=None, compare=False)
    #: Where each extent line starts in the file, bytes.
    lines: tuple[int, ...] = field(default=(), compare=False)


def parse(data: bytes, file: str) -> Descriptor:
    """Reads the text in `data`, which ends at the first NUL.

    `file` is the name for errors. Raises `FormatError` with the offset of the
    line and the field; a line that is neither an extent, nor an entry, nor a
    comment is an error too, since a misspelt extent would shift all that follow.
    """
    if len(data) >= MAX_BYTES:
        raise FormatError(
            f"a descriptor of {MAX_BYTES} bytes or more is not read; is this a descriptor at all?",
            file=file,
            field="descriptor",
        )
    return _Parser(data.partition(b"\0")[0], file).run()


class _Parser:
    def __init__(self, text: bytes, file: str) -> None:
        self._text = text
        self._file = file
        self._codec = encodings.DEFAULT
        self._at = 0
        self._extents: list[ExtentLine] = []
        self._lines: list[int] = []
        self._header: dict[str, str] = {}
        self._settings: list[tuple[str, str]] = []
        self._database: list[tuple[str, str]] = []
        self._cid: CidPlace | None = None

    def run(self) -> Descriptor:
        self._choose_codec()
        text = self._text
        while self._at < len(text):
            end = text.find(b"\n", self._at)
            end = len(text) if end < 0 else end
            self._line(text[self._at : end])
            self._at = end + 1
        self._at = 0
        create_type = self._header.get("createtype")
        if create_type is None:
            raise self._error("createType", "the descriptor has no createType line")
        parent = self._header.get("parentcid", "ffffffff")
        return Descriptor(
            create_type=create_type,
            extents=tuple(self._extents),
            cid=None if self._cid is None else int(self._cid.digits, 16),
            parent_cid=int(parent, 16),
            version=self._header.get("version", "1"),
            encoding=self._header.get("encoding"),
            settings=tuple(self._settings),
            database=tuple(self._database),
            cid_place=self._cid,
            lines=tuple(self._lines),
        )

    def _choose_codec(self) -> None:
        found = _ENCODING.search(self._text)
        if found is None:
            return
        name = found[1].decode("ascii", "replace").strip()
        known = encodings.codec(name)
        if known is None and not self._text.isascii():
            self._at = found.start()
            raise self._error("encoding", f"the character set {shown(name)} is not known here")
        self._codec = known or "ascii"

    def _line(self, raw: bytes) -> None:
        usual = _USUAL.fullmatch(raw)
        if usual is not None and len(self._extents) < MAX_EXTENTS:
            access, sectors, kind, name, offset = usual.groups()
            self._lines.append(self._at)
            self._extents.append(
                ExtentLine(
                    access.decode(),
                    int(sectors),
                    kind.decode(),
                    name.decode(),
                    None if offset is None else int(offset),
                )
            )
            return
        text = raw.strip(b" \t\r\v\f")
        if not text or text.startswith(b"#"):
            return
        try:
            line = text.decode(self._codec, "surrogateescape")
        except UnicodeDecodeError as error:
            raise self._error("encoding", f"the line is not {self._codec} text") from error
        extent = _EXTENT.fullmatch(line)
        if extent is not None:
            self._extent(*extent.groups(""))
            return
        entry = _ENTRY.fullmatch(line)
        if entry is None:
            raise self._error(
                "line", f"{shown(line)} is neither an extent nor an entry nor a comment"
            )
        self._entry(raw, entry[1], entry[2])

    def _extent(self, access: str, sectors: str, kind: str, rest: str) -> None:
        if len(self._extents) == MAX_EXTENTS:
            raise self._error("extents", f"a descriptor may have at most {MAX_EXTENTS} extents")
        name: str | None = None
        offset: int | None = None
        further = rest
        if rest.startswith('"'):
            found = _NAME.match(rest) or _NAME_BEFORE_FURTHER.match(rest)
            if found is None:
                raise self._error("file name", f"the name {shown(rest)} does not end in a quote")
            name = found[1]
            if len(name) > MAX_NAME:
                raise self._error(
                    "file name", f"the name {shown(name)} is longer than {MAX_NAME} characters"
                )
            further = rest[found.end() :].lstrip(" \t")
            number = _OFFSET.match(further)
            if number is not None:
                offset = self._number("offset", number[1])
                further = further[number.end() :]
        self._lines.append(self._at)
        self._extents.append(
            ExtentLine(
                access.upper(),
                self._number("sectors", sectors),
                kind.upper(),
                name,
                offset,
                further,
            )
        )

    def _number(self, name: str, digits: str) -> int:
        if _DIGITS.fullmatch(digits) is None:
            raise self._error(name, f"{shown(digits)} is not a number of sectors")
        return int(digits)

    def _entry(self, raw: bytes, key: str, value: str) -> None:
        if len(self._settings) + len(self._database) + len(self._header) >= MAX_ENTRIES:
            raise self._error("line", f"a descriptor may have at most {MAX_ENTRIES} entries")
        value = _unquoted(value)
        lower = key.lower()
        if lower.startswith("ddb."):
            self._database.append((key, value))
        elif lower == "cid":
            place = _CID.fullmatch(raw)
            if place is not None and self._cid is None:
                self._cid = CidPlace(self._at + place.start(1), place[1])
        elif lower in ("createtype", "parentcid", "version", "encoding"):
            if lower == "parentcid" and re.fullmatch("[0-9a-fA-F]{1,8}", value) is None:
                raise self._error("parentCID", f"{shown(value)} is not a hexadecimal number")
            if self._header.setdefault(lower, value) != value:
                raise self._error(key, "the key stands there twice, with another value")
        else:
            self._settings.append((key, value))

    def _error(self, name: str, message: str) -> FormatError:
        return FormatError(message, file=self._file, offset=self._at, field=name)


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def build(descriptor: Descriptor) -> bytes:
    """The text of `descriptor`, as QEMU lays it out; `parse` gives the same back.

    Raises `FormatError` when it holds what cannot be written so that it is read
    the same way, such as a file name with a line break.
    """
    lines = ["# Disk DescriptorFile", f"version={descriptor.version}"]
    if descriptor.encoding is not None:
        lines.append(f'encoding="{descriptor.encoding}"')
    if descriptor.cid is not None:
        lines.append(f"CID={descriptor.cid:08x}")
    lines.append(f"parentCID={descriptor.parent_cid:08x}")
    lines.append(f'createType="{descriptor.create_type}"')
    lines += (f'{key}="{value}"' for key, value in descriptor.settings)
    lines += ("", "# Extent description")
    lines += map(_extent_text, descriptor.extents)
    lines += ("", "# The Disk Data Base", "#DDB", "")
    lines += (f'{key} = "{value}"' for key, value in descriptor.database)
    codec = encodings.codec(descriptor.encoding or encodings.DEFAULT) or "ascii"
    try:
        data = ("\n".join(lines) + "\n").encode(codec, "surrogateescape")
        same = parse(data, "") == descriptor
    except UnicodeEncodeError:
        same = False
    except FormatError as error:
        raise FormatError(
            f"the descriptor cannot be written: {error.message}", field=error.field
        ) from error
    if not same:
        raise FormatError(
            "a name or value of the descriptor cannot be written as text that reads the same",
            field="descriptor",
        )
    return data


def _extent_text(extent: ExtentLine) -> str:
    words = [extent.access, str(extent.sectors), extent.type]
    if extent.name is not None:
        words.append(f'"{extent.name}"')
    if extent.offset is not None:
        words.append(str(extent.offset))
    if extent.further:
        words.append(extent.further)
    return " ".join(words)
