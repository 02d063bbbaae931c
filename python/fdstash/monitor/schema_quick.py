"""The usual arguments, seen to be right by what was worked out once from the schema.

It goes through what is given, and not through all that might be; so it touches little memory, which
a monitor that is seldom asked has to fetch again each time. It says yes, or that it is not sure:
then `Schema.look` says what is wrong, if anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fdstash.monitor.schema_types import (
    MAX_DEPTH,
    PYTHON_TYPES,
    Alternate,
    Builtin,
    Enum,
    Member,
    Struct,
    Type,
    Union,
)

__all__ = ["Fits", "Quick"]

#: Whether a value, so deep in others, is of a type. False: perhaps not.
Fits = Callable[[Any, int], bool]
#: Of a type that Python has, that is all there is to check.
_Kind = type | Fits


class Quick:
    """`members_by_tag`: of each union by name, for each value of its tag: all members."""

    def __init__(
        self,
        types: Mapping[str, Type],
        members_by_tag: Mapping[str, Mapping[str, Sequence[Member]]],
    ) -> None:
        self._types = types
        self._members_by_tag = members_by_tag
        self._objects: dict[str, Fits] = {}

    def members(self, members: Sequence[Member]) -> Fits:
        """Of an object with these members."""
        kinds = {member.name: self.kind(member.type) for member in members}
        return _with_members(kinds, {member.name for member in members if not member.optional})

    def kind(self, name: str) -> _Kind:
        """Of the type called `name`."""
        if name.startswith("["):
            return _array(self.kind(name[1:-1]))
        match self._types[name]:
            case Builtin() as found:
                return _builtin(found)
            case Enum() as found:
                return _one_of(frozenset(found.values))
            case Alternate() as found:
                return self._alternate(found)
            case Struct() | Union() as found:
                return self._object(found)

    def _object(self, found: Struct | Union) -> Fits:
        """Made once, as an object may be a member of itself."""
        made = self._objects.get(found.name)
        if made is not None:
            return made

        def later(value: Any, depth: int) -> bool:
            return self._objects[found.name](value, depth)

        self._objects[found.name] = later
        if isinstance(found, Struct):
            fits = self.members(found.members)
        else:
            by_tag = self._members_by_tag[found.name]
            fits = _tagged(found.tag, {tag: self.members(each) for tag, each in by_tag.items()})
        self._objects[found.name] = fits
        return fits

    def _alternate(self, found: Alternate) -> Fits:
        kinds: dict[type, _Kind] = {}
        for choice in found.choices:
            kinds.setdefault(self._python_type(self._types[choice]), self.kind(choice))

        def fits(value: Any, depth: int) -> bool:
            kind = kinds.get(type(value))
            return kind is not None and depth < MAX_DEPTH and _is(kind, value, depth + 1)

        return fits

    @staticmethod
    def _python_type(found: Type) -> type:
        if isinstance(found, Builtin):
            return PYTHON_TYPES[found.json_type]
        return str if isinstance(found, Enum) else dict


def _is(kind: _Kind, value: Any, depth: int) -> bool:
    if isinstance(kind, type):
        return kind is type(value)
    return kind(value, depth)


def _with_members(kinds: Mapping[str, _Kind], required: set[str]) -> Fits:
    def fits(value: Any, depth: int) -> bool:
        if type(value) is not dict or depth >= MAX_DEPTH:
            return False
        for name, each in value.items():
            kind = kinds.get(name)
            if kind is type(each):
                continue
            if kind is None or isinstance(kind, type) or not kind(each, depth + 1):
                return False
        return required <= value.keys()

    return fits


def _tagged(tag: str, by_tag: Mapping[str, Fits]) -> Fits:
    def fits(value: Any, depth: int) -> bool:
        if type(value) is not dict:
            return False
        told = value.get(tag)
        found = by_tag.get(told) if type(told) is str else None
        return found is not None and found(value, depth)

    return fits


def _array(kind: _Kind) -> Fits:
    def fits(value: Any, depth: int) -> bool:
        return (
            type(value) is list
            and depth < MAX_DEPTH
            and all(_is(kind, each, depth + 1) for each in value)
        )

    return fits


def _one_of(values: frozenset[str]) -> Fits:
    def fits(value: Any, _depth: int) -> bool:
        return type(value) is str and value in values

    return fits


def _builtin(found: Builtin) -> _Kind:
    if found.json_type == "value":
        return lambda _value, _depth: True
    if found.json_type != "int":
        return PYTHON_TYPES[found.json_type]

    def fits(value: Any, _depth: int) -> bool:
        return type(value) is int and found.low <= value <= found.high

    return fits
