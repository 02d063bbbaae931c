"""The schema as `query-qmp-schema` tells it: SchemaInfo of QEMU's QAPI, type names as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fdstash.monitor.schema import Schema
from fdstash.monitor.schema_types import Alternate, Builtin, Enum, Member, Struct, Type, Union

__all__ = ["schema_info"]


def schema_info(schema: Schema) -> list[dict[str, Any]]:
    """Every command and event, and every type that they use, in the order of first use."""
    return _Told(schema).entries


class _Told:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._numbers: dict[str, str] = {}
        self.entries: list[dict[str, Any]] = []
        self._waiting: list[Type] = []
        empty = self._anonymous(())
        for command in schema.commands.values():
            if isinstance(command.arguments, str):
                arguments = self._reference(command.arguments)
            else:
                arguments = self._anonymous(command.arguments)
            returns = self._reference(command.returns) if command.returns else empty
            self._add(command.name, "command", **{"arg-type": arguments, "ret-type": returns})
        for event in schema.events.values():
            self._add(event.name, "event", **{"arg-type": self._anonymous(event.data)})
        while self._waiting:
            self._define(self._waiting.pop(0))

    def _add(self, name: str, kind: str, **rest: object) -> None:
        self.entries.append({"name": name, "meta-type": kind, **rest})

    def _number(self, key: str) -> str:
        return self._numbers.setdefault(key, str(len(self._numbers)))

    def _anonymous(self, members: Sequence[Member]) -> str:
        """The object of some arguments; the same members are the same object."""
        key = f"arguments {members!r}"
        if key not in self._numbers:
            self._waiting.append(Struct(key, members))
        return self._number(key)

    def _reference(self, name: str) -> str:
        if name.startswith("["):
            element = self._reference(name[1:-1])
            array = f"[{element}]"
            if array not in self._numbers:
                self._numbers[array] = array
                self._add(array, "array", **{"element-type": element})
            return array
        found = self._schema.types[name]
        if isinstance(found, Builtin):
            if name not in self._numbers:
                self._numbers[name] = name
                self._add(name, "builtin", **{"json-type": found.json_type})
            return name
        if name not in self._numbers:
            self._waiting.append(found)
        return self._number(name)

    def _define(self, found: Type) -> None:
        name = self._number(found.name)
        match found:
            case Enum():
                values = list(found.values)
                self._add(name, "enum", values=values, members=[{"name": v} for v in values])
            case Alternate():
                members = [{"type": self._reference(choice)} for choice in found.choices]
                self._add(name, "alternate", members=members)
            case Struct():
                self._add(name, "object", members=self._members(found.members))
            case Union():
                tag = next(member for member in found.members if member.name == found.tag)
                enum = self._schema.types[tag.type]
                cases = enum.values if isinstance(enum, Enum) else ()
                variants = [
                    {
                        "case": case,
                        "type": self._reference(found.variants[case])
                        if case in found.variants
                        else self._anonymous(()),
                    }
                    for case in cases
                ]
                members = self._members(found.members)
                self._add(name, "object", members=members, tag=found.tag, variants=variants)
            case Builtin():
                pass

    def _members(self, members: Sequence[Member]) -> list[dict[str, Any]]:
        return [
            {
                "name": member.name,
                "type": self._reference(member.type),
                **({"default": None} if member.optional else {}),
            }
            for member in members
        ]
