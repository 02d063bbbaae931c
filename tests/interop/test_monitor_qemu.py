"""Real clients drive the monitor, and a real qemu-storage-daemon answers the same."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient

from fdstash.monitor.vocabulary import SCHEMA
from tests.support.disks import make_flat_for_qemu, make_raw
from tests.support.monitor import Client, daemon_in, file_options
from tests.support.need import need_program, plain_environment
from tests.support.qmp import disconnect

SIZE = 1 << 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_raw(tmp_path, SIZE)
    make_flat_for_qemu(tmp_path)
    return tmp_path


# -- the same to both


@pytest.fixture(scope="module")
def theirs_and_ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """A function that connects to both: qemu-storage-daemon first."""
    folder = tmp_path_factory.mktemp("both")
    make_raw(folder, SIZE)
    theirs = folder / "qsd"
    process = subprocess.Popen(
        [
            need_program("qemu-storage-daemon", "qemu-system-common"),
            "--chardev",
            f"socket,id=qmp,path={theirs},server=on,wait=off",
            "--monitor",
            "chardev=qmp",
        ],
        env=plain_environment(),
        cwd=folder,
    )
    end = time.monotonic() + 20
    while not _listens(theirs):
        assert time.monotonic() < end
        time.sleep(0.02)
    with daemon_in(folder) as (_, ours):
        yield lambda: (folder, theirs, ours)
    process.kill()
    process.wait()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


def both(connect: Callable[[], Any], *messages: str | bytes) -> list[list[Any]]:
    """What each of the two answers to each message; what is of the machine is taken out."""
    folder, theirs, ours = connect()
    found = []
    for path in (theirs, ours):
        with Client(path) as client:
            told = []
            for message in messages:
                text = message.encode() if isinstance(message, str) else message
                told.append(client.say(text.replace(b"FOLDER", str(folder).encode()) + b"\n"))
            found.append(told)
    return found


BAD = [
    "[]", "1 ", '"x"', "null ", "}", "]", "[1}", '{"a"}', '{"a":}', '{"a":1,}', '{"a" 1}', "{1:2}",
    '{"a":foo}', "[foo]", "[1 2]", '{"a":1 "b":2}', '{"a":1,"a":2}', "\x01", '"a\n', '["\\x"]',
    '{"execute":1}', '{"execute":"query-version","x":1}', '{"arguments":{}}', "[,]", "[1,]",
    '{"execute":"query-version","arguments":1}', '{"execute":"none"}', "{'execute':'none'}",
    '{"execute":"query-version","arguments":{"x":1}}', '{"execute":"qmp_capabilities"}',
    '{"execute":"none","id":{"a":[1,null,"x"]}}', "?", "{?}\n", "[01]\n", "[1.]\n", "[-]\n", "nul",
    '{"execute":"\\u0071uery-block","id":"\\ud83d\\ude00"}', "[" * 1025, "{,}", ":", ",",
    '["\\ud800"]', '["\\udc00\\ud800"]', "[1e]\n", "[1e+]\n", "[-01]\n", "[.5]\n", "[+1]\n",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_command_is_answered_as_qemu_answers_it(
    theirs_and_ours: Callable[[], Any], text: str
) -> None:
    theirs, ours = both(theirs_and_ours, text)
    assert ours == theirs


def command(name: str, **arguments: Any) -> str:
    given = {key.replace("_", "-"): value for key, value in arguments.items()}
    return json.dumps({"execute": name, "arguments": given, "id": name})


RAW = {"driver": "file", "filename": "FOLDER/disk.raw"}
ADD = command("blockdev-add", driver="file", node_name="f", filename="FOLDER/disk.raw")
ON = command("blockdev-add", driver="raw", node_name="r", file="f")
DEL = [command("blockdev-del", node_name=name) for name in ("r", "f")]
NBD = {"type": "unix", "data": {"path": "FOLDER/nbd"}}


def reopen(**options: Any) -> str:
    return command(
        "blockdev-reopen", options=[{k.replace("_", "-"): v for k, v in options.items()}]
    )


SEQUENCES = {
    "add": [ADD, ADD, ON, *DEL, *DEL],
    "names": [
        command("blockdev-add", driver="file", filename="FOLDER/disk.raw", **more)
        for more in ({}, {"node_name": "1a"}, {"node_name": ""})
    ],
    "wrong": [
        command("blockdev-add", driver="none", node_name="f", filename="x"),
        command("blockdev-add", driver="file", node_name="f"),
        command("blockdev-add", driver="file", node_name="f", filename=1),
        command("blockdev-add", driver="file", node_name="f", filename="x", spam=1),
        command("blockdev-add", driver="file", node_name="f", filename="x", cache={"direct": 1}),
        command("blockdev-add", driver="file", node_name="f", filename="x", cache={"spam": 1}),
        command("blockdev-add", driver="file", node_name="f", filename="FOLDER/none"),
        command("blockdev-add", driver="raw", node_name="r", file="none"),
        command("blockdev-add", driver="raw", node_name="r", file=1),
        command("blockdev-add", driver="raw", node_name="r", file=None),
        command("blockdev-add", driver="raw", node_name="r"),
        command("blockdev-add", driver="raw", node_name="r", file={"driver": "file"}),
        command("blockdev-add"),
        command("blockdev-reopen", options={}),
        command("blockdev-reopen", options=[1]),
        command("blockdev-reopen", options=[{"driver": "file"}]),
        command("blockdev-del"),
        command("blockdev-del", node_name="none"),
        command("block_resize", size=1),
        command("block_resize", node_name="none", size="1"),
    ],
    "reopen": [
        ADD,
        ON,
        reopen(driver="raw", node_name="r", file="f"),
        reopen(driver="raw", node_name="r", file="f", read_only=True),
        reopen(driver="raw", node_name="r", file="f", cache={"direct": True}),
        reopen(driver="vmdk", node_name="r", file="f"),
        reopen(driver="raw", node_name="none", file="f"),
        reopen(driver="raw", file="f"),
        reopen(driver="file", node_name="f", filename="FOLDER/disk.raw", cache={"direct": True}),
        *DEL,
    ],
    "resize": [
        ADD,
        ON,
        command("block_resize", node_name="r", size=-1),
        command("block_resize", node_name="none", size=1),
        command("block_resize", device="none", size=1),
        command("block_resize", node_name="r", size=2 * SIZE),
        command("block_resize", node_name="r", size=SIZE),
        *DEL,
    ],
    "export": [
        command("query-block-exports"),
        command("nbd-server-stop"),
        command("block-export-add", type="nbd", id="e", node_name="r"),
        command("block-export-add", type="none", id="e", node_name="r"),
        command("block-export-add", id="e", node_name="r"),
        ADD,
        ON,
        command("nbd-server-start", addr={"type": "unix"}),
        command("nbd-server-start", addr={"type": "unix", "data": {}}),
        command("nbd-server-start", addr=NBD),
        command("nbd-server-start", addr=NBD),
        command("block-export-add", type="nbd", id="1", node_name="r"),
        command("block-export-add", type="nbd", id="e", node_name="none"),
        command("block-export-add", type="nbd", id="e", node_name="r", writable=True),
        command("block-export-add", type="nbd", id="e", node_name="r"),
        command("block-export-add", type="nbd", id="e2", node_name="r"),
        command("query-block-exports"),
        command("block-export-del", id="none"),
        command("block-export-del", id="e", mode="none"),
        command("block-export-del", id="e", mode="hard"),
        command("nbd-server-stop"),
        *DEL,
    ],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_same_commands_get_the_same_answers(
    theirs_and_ours: Callable[[], Any], name: str
) -> None:
    theirs, ours = both(theirs_and_ours, *SEQUENCES[name])
    for message, answer, expected in zip(SEQUENCES[name], ours, theirs, strict=True):
        assert _comparable(answer) == _comparable(expected), message


def _comparable(answer: dict[str, Any]) -> Any:
    """Our errors may say more than theirs, after what they say."""
    if "error" not in answer:
        return answer
    desc = answer["error"]["desc"]
    for ours, theirs in MORE.items():
        desc = re.sub(ours, theirs, desc)
    return {**answer, "error": {**answer["error"], "desc": desc}}


#: Where ours says more, or the same in other words.
MORE = {
    r"(Could not open '.*none'): .*": r"\1: No such file or directory",
    r"(is in use): .*": r"\1",
    r"(Invalid node-name: ''|Invalid node-name: '1a')": r"\1",
}


def test_a_node_is_told_in_the_same_shape(theirs_and_ours: Callable[[], Any]) -> None:
    theirs, ours = both(theirs_and_ours, ADD, ON, command("query-named-block-nodes"), *DEL)
    found = [{node["node-name"]: node for node in told[2]["return"]} for told in (theirs, ours)]
    assert set(found[0]) == set(found[1]) == {"f", "r"}
    for name in ("f", "r"):
        expected, node = found[0][name], found[1][name]
        assert set(expected) <= set(node)
        assert node.pop("children") == (
            [] if name == "f" else [{"child": "file", "node-name": "f"}]
        )
        expected.pop("image").pop("actual-size")
        image = node.pop("image")
        assert image["virtual-size"] == SIZE
        assert image["format"] == ("file" if name == "f" else "raw")
        assert node == expected


def test_the_schema_is_a_part_of_qemus(theirs_and_ours: Callable[[], Any]) -> None:
    """Arguments that ours takes theirs takes, too, but for what only we have."""
    theirs, ours = (
        told[0]["return"] for told in both(theirs_and_ours, command("query-qmp-schema"))
    )

    def arguments(entries: list[dict[str, Any]], name: str) -> dict[str, bool] | None:
        found = {entry["name"]: entry for entry in entries}
        if name not in found:
            return None
        members = found[found[name]["arg-type"]]["members"]
        return {member["name"]: "default" in member for member in members}

    only_ours = {"getfd", "closefd", "add-fd", "remove-fd", "query-fdsets", "block_set_hostcache"}
    for name in SCHEMA.commands:
        expected, mine = arguments(theirs, name), arguments(ours, name)
        assert (expected is None) == (name in only_ours), name
        if expected is not None and mine is not None:
            for member, optional in mine.items():
                assert expected.get(member, None) == optional, (name, member)


# -- real clients


def test_the_library_drives_every_command(folder: Path) -> None:
    """`qemu.qmp`, its `send_fd_scm` and its events."""
    used: set[str] = set()

    async def drive(path: Path) -> None:
        client = QMPClient("interop")
        await client.connect(str(path))

        async def run(name: str, **arguments: Any) -> Any:
            used.add(name)
            given = {key.replace("_", "-"): value for key, value in arguments.items()}
            return await client.execute(name, given)

        def send(path: Path, flags: int = os.O_RDWR) -> None:
            fd = os.open(path, flags)
            client.send_fd_scm(fd)
            os.close(fd)

        used.add("qmp_capabilities")
        assert (await run("query-version"))["package"].startswith("fdstash")
        assert {"name": "getfd"} in await run("query-commands")
        assert await run("query-qmp-schema")
        send(folder / "disk.raw")
        await run("getfd", fdname="passed")
        await run("blockdev-add", driver="raw", node_name="disk", file=file_options("passed"))
        await run("closefd", fdname="passed")
        send(folder / "disk.vmdk")
        added = await run("add-fd", opaque="rdwr")
        assert (await run("query-fdsets"))[0]["fds"] == [{"fd": added["fd"], "opaque": "rdwr"}]
        await run("remove-fd", fdset_id=added["fdset-id"], fd=added["fd"])
        node = {"driver": "raw", "node-name": "disk", "file": file_options("passed")}
        await run("blockdev-reopen", options=[node | {"cache": {"direct": True}}])
        await run("block_set_hostcache", node_name="disk", hostcache=True)
        await run("block_resize", node_name="disk", size=2 * SIZE)
        assert [n["node-name"] for n in await run("query-named-block-nodes")][-1] == "disk"
        assert len(await run("query-block")) == 1
        address = {"type": "unix", "data": {"path": str(folder / "nbd")}}
        await run("nbd-server-start", addr=address)
        await run("block-export-add", type="nbd", id="e", node_name="disk", writable=True)
        assert (await run("query-block-exports"))[0]["id"] == "e"
        with client.listener("BLOCK_EXPORT_DELETED") as listener:
            assert isinstance(listener, EventListener)
            await run("block-export-del", id="e")
            assert (await listener.get())["data"] == {"id": "e"}
        await run("nbd-server-stop")
        await run("blockdev-del", node_name="disk")
        with pytest.raises(ExecuteError, match="Failed to find node"):
            await run("blockdev-del", node_name="disk")
        await run("quit")
        await disconnect(client)

    with daemon_in(folder) as (daemon, path):
        asyncio.run(drive(path))
        assert daemon.wait(10)
    assert used == set(SCHEMA.commands)


def test_qmp_shell_drives_it(folder: Path) -> None:
    """Its lines, with its own syntax for arguments."""
    shell = shutil.which("qmp-shell", path=Path(sys.executable).parent) or need_program(
        "qmp-shell", "the extra `test`"
    )
    file = json.dumps(
        file_options(folder / "disk.raw", **{"node-name": "file"}), separators=(",", ":")
    )
    lines = [
        f"blockdev-add driver=raw node-name=disk file={file}",
        "block_set_hostcache node-name=disk hostcache=false",
        "query-block",
        f"blockdev-add driver=raw node-name=copy file={file}",
        "blockdev-del node-name=disk",
        "blockdev-del node-name=disk",
    ]
    with daemon_in(folder) as (_, path):
        done = subprocess.run(
            [shell, str(path)],
            check=False,
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            timeout=60,
            env=plain_environment() | {"HOME": str(folder)},
        )
    found = re.findall(r"^\(QEMU\) (\{.*\})$", done.stdout, re.MULTILINE)
    answers = [json.loads(each) for each in found]
    assert "Connected to QEMU" in done.stdout, done.stderr
    assert [set(answer) for answer in answers] == [
        {"return"}, {"return"}, {"return"}, {"error"}, {"return"}, {"error"},
    ]  # fmt: skip
    assert answers[2]["return"][0]["inserted"]["cache"]["direct"] is True
    assert answers[5]["error"]["desc"] == "Failed to find node with node-name='disk'"
