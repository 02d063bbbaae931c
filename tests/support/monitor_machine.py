"""A daemon in this process and two clients of it, beside a model of its nodes.

Rules are added by the test; here is how they ask, and what holds after every step.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from fdstash import FDStash
from fdstash.monitor.nodes import ChildNode, FileNode, ImageNode
from tests.support.file_pool import DESCRIPTORS, DISKS, EXTENTS, FilePool, PooledFile
from tests.support.kernel import descriptor_count, open_descriptors
from tests.support.monitor import Client, CommandFailed, daemon_in, file_options, image_of
from tests.support.node_model import NodeModel
from tests.support.seen import assert_as_kernel_says

__all__ = ["KINDS", "TOP", "MonitorMachine", "images", "names", "numbers", "options", "places"]

#: What clients call nodes, whether there is such a one or not.
names = st.sampled_from(["u", "v", "w", "x", "y", "z"])
#: One among what is there.
numbers = st.integers(0, 20)
#: Which of two folders (or: none; where the node is; a set of descriptors), and of two names in it.
places = st.tuples(st.sampled_from([0, 1, 0, 1, 0, 1, 2, 3, 4]), st.integers(0, 1))
_BARE, _STAYS, _SET = 2, 3, 4
inline = st.tuples(places, st.none() | st.none() | names | numbers)
#: A file of an image: inline and perhaps with a name; a node that there is; any name.
parts = inline | inline | inline | numbers | numbers | names
extents = st.none() | st.none() | st.lists(parts, min_size=1, max_size=2)
options = st.fixed_dictionaries(
    {},
    optional={
        "read-only": st.booleans(),
        "cache": st.fixed_dictionaries({"direct": st.booleans()}),
    },
)
images = st.tuples(parts, extents, options)
TOP = {"raw": DISKS, "vmdk": DESCRIPTORS}
KINDS = (DISKS, DESCRIPTORS, EXTENTS)


class MonitorMachine(RuleBasedStateMachine):
    """One daemon in this process, and two clients of it."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.lost: list[object] = []
        self.hook, sys.unraisablehook = sys.unraisablehook, self.lost.append
        self.outside = open_descriptors()
        self.stack = contextlib.ExitStack()
        self.pool = FilePool(self.root)
        self.stack.callback(self.pool.close)
        self.daemon, path = self.stack.enter_context(daemon_in(self.root))
        self.clients = [self.stack.enter_context(Client(path)) for _ in range(2)]
        self.clients[1].execute("query-version")  # it is served: its descriptors are there
        self.getfds: list[dict[str, PooledFile]] = [{}, {}]
        self.sets: dict[int, PooledFile] = {}
        self.model = NodeModel(self.pool)
        self.files_made = len(self.pool.files)
        self.before = descriptor_count()
        self.tags = 0
        self.seen: dict[str, dict[str, Any]] = {}

    # -- from what was drawn to what is asked

    def path(self, folder: int, name: str) -> str:
        return str(self.pool.folders[folder] / name)

    def filename(self, place: tuple[int, int], kind: tuple[str, ...], now: str | None) -> str:
        folder, which = place
        if folder == _STAYS and now is not None:
            return now
        if folder == _SET:
            return set_name(which)
        return self.path(folder, kind[which]) if folder < _BARE else kind[which]

    def there(self, number: int, *, usable: bool = False) -> str:
        """The name of a node that is there, if any is; `usable`: rather one that is free."""
        found = sorted(self.model.names())
        if usable:
            found = [
                name
                for name in found
                if name in self.model.files and self.model.owner(name) is None
            ] or found
        return found[number % len(found)] if found else "none"

    def part(self, drawn: Any, kind: tuple[str, ...], now: str | None, own: str | None) -> Any:
        """A reference; `now`: the path of what it is to replace, `own`: its node."""
        if isinstance(drawn, str):
            return drawn
        if isinstance(drawn, int):
            return own if own is not None and drawn % 3 == 0 else self.there(drawn, usable=True)
        place, name = drawn
        if isinstance(name, int):
            name = own if own is not None and name % 2 == 0 else self.there(name)
        more = {} if name is None else {"node-name": name}
        return file_options(self.filename(place, kind, now), **more)

    def image_options(
        self, name: str, driver: str, drawn: Any, *, reopens: bool = False
    ) -> dict[str, Any]:
        file, more, common = drawn
        image = self.model.images.get(name) if reopens else None
        now, own = list[str | None]([None] * 3), list[str | None]([None] * 3)
        if image is not None:
            now = [image.name_of(index) for index in range(len(image.parts))]
            own[: len(image.children)] = image.children
        part = self.part(file, TOP[driver], now[0], own[0])
        found: dict[str, Any] = {"driver": driver, "node-name": name, "file": part, **common}
        if more is not None and driver == "vmdk":
            found["extents"] = [
                self.part(each, EXTENTS, now[index], own[index])
                for index, each in enumerate(more, 1)
            ]
        return found

    def reopen_options(self, name: str, drawn: Any) -> dict[str, Any]:
        """Options of the kind that a node takes."""
        if name in self.model.images:
            driver = self.model.images[name].driver
            return self.image_options(name, driver, drawn, reopens=True)
        file, _, common = drawn
        place, _ = file if isinstance(file, tuple) else ((_STAYS, 0), None)
        owner = self.model.owner(name)
        if owner is not None:
            image = self.model.images[owner]
            index = image.children.index(name)
            kind = EXTENTS if index else TOP[image.driver]
            now: str | None = image.name_of(index)
        elif name in self.model.files:
            now = self.model.files[name].filename
            kind = next((each for each in KINDS if os.path.basename(now) in each), DISKS)
        else:
            kind, now = DISKS, None
        return file_options(self.filename(place, kind, now), **{"node-name": name}, **common)

    # -- commands

    def told(self) -> dict[str, dict[str, Any]]:
        """The nodes; what their files take on the host can change by itself."""
        found = self.clients[0].nodes()
        for each in found.values():
            each["image"].pop("actual-size")
        return found

    @contextlib.contextmanager
    def asked(self, what: str) -> Iterator[list[str]]:
        """The command within may be refused; what is left in the list says so."""
        refused: list[str] = []
        try:
            yield refused
        except CommandFailed as error:
            refused.append(error.desc)
            assert self.told() == self.seen, f"refused ({error.desc}), and something changed"
        self.seen = self.told()
        event(f"{what} {'refused' if refused else 'taken'}")

    def passed(self, client: int) -> dict[str, PooledFile]:
        """What serves the commands of a client."""
        sets = {set_name(number): file for number, file in self.sets.items()}
        return {**self.getfds[client], **sets}

    def kept(self) -> dict[str, dict[str, PooledFile]]:
        """What each image has kept of the descriptors that were passed."""
        found: dict[str, dict[str, PooledFile]] = {}
        for name in self.model.images:
            node = self.daemon.table.get(name)
            assert isinstance(node, ImageNode)
            found[name] = self.named(node.kept)
        return found

    def named(self, stash: FDStash) -> dict[str, PooledFile]:
        """The file of each name of a stash, which must be one file."""
        found = {}
        for name in stash.names():
            fds = stash.dup_all(name)
            files = {self.pool.of((s.st_dev, s.st_ino)) for s in map(os.fstat, fds)}
            for fd in fds:
                os.close(fd)
            assert len(files) == 1, f"{name} is {files}"
            (found[name],) = files
        return found

    # -- what holds after every step

    @invariant()
    def nodes_are_those_of_the_model(self) -> None:
        self.seen = told = self.told()
        for name, image in self.model.images.items():
            assert name in told, f"{name} is gone"
            found = [each["node-name"] for each in told[name]["children"]]
            assert len(found) == len(image.files)
            for index, child in enumerate(image.children):
                if child is None:
                    assert found[index].startswith("#block")
                    assert found[index] not in self.model.names()
                    image.children[index] = found[index]
            assert found == image.children
            assert told[name]["file"] == image.filename
            for index, child in enumerate(found):
                assert told[child]["file"] == image.name_of(index)
        for name, file in self.model.files.items():
            if self.model.owner(name) is None:
                assert told[name]["file"] == file.filename
        assert told.keys() == self.model.names()

    @invariant()
    def nodes_are_owned(self) -> None:
        for node in self.daemon.table:
            assert not node.deleted
            if isinstance(node, ChildNode):
                assert self.daemon.table.find(node.image.name) is node.image
                assert node.image.children[node.index].name == node.name
            elif isinstance(node, FileNode):
                user = None if node.user is None else node.user.name
                assert user == self.model.owner(node.name)

    @invariant()
    def images_are_on_their_files(self) -> None:
        for name, model in self.model.images.items():
            image = image_of(self.daemon, name)
            assert_as_kernel_says(image)
            assert (image.mode, image.cache) == (model.mode, model.cache)
            found = [self.pool.of((file.device, file.inode)) for file in image.files]
            assert found == model.files, name
            read = image.pread(image.size + 1, 0)
            assert read == b"".join(file.content for file in model.data)[: image.size]
        for name, file in self.model.files.items():
            node = self.daemon.table.get(name)
            assert isinstance(node, FileNode)
            assert set(self.named(node.held).values()) == {file.file}, name

    @invariant()
    def files_have_what_was_written_to_them(self) -> None:
        assert self.pool.wrong() == []

    @invariant()
    def what_is_kept_is_of_the_images_own_files(self) -> None:
        for name, kept in self.kept().items():
            files = self.model.images[name].files
            assert set(kept.values()) <= set(files), name

    @invariant()
    def descriptors_are_those_of_nodes(self) -> None:
        wanted = self.before + len(self.pool.files) - self.files_made
        wanted += sum(map(len, self.getfds))
        wanted += len(self.sets)
        for node in self.daemon.table:
            if isinstance(node, ImageNode):
                wanted += 2 * len(node.image.files) + held_by(node.kept)
            elif isinstance(node, FileNode):
                wanted += held_by(node.held)
        deadline = time.monotonic() + 2
        while len(os.listdir("/proc/self/fd")) - 1 != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert descriptor_count() == wanted

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            self.stack.close()
            shutil.rmtree(self.root)
            sys.unraisablehook = self.hook
        deadline = time.monotonic() + 2
        while open_descriptors() != self.outside and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_descriptors() == self.outside

    def delete_node(self, name: str) -> None:
        """It must be taken, or refused, as the model says."""
        with self.asked("blockdev-del") as refused:
            self.clients[1].execute("blockdev-del", node_name=name)
        model = self.model
        free = name in model.images or (name in model.files and model.owner(name) is None)
        assert bool(refused) is not free, refused
        if not refused:
            model.delete(name)

    def end(self) -> None:
        """All nodes can be deleted, and nothing is left of them."""
        roots = self.clients[1].execute("query-block")
        assert {each["inserted"]["node-name"] for each in roots} == set(self.model.images)
        for name in [*self.model.images, *self.model.files]:
            self.delete_node(name)
        assert self.seen == {}
        for client, getfds in zip(self.clients, self.getfds, strict=True):
            for name in getfds:
                client.execute("closefd", fdname=name)
            getfds.clear()
        for number in self.sets:
            self.clients[0].execute("remove-fd", fdset_id=number)
        self.sets.clear()
        self.descriptors_are_those_of_nodes()
        gc.collect()
        assert self.lost == []


def set_name(number: int) -> str:
    """The file name of a set of descriptors."""
    return f"/dev/fdset/{number}"


def held_by(stash: FDStash) -> int:
    """How many descriptors a stash has."""
    found = 0
    for name in stash.names():
        fds = stash.dup_all(name)
        found += len(fds)
        for fd in fds:
            os.close(fd)
    return found
