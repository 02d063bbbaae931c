"""What an image is based on: `backing`, and null for nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fdstash.monitor import Daemon
from tests.support.chains import CONTENT, Chain, make_chain, over
from tests.support.disks import make_raw
from tests.support.monitor import Client, add_raw, file_options, image_of, node, reopen
from tests.support.seen import image_descriptors

#: What the top of the chain has by itself.
ALONE = over(b"", CONTENT[1])


@pytest.fixture
def chain(folder: Path) -> Chain:
    return make_chain(folder)


def add(client: Client, path: Path, name: str = "top", **more: Any) -> None:
    client.execute("blockdev-add", driver="vmdk", node_name=name, file=file_options(path), **more)


def top(chain: Chain, **more: Any) -> dict[str, Any]:
    """Options of the top for a reopen."""
    return node("top", file_options(chain.top), "vmdk", **more)


def check_told(client: Client, *roles: str, name: str = "top") -> None:
    """The image's children are these, and nodes; no other node is there but images."""
    nodes = client.nodes()
    told = nodes[name]
    assert [each["child"] for each in told["children"]] == ["file", "extents.0", *roles]
    assert all(each["node-name"] in nodes for each in told["children"])
    assert ("backing_file" in told) is ("backing" in roles)
    assert (told["backing_file_depth"] > 0) is ("backing" in roles)


def test_null_opens_an_image_without_those_below(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    for path in chain.files()[2:]:
        path.rename(path.with_suffix(".gone"))
    add(client, chain.top, backing=None)
    check_told(client)
    assert len(client.nodes()) == 3
    assert image_of(daemon, "top").pread(1 << 20, 0) == ALONE
    reopen(client, top(chain, cache={"direct": True}))
    reopen(client, top(chain, backing=None))
    check_told(client)
    assert image_of(daemon, "top").pread(1 << 20, 0) == ALONE


def test_null_takes_an_open_image_off_those_below(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    add(client, chain.top)
    check_told(client, "backing")
    names = [each["node-name"] for each in client.nodes()["top"]["children"]]
    reopen(client, top(chain, backing=None))
    check_told(client)
    assert set(client.nodes()) == {"top", *names[:2]}
    assert image_descriptors(*chain.files()[2:]) == []
    assert image_of(daemon, "top").pread(1 << 20, 0) == ALONE
    reopen(client, top(chain, read_only=True))  # which says nothing of it
    check_told(client)
    given = {"driver": "vmdk", "file": file_options(chain.paths[1])}
    reopen(client, top(chain, backing=given))
    check_told(client, "backing")
    assert image_of(daemon, "top").pread(1 << 20, 0) == chain.guest


def test_a_node_that_was_named_is_free_and_can_be_named_again(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    add(client, chain.paths[1], "below", read_only=True)
    add(client, chain.top, backing="below")
    for _ in range(2):
        assert "'top' is based on it" in client.refusal("blockdev-del", node_name="below").desc
        reopen(client, top(chain, backing=None))
        check_told(client)
        reopen(client, top(chain, backing="below"))
        check_told(client, "backing")
        assert image_of(daemon, "top").pread(1 << 20, 0) == chain.guest
    reopen(client, top(chain, backing=None))
    client.execute("blockdev-del", node_name="below")
    check_told(client)


def test_a_node_that_was_named_stays_below_another_filename(
    client: Client, daemon: Daemon, chain: Chain, folder: Path
) -> None:
    add(client, chain.paths[1], "below", read_only=True)
    add(client, chain.top, backing="below")
    copy = folder / "copy"
    copy.mkdir()
    for path in chain.files()[:2]:
        shutil.copyfile(path, copy / path.name)
    for backing, roles, guest in (("below", ["backing"], chain.guest), (None, [], ALONE)):
        for place in (copy, folder):
            options = file_options(place / chain.top.name)
            reopen(client, node("top", options, "vmdk", backing=backing))
            check_told(client, *roles)
            assert image_of(daemon, "top").files[0].name == options["filename"]
            assert image_of(daemon, "top").pread(1 << 20, 0) == guest


def test_a_reopen_to_null_that_fails_changes_nothing(
    client: Client, daemon: Daemon, chain: Chain, folder: Path
) -> None:
    add_raw(client, make_raw(folder, 1 << 16))
    add(client, chain.top)
    before = client.nodes()
    error = client.refusal(
        "blockdev-reopen",
        options=[top(chain, backing=None), node("disk", file_options(folder / "none"))],
    )
    assert "none" in error.desc
    assert client.nodes() == before
    assert image_of(daemon, "top").pread(1 << 20, 0) == chain.guest


def test_null_for_an_image_based_on_none_changes_no_node(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    add(client, chain.base, "base")
    nodes = [daemon.table.get(name) for name in client.nodes()]
    for _ in range(2):
        reopen(client, node("base", file_options(chain.base), "vmdk", backing=None))
        check_told(client, name="base")
        assert [daemon.table.get(name) for name in client.nodes()] == nodes


def test_below_another_image_null_is_taken_where_it_says_what_is_so(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    """An image below is opened with what its header names; a client must not believe otherwise."""
    middle = {"driver": "vmdk", "file": file_options(chain.paths[1]), "backing": None}
    base = {"driver": "vmdk", "file": file_options(chain.base), "backing": None}
    adding = {"driver": "vmdk", "file": file_options(chain.top)}
    error = client.refusal("blockdev-add", node_name="top", backing=middle, **adding)
    assert f"'{chain.paths[1]}' is based on 'vm.vmdk'" in error.desc
    add(client, chain.paths[1], "middle", read_only=True, backing=None)
    error = client.refusal("blockdev-add", node_name="top", backing="middle", **adding)
    assert "Node 'middle' is based on 'vm.vmdk'" in error.desc
    client.execute("blockdev-del", node_name="middle")
    add(client, chain.paths[1], "middle", backing=base)
    check_told(client, "backing", name="middle")
    client.execute("blockdev-del", node_name="middle")

    add(client, chain.top)
    error = client.refusal("blockdev-reopen", options=[top(chain, backing=middle)])
    assert "is based on 'vm.vmdk'" in error.desc
    assert image_of(daemon, "top").pread(1 << 20, 0) == chain.guest


def test_an_image_that_another_one_is_based_on_is_not_taken_off_those_below(
    client: Client, daemon: Daemon, chain: Chain
) -> None:
    add(client, chain.paths[1], "middle", read_only=True)
    add(client, chain.top, backing="middle")
    options = node("middle", file_options(chain.paths[1]), "vmdk", read_only=True, backing=None)
    assert "'top' is based on it" in client.refusal("blockdev-reopen", options=[options]).desc
    check_told(client, "backing", name="middle")
    client.execute("blockdev-del", node_name="top")
    reopen(client, options)
    check_told(client, name="middle")
