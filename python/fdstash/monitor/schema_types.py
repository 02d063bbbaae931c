"""What a schema is declared with: types, commands and events. After QEMU's QAPI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "MAX_DEPTH",
    "PYTHON_TYPES",
    "Alternate",
    "Builtin",
    "Command",
    "Enum",
    "Event",
    "Member",
    "Struct",
    "Type",
    "Union",
]

#: Of options in options; no disk has more images in each other.
MAX_DEPTH = 32


#: What the built-in types are here, but for those that are any value.
PYTHON_TYPES = {"boolean": bool, "string": str, "int": int, "null": type(None)}


class Builtin(NamedTuple):
    """A JSON type. `low` and `high` bound an integer."""

    name: str
    json_type: str  #: as introspection has it: string, int, boolean, null, value
    expected: str = ""  #: as an error has it
    low: int = 0
    high: int = 0
    doc: str = ""


class Enum(NamedTuple):
    """One of some strings."""

    name: str
    values: Mapping[str, str]  #: and what each means
    doc: str = ""


class Member(NamedTuple):
    """Of an object. `type`: a name; in brackets, an array of it."""

    name: str
    type: str
    doc: str
    optional: bool = False


class Struct(NamedTuple):
    """An object."""

    name: str
    members: Sequence[Member]
    doc: str = ""


class Union(NamedTuple):
    """An object whose member `tag` says what further members it has."""

    name: str
    members: Sequence[Member]
    tag: str
    variants: Mapping[str, str]  #: the names of structs
    doc: str = ""


class Alternate(NamedTuple):
    """One of several types, told apart by their JSON types."""

    name: str
    choices: Sequence[str]
    doc: str = ""


Type = Builtin | Enum | Struct | Union | Alternate


class Command(NamedTuple):
    """A command. `arguments`: of its object, or the name of a union."""

    name: str
    doc: str
    arguments: Sequence[Member] | str = ()
    returns: str | None = None  #: a type; None: an empty object


class Event(NamedTuple):
    """An event."""

    name: str
    doc: str
    data: Sequence[Member] = ()
