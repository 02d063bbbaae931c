"""`Image.backing`: each image of a chain as a face for reading."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import fdstash
from fdstash import ClosedError, Image
from tests.support.chains import GRAIN, SIZE, Chain

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def levels(image: Image) -> list[fdstash.Backing]:
    found, at = [], image.backing
    while at is not None:
        found.append(at)
        at = at.backing
    return found


def test_each_image_of_the_chain_is_read_by_itself(chain: Chain) -> None:
    with fdstash.open(chain.top, "r+") as image:
        image.pwrite(b"above", 0)
        below = levels(image)
        assert [each.name for each in below] == [str(chain.paths[1]), str(chain.base)]
        assert [each.hint for each in below] == ["vm-000001.vmdk", "vm.vmdk"]
        for each, guest in zip(below, (chain.guests[1], chain.guests[0]), strict=True):
            assert (each.size, each.format) == (SIZE, "vmdk")
            assert each.pread(SIZE, 0) == guest
            assert each.pread(100, SIZE - 7) == guest[-7:]
            buffers = [bytearray(700), bytearray(GRAIN)]
            assert each.preadv(buffers, 9 * GRAIN - 5) == 700 + GRAIN
            assert b"".join(buffers) == guest[9 * GRAIN - 5 :][: 700 + GRAIN]
            assert "Backing" in repr(each)


def test_its_files_are_its_own_and_as_the_kernel_says(chain: Chain) -> None:
    with fdstash.open(chain.top, "r+", cache="none") as image:
        for number, each in enumerate(levels(image), start=1):
            names = [Path(file.name) for file in each.files]
            assert names == chain.files()[2 * number : 2 * number + 2]
            for file in each.files:
                status = os.fstat(file.fd)
                assert (file.mode, file.direct, file.inode) == ("r", True, status.st_ino)


def test_its_extents_count_from_it(chain: Chain) -> None:
    with fdstash.open(chain.top) as image:
        first, base = levels(image)
        found = list(first.extents())
        assert {extent.depth for extent in found} == {0, 1}
        own = [extent for extent in found if extent.depth == 0]
        assert [(each.offset, each.length) for each in own] == [
            (GRAIN, 2 * GRAIN),
            (9 * GRAIN, GRAIN),
        ]
        assert [each.file for each in own] == [str(chain.files()[3])] * 2
        assert {extent.file for extent in base.extents()} == {str(chain.files()[-1])}
        part = list(first.extents(GRAIN, 2 * GRAIN + 512))
        assert sum(extent.length for extent in part) == GRAIN


def test_what_its_header_says(chain: Chain) -> None:
    with fdstash.open(chain.top) as image:
        first, base = levels(image)
        assert first.format_info["cid"] == image.format_info["parent-cid"] == 0xB1
        assert first.format_info["parent"] == "vm.vmdk"
        assert base.format_info["create-type"] == "vmfs"


def test_it_ends_with_the_image(chain: Chain) -> None:
    image = fdstash.open(chain.top)
    below = levels(image)
    image.close()
    for each in below:
        for call in (lambda each=each: each.pread(1, 0), lambda each=each: list(each.extents())):
            with pytest.raises(ClosedError):
                call()
        with pytest.raises(ClosedError):
            _ = each.files
    with pytest.raises(ClosedError):
        _ = image.backing


def test_it_serves_through_changes_of_mode_and_cache(chain: Chain) -> None:
    with fdstash.open(chain.top, "r+") as image:
        first, base = levels(image)
        stop = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                while not stop.is_set():
                    assert first.pread(3 * GRAIN, 700) == chain.guests[1][700 : 700 + 3 * GRAIN]
                    assert base.pread(10, 5) == chain.guests[0][5:15]
            except BaseException as error:  # noqa: BLE001 - told to the test's thread
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(40):
            image.reopen(cache=("none", "writeback")[number % 2], mode=("r", "r+")[number // 2 % 2])
        stop.set()
        reader.join()
        assert not failures


def test_there_is_none_where_there_is_no_parent(chain: Chain) -> None:
    with fdstash.open(chain.base) as image:
        assert image.backing is None
