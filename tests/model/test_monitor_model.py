"""A monitor's nodes against a model of them, and of the files that they are on.

Whatever clients ask for, in whatever order: each image stays under its name, and on the files that
the names given to it mean.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from tests.support.file_pool import EXTENTS, NAMES, SIZE, PooledFile
from tests.support.monitor import file_options, image_of
from tests.support.monitor_machine import (
    KINDS,
    TOP,
    MonitorMachine,
    images,
    names,
    numbers,
    options,
    places,
)
from tests.support.tier import count

pytestmark = pytest.mark.timeout(3600)

#: Most that a client does follows from what it did before.
clients = st.sampled_from([0, 0, 0, 1])
drivers = st.sampled_from(["raw", "vmdk"])


class NodeMachine(MonitorMachine):
    """Every command that changes nodes or what they are opened with; and files that move."""

    @initialize(
        drawn=st.lists(st.tuples(drivers, places, st.booleans(), options), min_size=1, max_size=3)
    )
    def start(self, drawn: Any) -> None:
        """With images and files, most of which can be opened."""
        for name, (driver, place, alone, common) in zip("uvw", drawn, strict=False):
            if alone:
                self.add_file(0, name, place, TOP[driver], common)
            else:
                self.add_image(0, name, driver, ((place, None), None, common))

    @rule(client=clients, name=names, place=places, kind=st.sampled_from(KINDS), common=options)
    def add_file(
        self,
        client: int,
        name: str,
        place: tuple[int, int],
        kind: tuple[str, ...],
        common: dict[str, Any],
    ) -> None:
        given = file_options(self.filename(place, kind, None), **{"node-name": name}, **common)
        self.add(client, given)

    @rule(client=clients, name=names, driver=drivers, drawn=images)
    def add_image(self, client: int, name: str, driver: str, drawn: Any) -> None:
        self.add(client, self.image_options(name, driver, drawn))

    @rule(
        client=clients,
        name=names,
        driver=st.sampled_from(["raw", "vmdk", "file"]),
        place=st.tuples(st.integers(0, 1), st.integers(0, 1)),
        whole=st.booleans(),
        closes=st.booleans(),
    )
    def add_passed(
        self,
        client: int,
        name: str,
        driver: str,
        place: tuple[int, int],
        *,
        whole: bool,
        closes: bool,
    ) -> None:
        """As a manager does: all files are passed, by whole paths or without a folder."""
        folder, which = place
        files = [TOP.get(driver, TOP["raw"])[which], *(EXTENTS if driver == "vmdk" else ())]
        paths = [self.path(folder, each) for each in files]
        keys = paths if whole else files
        for key, path in zip(keys, paths, strict=True):
            self.pass_in(client, key, path, os.O_RDWR)
        file = file_options(keys[0])
        inner = file if driver == "file" else {"driver": driver, "file": file}
        self.add(client, {**inner, "node-name": name})
        for key in keys if closes else ():
            if key in self.getfds[client]:
                self.close_passed(client, key)

    def add(self, client: int, given: Mapping[str, Any]) -> None:
        with self.asked("blockdev-add") as refused:
            self.clients[client].run("blockdev-add", dict(given))
        if not refused:
            self.model.add(given, self.passed(client))

    @precondition(lambda self: self.model.names())
    @rule(client=clients, drawn=st.lists(st.tuples(numbers, images), min_size=1, max_size=2))
    def reopen(self, client: int, drawn: Any) -> None:
        given = [self.reopen_options(self.there(number), each) for number, each in drawn]
        self.ask_for_reopen(client, given)

    @precondition(lambda self: self.model.images)
    @rule(client=clients, number=numbers, drawn=images)
    def reopen_image(self, client: int, number: int, drawn: Any) -> None:
        found = sorted(self.model.images)
        name = found[number % len(found)]
        self.ask_for_reopen(client, [self.reopen_options(name, drawn)])

    @precondition(lambda self: self.model.images)
    @rule(client=clients, number=numbers, place=places, common=options)
    def move_image(
        self, client: int, number: int, place: tuple[int, int], common: dict[str, Any]
    ) -> None:
        """As most clients do: to another path, and no word of nodes."""
        self.reopen_image(client, number, ((place, None), None, common))

    @precondition(lambda self: self.model.files)
    @rule(client=clients, number=numbers, place=places, common=options)
    def reopen_file(
        self, client: int, number: int, place: tuple[int, int], common: dict[str, Any]
    ) -> None:
        found = sorted(self.model.files)
        name = found[number % len(found)]
        self.ask_for_reopen(client, [self.reopen_options(name, ((place, None), None, common))])

    def ask_for_reopen(self, client: int, given: list[dict[str, Any]]) -> None:
        kept = self.kept()
        with self.asked("blockdev-reopen") as refused:
            self.clients[client].run("blockdev-reopen", {"options": given})
        if not refused:
            self.model.reopen(given, self.passed(client), kept)

    @precondition(lambda self: self.model.names())
    @rule(number=numbers, use=st.booleans())
    def set_host_cache(self, number: int, *, use: bool) -> None:
        name = self.there(number)
        with self.asked("block_set_hostcache") as refused:
            self.clients[0].execute("block_set_hostcache", node_name=name, hostcache=use)
        assert bool(refused) is (self.model.owner(name) is None), refused
        if not refused:
            self.model.set_host_cache(name, use=use)

    @precondition(lambda self: self.model.names())
    @rule(number=numbers)
    def delete(self, number: int) -> None:
        self.delete_node(self.there(number))

    @rule(
        client=clients,
        place=places,
        kind=st.sampled_from(KINDS),
        under=st.none() | places,
        flags=st.sampled_from([os.O_RDONLY, os.O_RDWR]),
    )
    def getfd(
        self,
        client: int,
        place: tuple[int, int],
        kind: tuple[str, ...],
        under: tuple[int, int] | None,
        flags: int,
    ) -> None:
        """`under`: the name, where it is not that of the file."""
        path = self.path(place[0] % 2, kind[place[1]])
        name = self.filename(place if under is None else under, kind, None)
        self.pass_in(client, name, path, flags)

    def pass_in(self, client: int, name: str, path: str, flags: int) -> None:
        """Pass what a path names now, if anything, under a name or into a set."""
        file = self.pool.at(path)
        if file is None:
            return
        if name.startswith("/dev/fdset/"):
            self.add_fd(path, file, int(name[-1]), flags)
            return
        self.clients[client].getfd(name, Path(path), flags)
        self.getfds[client][name] = file

    def add_fd(self, path: str, file: PooledFile, number: int, flags: int) -> None:
        """The only one of its set."""
        if number in self.sets:
            self.clients[1].execute("remove-fd", fdset_id=number)
        self.clients[0].add_fd(Path(path), flags, fdset_id=number)
        self.sets[number] = file

    @precondition(lambda self: any(self.getfds))
    @rule(client=clients, number=numbers)
    def closefd(self, client: int, number: int) -> None:
        held = sorted(self.getfds[client])
        if held:
            self.close_passed(client, held[number % len(held)])

    def close_passed(self, client: int, name: str) -> None:
        self.clients[client].execute("closefd", fdname=name)
        del self.getfds[client][name]

    # -- what goes on beside them

    @precondition(lambda self: self.model.names())
    @rule(number=numbers, at=st.integers(0, SIZE - 16))
    def write(self, number: int, at: int) -> None:
        """Tagged bytes."""
        writable = [
            name
            for name, image in sorted(self.model.images.items())
            if image.mode == "r+" and not any(file.is_descriptor for file in image.data)
        ]
        if not writable:
            return
        name = writable[number % len(writable)]
        image, data = self.model.images[name], self.model.images[name].data
        self.tags += 1
        tag = b"written %07d\n" % self.tags
        which = number // len(writable) % len(data)
        assert image_of(self.daemon, name).pwrite(tag, which * SIZE + at) == len(tag)
        data[which].content[at : at + len(tag)] = tag
        if image.driver == "vmdk":
            image.files[0].take_content_id()

    @rule(
        what=st.sampled_from(["replace", "exchange", "shift", "hide"]),
        folder=st.integers(0, 1),
        name=st.sampled_from(NAMES),
    )
    def rename(self, what: str, folder: int, name: str) -> None:
        """A path names another file from now on, or none."""
        path = self.path(folder, name)
        if what == "replace":
            self.pool.replace(path)
        elif what == "exchange":
            self.pool.exchange(path, self.path(1 - folder, name))
        elif what == "shift":
            kind = next(each for each in KINDS if name in each)
            self.pool.exchange(path, self.path(folder, kind[1 - kind.index(name)]))
        else:
            self.pool.hide(path)


def run(folder: Path, examples: int) -> None:
    gc.collect()
    gc.freeze()  # each example looks for what it has left behind, and for nothing else
    try:
        run_state_machine_as_test(
            partial(NodeMachine, folder),  # type: ignore[arg-type]
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        gc.unfreeze()


def test_nodes_are_on_the_files_that_are_named_on_tmpfs() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        run(Path(folder), count(1500))


@pytest.mark.root
def test_nodes_are_on_the_files_that_are_named_on_ext4(ext4_mount: Callable[..., Path]) -> None:
    run(ext4_mount(), count(200))
