"""The character sets that a descriptor's `encoding` line can name.

A list of our own, since Python's lookup would also give codecs that are not
character sets. A file name in a descriptor becomes text by it, and the host gets
that text in the host's own encoding; bytes that the encoding does not have are
kept as they are (`surrogateescape`), as Python does with names of files.
"""

from __future__ import annotations

__all__ = ["DEFAULT", "codec"]

#: Where a descriptor names none: what QEMU and current VMware products write.
DEFAULT = "UTF-8"

_CODECS = {
    "utf8": "utf-8",
    "ascii": "ascii",
    "usascii": "ascii",
    "windows874": "cp874",
    "windows932": "cp932",
    "cp932": "cp932",
    "shiftjis": "cp932",
    "sjis": "cp932",
    "windows31j": "cp932",
    "windows936": "gbk",
    "cp936": "gbk",
    "gbk": "gbk",
    "gb2312": "gbk",
    "gb18030": "gb18030",
    "windows949": "cp949",
    "cp949": "cp949",
    "euckr": "cp949",
    "windows950": "cp950",
    "cp950": "cp950",
    "big5": "cp950",
    "eucjp": "euc-jp",
    **{f"windows125{n}": f"cp125{n}" for n in range(9)},
    **{f"cp125{n}": f"cp125{n}" for n in range(9)},
    **{f"iso8859{n}": f"iso8859-{n}" for n in range(1, 17) if n != 12},
}


def codec(name: str) -> str | None:
    """Python's codec for the character set `name`, or None if it is not on the list."""
    plain = "".join(c for c in name.lower() if c.isascii() and c.isalnum())
    return _CODECS.get(plain)
