"""Which files the name of an extent may lead to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

import fdstash
from fdstash import Beneath, FDStash, RefusedError, anywhere
from tests.support.disks import ExtentSpec, descriptor_text, noise, write_file
from tests.support.images import read_all
from tests.support.seen import locked_bytes

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def one_extent(folder: Path, text: str, name: str = "disk.vmdk") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(descriptor_text([ExtentSpec("RW", 8, name=text)]))
    return path


@pytest.mark.parametrize(
    "text",
    ["data.bin", "sub/data.bin", "./sub/./data.bin", "sub/../data.bin", "sub//data.bin"],
)
def test_by_default_files_beneath_the_descriptors_folder_are_opened(
    tmp_path: Path, text: str
) -> None:
    path = one_extent(tmp_path / "d", text)
    content = noise(4096, len(text))
    (tmp_path / "d/sub").mkdir()
    write_file(tmp_path / "d" / text, content)
    with fdstash.open(path) as image:
        assert read_all(image) == content


def test_an_absolute_name_beneath_the_descriptors_folder_is_opened(tmp_path: Path) -> None:
    data = write_file(tmp_path / "d/sub/data.bin", noise(4096))
    with fdstash.open(one_extent(tmp_path / "d", str(data))) as image:
        assert read_all(image) == noise(4096)
        assert image.files[1].name == str(data)


@pytest.mark.parametrize("text", ["../data.bin", "sub/../../data.bin", "../d/data.bin", "ABSOLUTE"])
@pytest.mark.parametrize("exists", [True, False])
def test_by_default_a_name_that_leads_out_is_refused_with_a_reason(
    tmp_path: Path, text: str, exists: bool
) -> None:
    (tmp_path / "d/sub").mkdir(parents=True)
    if exists:
        write_file(tmp_path / "data.bin", bytes(4096))
        write_file(tmp_path / "d/data.bin", bytes(4096))
    text = str(tmp_path / "data.bin") if text == "ABSOLUTE" else text
    path = one_extent(tmp_path / "d", text)
    with pytest.raises(RefusedError, match="resolver=") as caught:
        fdstash.open(path)
    assert caught.value.errno == errno.EACCES
    assert caught.value.filename == text
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("target", ["../outside.bin", "ABSOLUTE", "/proc/self/fd/0"])
def test_by_default_a_symbolic_link_that_leads_out_is_refused(tmp_path: Path, target: str) -> None:
    outside = write_file(tmp_path / "outside.bin", bytes(4096))
    path = one_extent(tmp_path / "d", "data.bin")
    (tmp_path / "d/data.bin").symlink_to(str(outside) if target == "ABSOLUTE" else target)
    with pytest.raises(RefusedError):
        fdstash.open(path)
    path = one_extent(tmp_path / "e", "sub/outside.bin")
    (tmp_path / "e/sub").symlink_to("..")
    with pytest.raises(RefusedError):
        fdstash.open(path)


def test_by_default_a_symbolic_link_that_stays_beneath_is_followed(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "link/data.bin")
    write_file(tmp_path / "d/a/b/data.bin", noise(4096))
    (tmp_path / "d/link").symlink_to("a/b")
    with fdstash.open(path) as image:
        assert read_all(image) == noise(4096)


def test_the_path_of_an_extent_is_the_one_that_was_opened(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "link/../data.bin")
    (tmp_path / "d/a/b").mkdir(parents=True)
    (tmp_path / "d/link").symlink_to("a/b")
    write_file(tmp_path / "d/a/data.bin", noise(4096, 1))  # where the kernel goes
    write_file(tmp_path / "d/data.bin", noise(4096, 2))  # where the text alone would go
    with fdstash.open(path) as image:
        assert read_all(image) == noise(4096, 1)
        opened = image.files[1]
        assert opened.path is not None
        assert os.path.samefile(opened.path, f"/proc/self/fd/{opened.fd}")
        image.reopen(path=path)
        assert read_all(image) == noise(4096, 1)


def test_beneath_names_the_folders_that_are_allowed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    data = write_file(two / "sub/data.bin", noise(4096))
    one.mkdir()
    for text in ("../two/sub/data.bin", str(data)):
        path = one_extent(tmp_path / "d", text)
        for folders in ((two,), (two / "sub",), (tmp_path,), (one, two), (str(two),)):
            with fdstash.open(path, resolver=Beneath(*folders)) as image:
                assert read_all(image) == noise(4096)
        for folders in ((one,), (tmp_path / "d",), ()):
            with pytest.raises(RefusedError):
                fdstash.open(path, resolver=Beneath(*folders))


def test_beneath_follows_no_link_out_of_its_folders(tmp_path: Path) -> None:
    write_file(tmp_path / "outside.bin", bytes(4096))
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed/data.bin").symlink_to("../outside.bin")
    path = one_extent(tmp_path / "d", "../allowed/data.bin")
    with pytest.raises(RefusedError):
        fdstash.open(path, resolver=Beneath(tmp_path / "allowed"))
    with fdstash.open(path, resolver=Beneath(tmp_path)):
        pass


def test_anywhere_allows_what_the_default_refuses(tmp_path: Path) -> None:
    data = write_file(tmp_path / "elsewhere/data.bin", noise(4096))
    for text in ("../elsewhere/data.bin", str(data)):
        path = one_extent(tmp_path / "d", text)
        with fdstash.open(path, resolver=anywhere) as image:
            assert read_all(image) == noise(4096)


def test_a_resolver_gets_text_and_referrer_and_its_path_is_opened(tmp_path: Path) -> None:
    data = write_file(tmp_path / "real.bin", noise(4096))
    path = one_extent(tmp_path / "d", "some/name.bin")
    asked = []

    def resolver(text: str, referrer: str) -> Path:
        asked.append((text, referrer))
        return data

    with fdstash.open(path, resolver=resolver) as image:
        assert read_all(image) == noise(4096)
        assert image.files[1].name == str(tmp_path / "d/some/name.bin")
        assert image.files[1].path == str(data)
        image.reopen(path=path)
        image.reopen(mode="r+")
    assert asked == [("some/name.bin", str(path))]


def test_a_resolver_that_returns_none_refuses(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "data.bin")
    write_file(tmp_path / "d/data.bin", bytes(4096))
    with pytest.raises(RefusedError):
        fdstash.open(path, resolver=lambda _text, _referrer: None)


def test_what_a_resolver_raises_comes_through_and_nothing_stays_open(tmp_path: Path) -> None:
    path = one_extent(tmp_path / "d", "data.bin")

    def resolver(_text: str, _referrer: str) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fdstash.open(path, "r+", resolver=resolver)
    assert locked_bytes(path) == []


def test_a_resolver_is_not_asked_for_what_the_stash_holds(tmp_path: Path, stash: FDStash) -> None:
    path = one_extent(tmp_path / "d", "/no/such/data.bin")
    stash.give("/no/such/data.bin", os.open(write_file(tmp_path / "f", noise(4096)), os.O_RDONLY))

    def resolver(text: str, _referrer: str) -> str:
        raise AssertionError(text)

    with fdstash.open(path, stash=stash, resolver=resolver) as image:
        assert read_all(image) == noise(4096)
