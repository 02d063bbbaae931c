from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fdstash.errors import FormatError, ImageIOError, LockError, OptionError
from fdstash.formats.vmdk import descriptor
from fdstash.formats.vmdk.create import create
from fdstash.formats.vmdk.disk import Vmdk
from tests.support.children import FolderOpener, guest_bytes
from tests.support.need import need_program

MIB = 1 << 20


def qemu_img(*words: object) -> str:
    program = need_program("qemu-img", "qemu-utils")
    done = subprocess.run(
        [program, *map(str, words)], check=False, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def qemu_info(path: Path) -> dict[str, Any]:
    info = json.loads(qemu_img("info", "--output", "json", path))
    assert isinstance(info, dict)
    return info


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def normal(text: str) -> str:
    return re.sub("^CID=[0-9a-f]+$", "CID=random", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("size", "options", "qemu_options"),
    [
        (10 * MIB, {}, "subformat=monolithicFlat"),
        (1000, {}, "subformat=monolithicFlat"),
        (
            5 << 30,
            {"subformat": "twoGbMaxExtentFlat"},
            "subformat=twoGbMaxExtentFlat",
        ),
        (4 << 30, {"subformat": "twoGbMaxExtentFlat"}, "subformat=twoGbMaxExtentFlat"),
        (
            1 << 30,
            {"adapter_type": "lsilogic", "hwversion": "7", "toolsversion": "12"},
            "subformat=monolithicFlat,adapter_type=lsilogic,hwversion=7,toolsversion=12",
        ),
        (
            9000 << 30,
            {"adapter_type": "buslogic"},
            "subformat=monolithicFlat,adapter_type=buslogic",
        ),
    ],
)
@pytest.mark.parametrize("name", ["disk.vmdk", "disk.img", "disk", "a.b.vmdk", ".vmdk"])
def test_an_image_is_what_qemu_would_make(
    name: str, size: int, options: dict[str, str], qemu_options: str, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    create(ours / name, size, **options)  # type: ignore[arg-type]
    qemu_img("create", "-q", "-f", "vmdk", "-o", qemu_options, theirs / name, size)
    assert normal((ours / name).read_text()) == normal((theirs / name).read_text())
    for folder in (ours, theirs):
        (folder / name).unlink()
    sizes = [
        {path.name: path.stat().st_size for path in folder.iterdir()} for folder in (ours, theirs)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentFlat", "vmfs"])
@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
def test_qemu_accepts_what_is_made(subformat: str, preallocation: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, 3 * MIB + 1, subformat=subformat, preallocation=preallocation)
    info = qemu_info(path)
    assert (info["format"], info["virtual-size"]) == ("vmdk", 3 * MIB + 512)
    assert info["format-specific"]["data"]["create-type"] == subformat
    (tmp_path / "zeros").write_bytes(bytes(3 * MIB + 512))
    qemu_img("compare", "-f", "vmdk", "-F", "raw", path, tmp_path / "zeros")
    qemu_img("check", path)
    suffix = "f001" if subformat == "twoGbMaxExtentFlat" else "flat"
    allocated = (tmp_path / f"disk-{suffix}.vmdk").stat().st_blocks * 512
    assert (allocated >= 3 * MIB) == (preallocation != "off")


def test_many_small_extents_in_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(
        path, 500 * MIB - 512, subformat="twoGbMaxExtentFlat", extent_size=MIB, folder="parts/of it"
    )
    assert qemu_info(path)["virtual-size"] == 500 * MIB - 512
    extents = sorted((tmp_path / "parts" / "of it").iterdir())
    assert len(extents) == 500
    assert extents[0].name == "disk-f001.vmdk"
    assert [extent.stat().st_size for extent in extents[-2:]] == [MIB, MIB - 512]
    with FolderOpener(path, writable=True) as opener:
        image = opener.open_image(Vmdk)
        assert len(image.segments()) == 500
        for number, child in enumerate(image.files[1:]):
            child.pwrite(number.to_bytes(2, "big"), child.size - 2)
    qemu_img("convert", "-O", "raw", path, tmp_path / "raw")
    with (tmp_path / "raw").open("rb") as raw:
        for number in range(499):
            raw.seek((number + 1) * MIB - 2)
            assert raw.read(2) == number.to_bytes(2, "big")


@pytest.mark.parametrize(
    "name", ["with space.vmdk", "Müller 圖像.vmdk", "per%cent.vmdk", "a'b.vmdk"]
)
def test_odd_names_work(name: str, tmp_path: Path) -> None:
    create(tmp_path / name, MIB)
    assert qemu_info(tmp_path / name)["virtual-size"] == MIB
    with FolderOpener(tmp_path / name) as opener:
        assert guest_bytes(opener.open_image(Vmdk)) == bytes(MIB)


def test_names_that_qemu_cannot_open_work_here(tmp_path: Path) -> None:
    for name in ('we"ird.vmdk', os.fsdecode(b"\xff.vmdk")):
        create(tmp_path / name, MIB)
        with FolderOpener(tmp_path / name) as opener:
            assert opener.open_image(Vmdk).size == MIB


@pytest.mark.parametrize("name", ["line\nbreak.vmdk", 'a" 5 b.vmdk', "return\r"])
def test_a_name_that_no_descriptor_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    if name == "return\r":
        create(tmp_path / name, MIB)
        with FolderOpener(tmp_path / name) as opener:
            assert opener.open_image(Vmdk).size == MIB
        return
    with pytest.raises(FormatError, match="cannot be named after"):
        create(tmp_path / name, MIB)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 0),
        ("size", -1),
        ("size", 2**63),
        ("size", "10M"),
        ("size", True),
        ("subformat", "vmfsSparse"),
        ("adapter_type", "nvme"),
        ("hwversion", 'a"b'),
        ("hwversion", 4),
        ("toolsversion", "a\nb"),
        ("preallocation", "metadata"),
        ("folder", ""),
        ("folder", "."),
        ("folder", "/abs"),
        ("folder", "../up"),
        ("folder", "a/../.."),
        ("extent_size", 0),
        ("extent_size", 1000),
        ("extent_size", -512),
        ("extent_size", "1M"),
        ("extent_size", 512),
    ],
)
def test_an_option_that_does_not_fit_is_refused(option: str, value: object, tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": 64 * MIB, "subformat": "twoGbMaxExtentFlat"}
    options[option] = value
    with pytest.raises(OptionError) as caught:
        create(tmp_path / "disk.vmdk", **options)
    assert caught.value.option == option
    assert tree(tmp_path) == {}


def test_an_extent_size_needs_a_split_image(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="extent_size is for twoGbMaxExtentFlat"):
        create(tmp_path / "disk.vmdk", MIB, extent_size=512)


def test_a_descriptor_beyond_what_is_read_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be written"):
        create(
            tmp_path / "disk.vmdk",
            60000 * 512,
            subformat="twoGbMaxExtentFlat",
            extent_size=512,
        )
    assert tree(tmp_path) == {}


def test_a_new_image_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, 2 * MIB)
    (tmp_path / "disk-flat.vmdk").write_bytes(b"old" * MIB)
    old = path.read_text()
    create(path, MIB)
    assert set(tree(tmp_path)) == {"disk.vmdk", "disk-flat.vmdk"}
    assert path.read_text() != old
    with FolderOpener(path) as opener:
        assert guest_bytes(opener.open_image(Vmdk)) == bytes(MIB)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("failing", range(4))
