"""A schema, and the check of a value against it.

What `vocabulary` declares is checked here, told to clients by `introspection` and written down by
`manual`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fdstash.monitor.errors import QmpError
from fdstash.monitor.schema_quick import Fits, Quick
from fdstash.monitor.schema_types import (
    MAX_DEPTH,
    PYTHON_TYPES,
    Alternate,
    Builtin,
    Command,
    Enum,
    Event,
    Member,
    Struct,
    Type,
    Union,
)

__all__ = ["Schema"]

_JSON_TYPES = {python: name for name, python in PYTHON_TYPES.items()} | {dict: "object"}


def _tag(union: Union) -> Member:
    return next(member for member in union.members if member.name == union.tag)


def _path(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


class Schema:
    """All of it."""

    def __init__(
        self, types: Sequence[Type], commands: Sequence[Command], events: Sequence[Event]
    ) -> None:
        self.types = {each.name: each for each in types}
        self.commands = {each.name: each for each in commands}
        self.events = {each.name: each for each in events}
        #: Of each union, for each value of its tag: all members.
        self._members_by_tag = {
            each.name: {
                value: (*each.members, *self._variant(each, value))
                for value in self._tag_values(each)
            }
            for each in types
            if isinstance(each, Union)
        }
        self._quick = Quick(self.types, self._members_by_tag)
        self._arguments_fit = {each.name: self._fits(each) for each in commands}

    def check_arguments(self, command: Command, given: Mapping[str, Any]) -> None:
        """Raises `QmpError` unless a command takes these arguments."""
        if not self.fits(command, given):
            self.look(command, given)

    def fits(self, command: Command, given: Mapping[str, Any]) -> bool:
        """Whether a command is sure to take these arguments."""
        return self._arguments_fit[command.name](given, 0)

    def look(self, command: Command, given: Mapping[str, Any]) -> None:
        """As `check_arguments`, at everything."""
        if isinstance(command.arguments, str):
            self.check(command.arguments, given)
        else:
            self._members(command.arguments, given, "", 0)

    def _fits(self, command: Command) -> Fits:
        if not isinstance(command.arguments, str):
            return self._quick.members(command.arguments)
        kind = self._quick.kind(command.arguments)
        assert not isinstance(kind, type)  # noqa: S101 - `vocabulary` has a union there
        return kind

    def check(self, name: str, value: Any, at: str = "", depth: int = 0) -> None:
        """Raises `QmpError`, with QEMU's words, unless `value` is of the type called `name`."""
        if depth > MAX_DEPTH:
            raise QmpError(f"Parameter '{at}': more than {MAX_DEPTH} options lie in each other")
        if name.startswith("["):
            if not isinstance(value, list):
                raise _type_error(at, "array")
            for number, each in enumerate(value):
                self.check(name[1:-1], each, f"{at}[{number}]", depth + 1)
            return
        found = self.types[name]
        match found:
            case Builtin():
                _check_builtin(found, value, at)
            case Enum():
                if not isinstance(value, str):
                    raise _type_error(at, "string")
                if value not in found.values:
                    raise QmpError(f"Parameter '{at}' does not accept value '{value[:64]}'")
            case Alternate():
                self._check_alternate(found, value, at, depth)
            case Struct() | Union():
                if not isinstance(value, dict):
                    raise _type_error(at, "object")
                self._members(self._all_members(found, value, at), value, at, depth)

    def _tag_values(self, union: Union) -> Iterable[str]:
        tag = self.types[_tag(union).type]
        assert isinstance(tag, Enum)  # noqa: S101 - `vocabulary` has no other
        return tag.values

    def _variant(self, union: Union, value: str) -> Sequence[Member]:
        variant = union.variants.get(value)
        if variant is None:
            return ()
        struct = self.types[variant]
        assert isinstance(struct, Struct)  # noqa: S101 - `vocabulary` has no other
        return struct.members

    def _all_members(
        self, found: Struct | Union, value: Mapping[str, Any], at: str
    ) -> Sequence[Member]:
        if isinstance(found, Struct):
            return found.members
        by_tag = self._members_by_tag[found.name]
        told: Any = value.get(found.tag)
        if not isinstance(told, str) or told not in by_tag:  # the tag's own type says what it is
            self._members([_tag(found)], {k: v for k, v in value.items() if k == found.tag}, at, 0)
        return by_tag[told]

    def _members(
        self, members: Sequence[Member], value: Mapping[str, Any], at: str, depth: int
    ) -> None:
        found = 0
        for member in members:
            if member.name in value:
                found += 1
                self.check(member.type, value[member.name], _path(at, member.name), depth + 1)
            elif not member.optional:
                raise QmpError(f"Parameter '{_path(at, member.name)}' is missing")
        if found == len(value):
            return
        known = {member.name for member in members}
        for name in value:
            if name not in known:
                raise QmpError(f"Parameter '{_path(at, name[:64])}' is unexpected")

    def _check_alternate(self, found: Alternate, value: Any, at: str, depth: int) -> None:
        for choice in found.choices:
            if self._json_type(choice) == _json_type(value):
                self.check(choice, value, at, depth + 1)
                return
        raise _type_error(at, found.name)

    def _json_type(self, name: str) -> str:
        found = self.types[name]
        if isinstance(found, Builtin):
            return found.json_type
        return "string" if isinstance(found, Enum) else "object"


def _json_type(value: Any) -> str:
    return _JSON_TYPES.get(type(value), "value")


def _type_error(at: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{at}', expected: {expected}")


def _check_builtin(kind: Builtin, value: Any, at: str) -> None:
    if kind.json_type not in ("value", _json_type(value)):
        raise _type_error(at, kind.expected)
    if kind.json_type == "int" and not kind.low <= value <= kind.high:
        raise QmpError(f"Parameter '{at}' expects {kind.expected} of {kind.low} to {kind.high}")
