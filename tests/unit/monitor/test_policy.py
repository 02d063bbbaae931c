"""What clients may open by path: what is allowed, as the kernel walks it, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fdstash
from fdstash.monitor.nodes import ImageNode
from fdstash.names import Confined
from tests.support.disks import ExtentSpec, make_flat, make_raw
from tests.support.monitor import Client, daemon_in, file_options

SIZE = 1 << 16


def refusal(client: Client, path: Path | str, driver: str = "raw") -> str:
    file = file_options(path)
    return client.refusal("blockdev-add", driver=driver, node_name="n", file=file).desc


def add(client: Client, path: Path | str, driver: str = "raw") -> None:
    client.execute("blockdev-add", driver=driver, node_name="n", file=file_options(path))
    client.execute("blockdev-del", node_name="n")


def test_by_default_no_path_is_opened(tmp_path: Path) -> None:
    raw = make_raw(tmp_path, SIZE)
    with daemon_in(tmp_path, allow_folders=()) as (_, path), Client(path) as client:
        text = refusal(client, raw)
        assert "the path is not allowed: no folder is allowed" in text
        assert "pass its descriptor, or start the daemon with --allow-folder" in text
        error = client.refusal("blockdev-add", driver="file", node_name="f", filename=str(raw))
        assert "not allowed" in error.desc


def test_what_lies_beneath_an_allowed_folder_is_opened(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two" / "deep"
    for folder in (one, two):
        folder.mkdir(parents=True)
    folders = (str(one), str(tmp_path / "two"))
    with daemon_in(tmp_path, allow_folders=folders) as (_, path), Client(path) as client:
        add(client, make_raw(one, SIZE))
        add(client, make_raw(two, SIZE))
        add(client, os.path.relpath(one / "disk.raw"))
        assert "not beneath" in refusal(client, make_raw(tmp_path, SIZE))


@pytest.mark.parametrize(
    "way",
    ["{inside}/../secret.img", "{inside}/up/secret.img", "{inside}/link", "{inside}/absolute"],
)
def test_neither_dots_nor_links_lead_out_of_it(tmp_path: Path, way: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    secret = make_raw(tmp_path, SIZE, name="secret.img")
    (inside / "up").symlink_to("..")
    (inside / "link").symlink_to("../secret.img")
    (inside / "absolute").symlink_to(secret)
    with daemon_in(tmp_path, allow_folders=(str(inside),)) as (_, path), Client(path) as client:
        assert "not beneath" in refusal(client, way.format(inside=inside))
        add(client, make_raw(inside, SIZE))


def test_a_header_cannot_lead_out_of_it_either(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    make_raw(tmp_path, SIZE, name="secret.img")
    flat = make_flat(inside, [ExtentSpec("RW", 8, name="a.bin")])
    with daemon_in(tmp_path, allow_folders=(str(inside),)) as (_, path), Client(path) as client:
        add(client, flat.path, "vmdk")
        for name in ("../secret.img", str(tmp_path / "secret.img")):
            flat.path.write_text(flat.path.read_text().replace("a.bin", name))
            assert "names a file that it may not" in refusal(client, flat.path, "vmdk")
            flat.path.write_text(flat.path.read_text().replace(name, "a.bin"))


def test_a_reopen_goes_no_further_than_an_add(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    raw, other = make_raw(inside, SIZE), make_raw(tmp_path, SIZE, name="other")
    with daemon_in(tmp_path, allow_folders=(str(inside),)) as (_, path), Client(path) as client:
        file = file_options(raw)
        client.execute("blockdev-add", driver="raw", node_name="n", file=file)
        change = {"driver": "raw", "node-name": "n", "file": file_options(other)}
        assert "not allowed" in client.refusal("blockdev-reopen", options=[change]).desc
        assert client.nodes()["n"]["file"] == str(raw)
        client.getfd(str(other), other)
        client.execute("blockdev-reopen", options=[change])
        assert client.nodes()["n"]["file"] == str(other)


def test_the_image_of_the_command_line_may_be_reopened_and_opened_again(tmp_path: Path) -> None:
    flat = make_flat(tmp_path)
    with daemon_in(tmp_path, allow_folders=()) as (daemon, path), Client(path) as client:
        image = fdstash.open(flat.path, "r+")
        daemon.serve(ImageNode("disk", "vmdk", image, str(flat.path)))
        change = {"driver": "vmdk", "node-name": "disk", "file": file_options(flat.path)}
        client.execute("blockdev-reopen", options=[change | {"cache": {"direct": True}}])
        client.execute("blockdev-del", node_name="disk")
        add(client, flat.path, "vmdk")
        assert "not allowed" in refusal(client, flat.files[1])


def test_confined_is_for_the_path_of_the_image_too(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    raw, other = make_raw(inside, SIZE), make_raw(tmp_path, SIZE, name="other")
    confined = Confined(inside, hint="ask somebody")
    with fdstash.open(raw, resolver=confined) as image:
        assert image.files[0].path == str(raw)
        with pytest.raises(fdstash.ReopenError, match="ask somebody"):
            image.reopen(path=other, resolver=confined)
    for resolver in (confined, Confined(hint="ask somebody")):
        with pytest.raises(fdstash.RefusedError, match="ask somebody"):
            fdstash.open(other, resolver=resolver)


def test_limits_are_kept(tmp_path: Path) -> None:
    raw = make_raw(tmp_path, SIZE)
    with daemon_in(tmp_path, max_nodes=2) as (_, path), Client(path) as client:
        client.execute("blockdev-add", driver="file", node_name="a", filename=str(raw))
        client.execute("blockdev-add", driver="file", node_name="b", filename=str(raw))
        error = client.refusal("blockdev-add", driver="file", node_name="c", filename=str(raw))
        assert error.desc == "There are 2 nodes, and there may be no more"
        client.execute("blockdev-del", node_name="a")
        client.execute("blockdev-add", driver="file", node_name="c", filename=str(raw))