def test_a_failure_half_way_loses_nothing(
    failing: int, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.vmdk"
    split = {"subformat": "twoGbMaxExtentFlat", "extent_size": MIB}
    create(path, 2 * MIB, **split)  # type: ignore[arg-type]
    (tmp_path / "disk-f001.vmdk").write_bytes(b"x" * MIB)
    before = tree(tmp_path)
    renames = 0
    rename = os.rename

    def fails(source: str, target: str) -> None:
        nonlocal renames
        if source.endswith(".new"):
            renames += 1
            if renames == failing + 1:
                raise OSError(errno.EIO, "made to fail")
        rename(source, target)

    def no_link(*_arguments: object, **_keywords: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "rename", fails)
    if not links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(ImageIOError) as caught:
        create(path, 3 * MIB, **split)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EIO
    assert tree(tmp_path) == before
    create(path, 4 * MIB, **split)  # type: ignore[arg-type]
    assert len(tree(tmp_path)) == 5


def test_an_interrupt_half_way_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, MIB)
    before = tree(tmp_path)

    def interrupted(fd: int, size: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            create(path, 2 * MIB)
    assert tree(tmp_path) == before


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "disk.vmdk"
    path.parent.mkdir()
    with pytest.raises(ImageIOError) as caught:
        create(path, 1 << 62, folder="new/folder", preallocation="falloc")
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert caught.value.filename == str(tmp_path / "deep" / "new/folder/disk-flat.vmdk")
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageIOError) as caught:
        create(tmp_path / "disk.vmdk", MIB, folder="file/sub")
    assert isinstance(caught.value, NotADirectoryError)
    assert set(tree(tmp_path)) == {"file"}


def test_an_image_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, MIB)
    before = tree(tmp_path)
    with subprocess.Popen(
        [need_program("qemu-io", "qemu-utils"), "-r", "-f", "vmdk", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        while b"1 MiB" not in qemu.stdout.readline():
            pass
        with pytest.raises(LockError, match="in use as an image"):
            create(path, MIB)
        qemu.stdin.close()
        qemu.stdout.read()
    assert tree(tmp_path) == before
    create(path, MIB)


def test_a_path_without_folder_is_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create("disk.vmdk", MIB, folder="parts")
    assert set(tree(tmp_path)) == {"disk.vmdk", "parts/disk-flat.vmdk"}


def test_the_cid_is_random_and_never_a_reserved_one(tmp_path: Path) -> None:
    cids = set()
    for _ in range(20):
        create(tmp_path / "disk.vmdk", 512)
        cids.add(descriptor.parse((tmp_path / "disk.vmdk").read_bytes(), "x").cid)
    assert len(cids) == 20
    assert not cids & {0, 0xFFFFFFFE, 0xFFFFFFFF, None}
