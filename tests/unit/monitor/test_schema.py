"""One schema: every command has a method, every type is told, every argument checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdstash.monitor.commands import Commands
from fdstash.monitor.errors import QmpError
from fdstash.monitor.introspection import schema_info
from fdstash.monitor.schema_types import Builtin, Command, Enum, Event, Member, Struct, Type, Union
from fdstash.monitor.vocabulary import SCHEMA
from tests.support.monitor import Client

INFO = schema_info(SCHEMA)
BY_NAME = {entry["name"]: entry for entry in INFO}


def references(entry: dict[str, Any]) -> list[str]:
    found = [entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry]
    found += [m["type"] for m in entry.get("members", ()) if "type" in m]
    return found + [v["type"] for v in entry.get("variants", ())]


def test_every_command_has_a_method_and_every_method_a_command() -> None:
    methods = {name for name in vars(Commands) if not name.startswith("_")} - {"find"}
    names = {name.replace("-", "_") for name in SCHEMA.commands} - {"qmp_capabilities"}
    assert methods == names


def test_every_type_that_is_told_of_is_told_once_and_used() -> None:
    assert len(BY_NAME) == len(INFO)
    used = {name for entry in INFO for name in references(entry)}
    assert used <= BY_NAME.keys()
    types = {e["name"] for e in INFO if e["meta-type"] not in ("command", "event")}
    assert types == used


def named_in(kind: Type | Command | Event) -> list[str]:
    """The types that a declaration names."""
    members = getattr(kind, "members", None) or getattr(kind, "data", ())
    found = list(getattr(kind, "choices", ()))
    if isinstance(kind, Union):
        found += kind.variants.values()
    if isinstance(kind, Command):
        members = () if isinstance(kind.arguments, str) else kind.arguments
        found += [kind.arguments] if isinstance(kind.arguments, str) else []
        found += [kind.returns] if kind.returns else []
    return [name.strip("[]") for name in (*found, *(member.type for member in members))]


def test_every_declared_type_is_used() -> None:
    declared = (*SCHEMA.commands.values(), *SCHEMA.events.values())
    waiting = [name for each in declared for name in named_in(each)]
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += named_in(SCHEMA.types[name])
    assert set(SCHEMA.types) == used


def test_the_shape_is_that_of_qemus_introspection() -> None:
    kinds = {
        "command": {"arg-type", "ret-type"},
        "event": {"arg-type"},
        "builtin": {"json-type"},
        "array": {"element-type"},
        "enum": {"values", "members"},
        "alternate": {"members"},
        "object": {"members"},
    }
    for entry in INFO:
        more = {"tag", "variants"} if "tag" in entry else set()
        assert set(entry) == {"name", "meta-type"} | kinds[entry["meta-type"]] | more


def test_a_client_is_told_the_same(client: Client) -> None:
    assert client.execute("query-qmp-schema") == INFO
    names = [entry["name"] for entry in client.execute("query-commands")]
    assert sorted(names) == sorted(SCHEMA.commands)


#: Names that members have.
MEMBERS = st.sampled_from(
    sorted({m["name"] for e in INFO for m in e.get("members", ()) if "name" in m} | {"spam"})
)

# One set of arguments for each command that takes some.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "qmp_capabilities": {"enable": []},
    "getfd": {"fdname": "x"},
    "closefd": {"fdname": "x"},
    "add-fd": {"fdset-id": 1, "opaque": "x"},
    "remove-fd": {"fdset-id": 1, "fd": 3},
    "blockdev-add": {
        "driver": "vmdk",
        "node-name": "n",
        "file": {"driver": "file", "filename": "f", "locking": "off"},
        "extents": ["e", {"driver": "host_device", "filename": "g"}],
        "backing": None,
        "cache": {"direct": True, "no-flush": False},
        "read-only": True,
        "auto-read-only": True,
        "discard": "unmap",
    },
    "blockdev-reopen": {"options": [{"driver": "raw", "file": "f", "offset": 1, "size": 2}]},
    "blockdev-del": {"node-name": "n"},
    "query-named-block-nodes": {"flat": True},
    "block_resize": {"device": "d", "node-name": "n", "size": 1},
    "block_set_hostcache": {"node-name": "n", "hostcache": True},
    "nbd-server-start": {
        "addr": {"type": "inet", "data": {"host": "h", "port": "1"}},
        "max-connections": 1,
    },
    "block-export-add": {
        "type": "nbd",
        "id": "e",
        "node-name": "n",
        "writable": True,
        "name": "x",
        "description": "y",
    },
    "block-export-del": {"id": "e", "mode": "hard"},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the members and elements of a value are."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in items:
        found.append((*path, key))
        if isinstance(each, dict | list):
            found += places(each, (*path, key))
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    made = copy.deepcopy(value)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return made


def refused(name: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(QmpError) as caught:
        SCHEMA.check_arguments(SCHEMA.commands[name], arguments)
    return caught.value.desc


def test_there_are_arguments_for_every_command_that_takes_some() -> None:
    assert set(ARGUMENTS) == {c.name for c in SCHEMA.commands.values() if c.arguments}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_good_arguments_pass_and_each_wrong_type_is_refused_by_name(name: str) -> None:
    SCHEMA.check_arguments(SCHEMA.commands[name], ARGUMENTS[name])
    for path in places(ARGUMENTS[name]):
        for wrong in (1.5, [1.5], {"x": 1}):
            text = refused(name, changed(ARGUMENTS[name], path, wrong))
            assert str(path[-1]) in text or "unexpected" in text or "missing" in text


@pytest.mark.parametrize("name", SCHEMA.commands)
def test_what_nobody_knows_is_refused_everywhere(name: str) -> None:
    given = ARGUMENTS.get(name, {})
    assert refused(name, {**given, "spam": 1}) == "Parameter 'spam' is unexpected"
    for path in places(given):
        at: Any = given
        for key in path:
            at = at[key]
        if isinstance(at, dict):
            assert "spam' is unexpected" in refused(name, changed(given, (*path, "spam"), 1))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_needed_is_missed_by_name(name: str) -> None:
    command = SCHEMA.commands[name]
    found = SCHEMA.types[command.arguments] if isinstance(command.arguments, str) else None
    members = found.members if isinstance(found, Union) else command.arguments
    for member in members:
        assert isinstance(member, Member)
        if not member.optional:
            given = {k: v for k, v in ARGUMENTS[name].items() if k != member.name}
            assert refused(name, given) == f"Parameter '{member.name}' is missing"


@pytest.mark.parametrize("name", ARGUMENTS)
def test_good_arguments_are_seen_to_be_good_at_the_first_look(name: str) -> None:
    assert SCHEMA.fits(SCHEMA.commands[name], ARGUMENTS[name])


JSON = st.recursive(
    st.sampled_from([None, True, 0, -1, 1 << 63, 1.5, "f", "raw", "file", "unmap", "off", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(MEMBERS, inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), name=st.sampled_from(sorted(ARGUMENTS)))
def test_the_first_look_lets_nothing_through_that_the_second_refuses(
    data: st.DataObject, name: str
) -> None:
    value: Any = ARGUMENTS[name]
    for _ in range(data.draw(st.integers(1, 3))):
        found = places(value)
        if found:
            value = changed(value, data.draw(st.sampled_from(found)), data.draw(JSON))
    command = SCHEMA.commands[name]
    if SCHEMA.fits(command, value):
        SCHEMA.look(command, value)


#: Options in which options lie, each a step or two deeper.
AROUND: list[Callable[[Any], dict[str, Any]]] = [
    lambda inner: {"driver": "vmdk", "file": inner},
    lambda inner: {"driver": "vmdk", "file": "f", "backing": inner},
    lambda inner: {"driver": "vmdk", "file": "f", "extents": [inner]},
]
INNERMOST = st.sampled_from(["f", None, {}, *(around("f") for around in AROUND)])


@given(steps=st.lists(st.sampled_from(AROUND), min_size=8, max_size=34), inner=INNERMOST)
def test_at_the_depth_that_is_allowed_both_looks_agree(
    steps: list[Callable[[Any], dict[str, Any]]], inner: Any
) -> None:
    for around in steps:
        inner = around(inner)
        command = SCHEMA.commands["blockdev-add"]
        if SCHEMA.fits(command, inner):
            SCHEMA.look(command, inner)


def test_options_in_options_are_bounded() -> None:
    deep: Any = "f"
    for _ in range(500):
        deep = {"driver": "raw", "file": deep}
    assert "lie in each other" in refused("blockdev-add", deep)


def test_everything_is_documented() -> None:
    for command in SCHEMA.commands.values():
        assert command.doc.endswith("."), command.name
    for kind in SCHEMA.types.values():
        if isinstance(kind, Enum):
            assert all(text.endswith(".") for text in kind.values.values()), kind.name
        if isinstance(kind, Struct | Union):
            assert all(member.doc.endswith(".") for member in kind.members), kind.name
        assert isinstance(kind, Builtin) or kind.name[0].isupper()
