from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.errors import OptionError, UnsupportedFormatError
from fdstash.formats import registry
from fdstash.formats.create import create
from fdstash.formats.raw import Raw
from fdstash.formats.vmdk.disk import Vmdk
from tests.support.need import need_program


def recognise(data: bytes, name: str = "disk") -> registry.Recognised:
    head, tail = data[: registry.HEAD_BYTES], data[-registry.TAIL_BYTES :]
    return registry.recognise(head, tail, len(data), name)


def at(offset: int, mark: bytes, size: int = 4096) -> bytes:
    return (bytes(offset) + mark).ljust(size, b"\0")


MARKS = {
    "qcow (version 1)": (at(0, b"QFI\xfb\0\0\0\1"), "qcow"),
    "qcow2": (at(0, b"QFI\xfb\0\0\0\2"), "qcow2"),
    "QED": (at(0, b"QED\0"), "qed"),
    "VirtualBox VDI": (at(0x40, b"\x7f\x10\xda\xbe"), "vdi"),
    "VHD (dynamic)": (at(0, b"conectix"), "vpc"),
    "VHD (fixed)": (at(4096 - 512, b"conectix"), "vpc"),
    "VHDX": (at(0, b"vhdxfile"), "vhdx"),
    "Parallels": (at(0, b"WithoutFreeSpace"), "parallels"),
    "Bochs growing or undoable": (at(0, b"Bochs Virtual HD Image\0"), "bochs"),
    "cloop": (at(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0"), "cloop"),
    "Apple disk image": (at(4096 - 512, b"koly"), "dmg"),
    "LUKS1": (at(0, b"LUKS\xba\xbe\0\1"), "luks"),
    "LUKS2": (at(0, b"LUKS\xba\xbe\0\2"), "luks"),
    "VMDK (sparse extent)": (at(0, b"KDMV\1\0\0\0"), "vmdk"),
    "VMDK (streamOptimized)": (at(0, b"KDMV\3".ljust(77, b"\0") + b"\1\0"), "vmdk"),
    "VMDK (vmfsSparse)": (at(0, b"COWD\1\0\0\0"), "vmdk"),
    "VMDK (seSparse)": (
        at(0, b"\xbe\xba\xfe\xca\0\0\0\0" + b"\1\0\0\0\2\0\0\0"),
        "vmdk",
    ),
    "VMDK (descriptor)": (b"# Disk DescriptorFile\nversion=1\n", "vmdk"),
}


@pytest.mark.parametrize("title", MARKS)
def test_a_mark_is_recognised(title: str) -> None:
    data, name = MARKS[title]
    found = recognise(data)
    assert (found.name, found.title) == (name, title)
    assert registry.probe(data[:2048], data[-512:], len(data), "disk") == name


def test_a_vhd_footer_of_the_oldest_kind_is_recognised() -> None:
    assert recognise(bytes(1024) + b"conectix".ljust(511, b"\0")).name == "vpc"


@pytest.mark.parametrize(
    "text",
    [
        b"# Disk DescriptorFile\r\nversion=1\r\n",
        b"#disk\n# DISK DESCRIPTORFILE\n",
        b"# made by hand\n\n  version = 1\nCID=1\n",
        b"\n\nversion=3\n",
    ],
)
def test_a_descriptor_is_recognised_however_it_starts(text: bytes) -> None:
    assert recognise(text).name == "vmdk"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"# a comment\n", b"hello", bytes(4096), b"#\n" * 5000, b"version=\n", b"QFI\xfb"],
)
def test_what_has_no_mark_is_raw(data: bytes) -> None:
    found = recognise(data)
    assert (found.name, found.confidence) == ("raw", 1)


@given(st.binary(max_size=3000))
def test_every_file_is_something(data: bytes) -> None:
    assert recognise(data).name in registry.names()


@pytest.mark.parametrize(
    ("qemu_name", "options", "name", "title"),
    [
        ("qcow", "", "qcow", "qcow (version 1)"),
        ("qcow2", "compat=0.10", "qcow2", "qcow2"),
        ("qcow2", "compat=1.1", "qcow2", "qcow2"),
        ("qed", "", "qed", "QED"),
        ("vdi", "", "vdi", "VirtualBox VDI"),
        ("vpc", "subformat=dynamic", "vpc", "VHD (dynamic)"),
        ("vpc", "subformat=fixed", "vpc", "VHD (fixed)"),
        ("vhdx", "", "vhdx", "VHDX"),
        ("parallels", "", "parallels", "Parallels"),
        ("vmdk", "subformat=monolithicSparse", "vmdk", "VMDK (monolithicSparse)"),
        ("vmdk", "subformat=streamOptimized", "vmdk", "VMDK (streamOptimized)"),
        ("vmdk", "subformat=monolithicFlat", "vmdk", "VMDK (descriptor)"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "vmdk", "VMDK (descriptor)"),
        ("raw", "", "raw", "raw"),
    ],
)
def test_what_qemu_makes_is_recognised(
    qemu_name: str, options: str, name: str, title: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    run = [need_program("qemu-img", "qemu-utils"), "create", "-q", "-f", qemu_name]
    run += ["-o", options] if options else []
    subprocess.run([*run, str(path), "2M"], check=True)
    found = recognise(path.read_bytes(), str(path))
    assert (found.name, found.title) == (name, title)


def test_what_is_recognised_only_is_refused_by_name() -> None:
    for name in set(registry.names()) - set(registry.supported()):
        with pytest.raises(UnsupportedFormatError, match=f"recognised as {name}, .*raw and VMDK"):
            registry.driver(name)
        with pytest.raises(UnsupportedFormatError, match=f"recognised as {name}, .*created"):
            registry.create_driver(name)


def test_a_refusal_names_the_file() -> None:
    with pytest.raises(UnsupportedFormatError, match=r"^/x/disk\.qcow2: field format: "):
        registry.driver("qcow2", "/x/disk.qcow2")


def test_an_unknown_name_gets_the_list_of_the_known() -> None:
    with pytest.raises(OptionError, match="'qcow3'.*known are.*qcow2.*raw") as caught:
        registry.driver("qcow3")
    assert caught.value.option == "format"


def test_the_supported_formats_have_a_driver_and_a_creator() -> None:
    assert registry.supported() == ("raw", "vmdk")
    assert registry.driver("raw") is Raw
    assert registry.driver("vmdk") is Vmdk
    for name in registry.supported():
        assert name in registry.names()
        assert registry.driver(name).name == name
        assert registry.create_driver(name).options


def test_create_makes_each_supported_format(tmp_path: Path) -> None:
    for name in registry.supported():
        path = tmp_path / name
        create(path, name, 1 << 20, preallocation=None)
        assert recognise(path.read_bytes(), str(path)).name == name


def test_create_lists_the_options_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no option 'subformat'; it takes preallocation"):
        create(tmp_path / "a", "raw", 512, subformat="vmfs")
    with pytest.raises(OptionError, match="vmdk create has no option 'colour'.*extent_size"):
        create(tmp_path / "a", "vmdk", 512, colour="red")
    assert not list(tmp_path.iterdir())


def test_options_of_create_say_what_they_take() -> None:
    for name in registry.supported():
        for option in registry.create_driver(name).options.values():
            assert option.help
            assert (option.kind == "choice") == bool(option.choices)


def test_shell_scripts_are_no_cloop_images() -> None:
    script = Path(shutil.which("ldd") or "/bin/sh").read_bytes()
    assert recognise(script).name == "raw"
