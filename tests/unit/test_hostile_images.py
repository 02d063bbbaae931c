"""Hostile images through `fdstash.open`: a clear refusal within a second and 64 MiB.

The whole way, with the files that the image names on a real file system. The parser alone is
looked at in test_vmdk_hostile.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fdstash.formats.vmdk.descriptor import MAX_BYTES, MAX_EXTENTS
from tests.support.bounded import opened

# Under a sanitizer neither limit means anything.
pytestmark = pytest.mark.slow

HEAD = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'


def extents(*lines: str, head: str = HEAD) -> bytes:
    return (head + "".join(f"{line}\n" for line in lines)).encode()


def _beside(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(1 << 20))


def _fifo(folder: Path) -> bytes:
    os.mkfifo(folder / "fifo")
    return extents('RW 8 FLAT "fifo" 0')


def _link_out(folder: Path) -> bytes:
    (folder / "link").symlink_to("/etc/passwd")
    return extents('RW 1 FLAT "link" 0')


def _folder(folder: Path) -> bytes:
    (folder / "sub").mkdir()
    return extents('RW 1 FLAT "sub" 0')


def _detour(folder: Path) -> bytes:
    (folder / "sub").mkdir()
    return extents('RW 1 FLAT "sub/../../secret" 0')


def _loop_of_links(folder: Path) -> bytes:
    (folder / "x").symlink_to("y")
    (folder / "y").symlink_to("x")
    return extents('RW 1 FLAT "x" 0')


def _other_descriptor(folder: Path) -> bytes:
    """Two descriptors that name each other as extents."""
    (folder / "other.vmdk").write_bytes(extents('RW 1 SPARSE "disk.vmdk"'))
    return extents('RW 1 SPARSE "other.vmdk"')


def _header(**fields: int) -> bytes:
    wanted = {"capacity": 128, "grain": 128, "gtes": 512, "offset": 1, "size": 20} | fields
    return struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(b"KDMV", 1, 3, wanted["capacity"], wanted["grain"], wanted["offset"], wanted["size"]),
        *(wanted["gtes"], 0, 0, 0, 0, b"\n \r\n", 0),
    ).ljust(1024, b"\0")


def _many(folder: Path, line: str) -> bytes:
    _beside(folder)
    room = MAX_BYTES - len(HEAD) - 1
    lines = []
    for number in range(MAX_EXTENTS):
        text = line.format(number)
        room -= len(text) + 1
        if room < 0:
            break
        lines.append(text)
    return extents(*lines)


def _a_million(folder: Path) -> bytes:
    _beside(folder)
    return extents(*['RW 1 FLAT "a.bin" 0'] * 1_000_000)


HUGE = (1 << 63) - 1
#: What is in the folder beside the descriptor, and the family of the error that it must be.
CASES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "traversal": (lambda _: extents('RW 1 FLAT "../secret" 0'), "RefusedError"),
    "detour": (_detour, "RefusedError"),
    "detour over what is not there": (
        lambda _: extents('RW 1 FLAT "none/../../secret" 0'),
        "FileNotFoundError",
    ),
    "deep traversal": (
        lambda _: extents('RW 1 FLAT "' + "../" * 5000 + 'etc/passwd" 0'),
        "FormatError",
    ),
    "absolute path": (lambda _: extents('RW 1 FLAT "/etc/passwd" 0'), "RefusedError"),
    "device": (lambda _: extents('RW 1 FLAT "/dev/zero" 0'), "RefusedError"),
    "link that leads out": (_link_out, "RefusedError"),
    # A FormatError that has the errno of what the kernel says of the file.
    "fifo": (_fifo, "NotAFileError"),
    "folder": (_folder, "NotAFileError"),
    "loop of links": (_loop_of_links, "NotAFileError"),
    "itself": (lambda _: extents('RW 1 FLAT "disk.vmdk" 0'), "FormatError"),
    "itself by a detour": (lambda _: extents('RW 1 FLAT "./disk.vmdk" 0'), "FormatError"),
    "itself as a sparse extent": (
        lambda _: extents('RW 1 SPARSE "disk.vmdk"'),
        "FormatError",
    ),
    "each other as sparse extents": (_other_descriptor, "FormatError"),
    "a million extents": (_a_million, "FormatError"),
    "extents of one region": (lambda f: _many(f, 'RW 1 FLAT "a.bin" 0'), "FormatError"),
    "extents of files that are not there": (
        lambda f: _many(f, 'RW 1 FLAT "none-{}" 0'),
        "FileNotFoundError",
    ),
    "sectors that overflow": (
        lambda f: (_beside(f), extents(f'RW {HUGE} FLAT "a.bin" 0'))[1],
        "FormatError",
    ),
    "an offset that overflows": (
        lambda f: (_beside(f), extents(f'RW 1 FLAT "a.bin" {HUGE}'))[1],
        "FormatError",
    ),
    "sectors that overflow together": (
        lambda f: (_beside(f), extents(*["RW 9007199254740991 ZERO"] * 3000))[1],
        "FormatError",
    ),
    "sectors below nothing": (
        lambda f: (_beside(f), extents('RW -1 FLAT "a.bin" 0'))[1],
        "FormatError",
    ),
    "a file that is too short": (
        lambda f: (_beside(f), extents('RW 2049 FLAT "a.bin" 0'))[1],
        "FormatError",
    ),
    "a descriptor that ends in its head": (lambda _: HEAD[:40].encode(), "FormatError"),
    "a descriptor that ends in a line": (
        lambda _: (HEAD + 'RW 8 FLAT "a.b').encode(),
        "FormatError",
    ),
    "a name with a NUL": (lambda _: extents('RW 1 FLAT "a\0b" 0'), "FormatError"),
    "a name of 60 000 letters": (lambda _: extents(f'RW 1 FLAT "{"x" * 60000}" 0'), "FormatError"),
    "a header of grains of 8 EiB": (lambda _: _header(grain=1 << 62), "FormatError"),
    "a header of a descriptor of 8 EiB": (lambda _: _header(size=1 << 62), "FormatError"),
    "a parent that is itself": (
        lambda f: (
            _beside(f),
            extents(
                'RW 8 FLAT "a.bin" 0',
                head=HEAD.replace("ffffffff", "1") + 'parentFileNameHint="disk.vmdk"\n',
            ),
        )[1],
        "FormatError",
    ),
}


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_clearly_within_a_second_and_64_mib(
    tmp_path: Path, case: str, mode: str
) -> None:
    make, family = CASES[case]
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"S" * 4096)
    (folder / "disk.vmdk").write_bytes(make(folder))
    found = opened(folder / "disk.vmdk", mode)
    assert "opened" not in found, found
    assert family in found["family"], found
    assert found["text"]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_descriptor_of_a_gibibyte_is_refused_as_one(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(extents('RW 1 FLAT "a.bin" 0'))
    os.truncate(path, 1 << 30)
    found = opened(path, mode)
    assert "FormatError" in found["family"], found


@pytest.mark.parametrize("access", ["RW", "RDONLY"])
def test_as_many_extents_of_one_file_as_fit_are_served_in_that_too(
    tmp_path: Path, access: str
) -> None:
    """No hostile image: what is near the limit opens as quickly as what is beyond it is refused."""
    path = tmp_path / "disk.vmdk"
    (tmp_path / "a.bin").write_bytes(bytes(32 << 20))
    room = MAX_BYTES - len(HEAD) - 30
    lines: list[str] = []
    while room > 0 and len(lines) < MAX_EXTENTS - 1:
        lines.append(f'{access} 1 FLAT "a.bin" {len(lines)}')
        room -= len(lines[-1]) + 1
    path.write_bytes(extents(*lines[:-1]))
    assert opened(path, "r")["opened"] == 512 * (len(lines) - 1)
