"""What one reopen asks of several nodes, and of parts of an image, is done whole or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fdstash.monitor import Daemon
from tests.support.chains import Chain, make_chain
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.monitor import (
    Client,
    add_file,
    add_flat,
    daemon_in,
    file_options,
    image_of,
    node,
    refused_reopen,
    reopen,
)

SIZE = 1 << 16
EXTENTS = [ExtentSpec("RW", 16, name="a.bin"), ExtentSpec("RW", 16, name="b.bin")]


@pytest.fixture
def files(folder: Path) -> list[Path]:
    return [make_raw(folder, SIZE, name=name, seed=seed) for seed, name in enumerate("abc")]


def in_both_orders(client: Client, *options: dict[str, Any]) -> str:
    """Why these options are refused, whichever comes first."""
    one, other = refused_reopen(client, *options), refused_reopen(client, *reversed(options))
    assert one == other
    return one


# -- several nodes


def test_no_image_is_put_on_a_file_node_that_is_reopened_with_it(
    client: Client, files: list[Path]
) -> None:
    a, b, c = files
    client.execute("blockdev-add", **node("disk", file_options(a)))
    add_file(client, "x", b)
    error = in_both_orders(client, file_options(c, **{"node-name": "x"}), node("disk", "x"))
    assert error == "Node 'x' cannot be reopened while an image is put on it"


@pytest.mark.parametrize("more", [{"read-only": True}, {}])
def test_two_images_are_not_put_on_one_file_node(
    client: Client, files: list[Path], more: dict[str, Any]
) -> None:
    locking = {} if more else {"locking": "off"}
    for name, path in zip(("one", "two"), files[:2], strict=True):
        options = node(name, file_options(path, **locking)) | more
        client.run("blockdev-add", options)
    add_file(client, "x", files[2], **locking)
    error = in_both_orders(client, *(node(name, "x") | more for name in ("one", "two")))
    assert error == "Node 'x' is used twice: give one reopen after the other"


def test_options_of_a_file_and_of_its_image_that_differ_are_refused(
    client: Client, files: list[Path]
) -> None:
    a, b, _ = files
    client.execute("blockdev-add", **node("disk", file_options(a, **{"node-name": "f"})))
    for path, other in ((a, b), (b, a)):
        error = in_both_orders(
            client, node("disk", file_options(path)), file_options(other, **{"node-name": "f"})
        )
        assert error == (
            "Nodes 'disk' and 'f' belong to one image, and their options for its filename differ"
        )


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_may_be_given_to_what_the_options_of_the_file_make_new(
    client: Client, folder: Path, order: int
) -> None:
    flat = make_flat(folder, EXTENTS)
    add_flat(client, flat)
    copy = shutil.copy(flat.path, folder / "copy.vmdk")
    extents = [file_options(flat.files[1], **{"node-name": "new"})]
    both = [
        node("vm", "vm-file", "vmdk", extents=extents),
        file_options(copy, **{"node-name": "vm-file"}),
    ]
    reopen(client, *both[::order])
    assert client.nodes()["new"]["file"] == str(flat.files[1])


def test_an_image_that_others_are_based_on_stays_on_its_file(client: Client, folder: Path) -> None:
    chain = make_chain(folder)
    moved = add_chain(client, chain, folder, backing="below")
    options = node("below", file_options(moved), "vmdk", read_only=True)
    assert "'top' is based on" in refused_reopen(client, options)


def test_an_image_is_not_based_on_one_that_moves_with_it(client: Client, folder: Path) -> None:
    chain = make_chain(folder)
    moved = add_chain(client, chain, folder, backing=None)
    options = node("below", file_options(moved), "vmdk", read_only=True)
    top = node("top", file_options(chain.top), "vmdk", backing="below")
    assert "'below' is used twice" in in_both_orders(client, options, top)


@pytest.mark.parametrize("order", [1, -1])
def test_what_an_image_is_based_on_is_said_of_where_it_moves(
    client: Client, folder: Path, order: int
) -> None:
    chain = make_chain(folder)
    moved = add_chain(client, chain, folder, backing="below").with_name(chain.top.name)
    (file,) = (c["node-name"] for c in client.nodes()["top"]["children"] if c["child"] == "file")
    both = [
        node("top", file, "vmdk", backing="below"),
        file_options(moved, **{"node-name": file}),
    ]
    reopen(client, *both[::order])
    nodes = client.nodes()
    assert nodes["top"]["file"] == str(moved)
    assert nodes["top"]["children"][-1] == {"child": "backing", "node-name": "below"}
    assert nodes["top"]["backing_file"] == nodes["below"]["file"]


def add_chain(client: Client, chain: Chain, folder: Path, **more: Any) -> Path:
    """Add `below` and `top`; where the file of `below` has a copy, beside copies of the others."""
    below = node("below", file_options(chain.paths[1]), "vmdk", read_only=True)
    client.execute("blockdev-add", **below)
    client.execute("blockdev-add", **node("top", file_options(chain.top), "vmdk", **more))
    (folder / "copy").mkdir()
    for path in chain.files():
        shutil.copyfile(path, folder / "copy" / path.name)
    return folder / "copy" / chain.paths[1].name


# -- parts of one image


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("extents", [["n2", "n1"], ["n2"]])
def test_a_file_of_an_image_is_not_given_in_anothers_place(
    client: Client, folder: Path, extents: list[str], *, moves: bool
) -> None:
    flat = make_flat(folder, EXTENTS)
    for number, path in enumerate(flat.files):
        add_file(client, f"n{number}", path)
    client.execute("blockdev-add", **node("vm", "n0", "vmdk", extents=["n1", "n2"]))
    add_file(client, "copy", shutil.copy(flat.path, folder / "copy.vmdk"))
    error = refused_reopen(client, node("vm", "copy" if moves else "n0", "vmdk", extents=extents))
    assert error == "Node 'n2' is 'extents.1' of 'vm', not 'extents.0'"


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("by_node", [False, True])
def test_other_extents_are_refused_where_the_image_stays_on_its_file(
    client: Client, daemon: Daemon, folder: Path, *, direct: bool, by_node: bool
) -> None:
    flat, other = make_flat(folder, EXTENTS, seed=1), make_flat(folder / "o", EXTENTS, seed=2)
    add_flat(client, flat, cache={"direct": direct})
    add_file(client, "extent", other.files[1])
    extents = ["extent" if by_node else file_options(other.files[1])]
    options = node("vm", file_options(flat.path), "vmdk", extents=extents, cache={"direct": direct})
    error = refused_reopen(client, options)
    assert ("cannot take the place" if by_node else "another file is given in its place") in error
    assert image_of(daemon, "vm").pread(flat.size, 0) == flat.guest_bytes()


def test_a_file_node_of_the_same_filename_does_not_silently_stay_aside(
    client: Client, files: list[Path]
) -> None:
    client.execute("blockdev-add", **node("disk", file_options(files[0])))
    add_file(client, "x", files[0])
    assert "cannot take the place" in refused_reopen(client, node("disk", "x"))


def test_options_of_the_format_stay(client: Client, files: list[Path]) -> None:
    part = {"offset": 512, "size": 4096}
    client.execute("blockdev-add", **node("disk", file_options(files[0]), **part))
    for changed in ({"offset": 1024}, {"size": 8192}):
        options = node("disk", file_options(files[0]), **(part | changed))
        error = refused_reopen(client, options)
        assert error == f"Cannot change the option '{next(iter(changed))}'"
    reopen(client, node("disk", file_options(files[0]), **part))
    reopen(client, node("disk", file_options(files[0])))


def test_an_image_of_more_files_than_nodes_are_allowed_is_reopened(folder: Path) -> None:
    flat = make_flat(folder, EXTENTS)
    with daemon_in(folder, max_nodes=2) as (_, path), Client(path) as client:
        add_flat(client, flat)
        reopen(client, node("vm", file_options(flat.path), "vmdk", cache={"direct": True}))
