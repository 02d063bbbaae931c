"""Files that are made unreadable between the open and the reopen."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
from pathlib import Path

import pytest

import fdstash
from fdstash import ReopenError
from tests.support.disks import FlatDisk, make_flat
from tests.support.kernel import same_description
from tests.support.need import need_root
from tests.support.sandbox import run_as
from tests.support.seen import check_served

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def test_a_file_made_unreadable_is_no_hindrance_to_root(disk: FlatDisk) -> None:
    need_root("opening a file of mode 0000")
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        for file in disk.files:
            os.chmod(file, 0)
        for options in ({"mode": "r"}, {"mode": "r+", "path": str(disk.path)}):
            image.reopen(**options)  # type: ignore[arg-type]
            check_served(image, model)


def attack_permissions(sock: socket.socket, folder: str) -> list[object]:
    """As the owner of the files, who takes his own permissions away and gives them back."""
    disk = make_flat(Path(folder))
    found: list[object] = []
    with fdstash.open(disk.path, "r+") as image:
        model = bytearray(image.pread(image.size, 0))
        image.reopen(cache="none")  # that the files bear O_DIRECT is known from here on
        image.reopen(cache="writeback")
        for victim in (0, 3):
            for mode_bits, options in itertools.product(
                (0o000, 0o200, 0o400), ({"mode": "r"}, {"mode": "r", "path": str(disk.path)})
            ):
                os.chmod(disk.files[victim], mode_bits)
                copies = [os.dup(file.fd) for file in image.files]
                try:
                    image.reopen(**options)  # type: ignore[arg-type]
                    outcome: object = image.mode
                except ReopenError as error:
                    same = all(map(same_description, copies, (f.fd for f in image.files)))
                    assert same
                    assert isinstance(error, PermissionError)
                    assert (error.file, error.phase) == (str(disk.files[victim]), "acquire")
                    outcome = error.errno
                for copy in copies:
                    os.close(copy)
                found.append([victim, mode_bits, "path" in options, outcome])
                check_served(image, model)
                # Flags of its own description need no permission.
                image.reopen(cache="none")
                image.reopen(cache="writeback")
                os.chmod(disk.files[victim], 0o600)
                image.reopen(mode="r+")
                check_served(image, model)
    return found


@pytest.mark.root
def test_a_file_made_unreadable_refuses_what_needs_it_and_keeps_serving(tmp_path: Path) -> None:
    """/proc/self/fd/N is the same inode, and its permission counts."""
    home = tmp_path / "home"
    home.mkdir()
    for folder in (home, *home.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & stat.S_IXOTH:
            os.chmod(folder, folder.stat().st_mode | stat.S_IXOTH)
    os.chown(home, 65534, 65534)
    found = run_as(attack_permissions, str(home))
    assert len(found) == 12
    for _, mode_bits, _, outcome in found:
        # Reading is all that mode r wants.
        assert outcome == ("r" if mode_bits & 0o400 else errno.EACCES)
