"""The schema as a page for people: the reference part of docs/monitor.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fdstash.monitor.schema import Schema
from fdstash.monitor.schema_types import (
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

__all__ = ["reference"]


def reference(schema: Schema) -> str:
    """Markdown: commands, events, types."""
    lines = ["## Commands", ""]
    for command in schema.commands.values():
        lines += _command(command)
    lines += ["## Events", ""]
    for event in schema.events.values():
        lines += _event(event)
    lines += ["## Types", ""]
    for kind in schema.types.values():
        if not isinstance(kind, Builtin):
            lines += _type(kind)
    return "\n".join(lines)


def _command(command: Command) -> Iterator[str]:
    yield from (f"### {command.name}", "", command.doc, "")
    if isinstance(command.arguments, str):
        yield from (f"Arguments: {_linked(command.arguments)}.", "")
    else:
        yield from _table("argument", command.arguments)
    if command.returns is not None:
        yield from (f"Returns: {_linked(command.returns)}.", "")


def _event(event: Event) -> Iterator[str]:
    yield from (f"### {event.name}", "", event.doc, "")
    yield from _table("member", event.data)


def _type(kind: Type) -> Iterator[str]:
    yield from (f"### {kind.name}", "")
    if kind.doc:
        yield from (kind.doc, "")
    match kind:
        case Enum():
            yield from (f"* `{value}`: {text}" for value, text in kind.values.items())
            yield from ([""] if kind.values else [])
        case Alternate():
            yield from (f"One of: {', '.join(map(_linked, kind.choices))}.", "")
        case Struct():
            yield from _table("member", kind.members)
        case Union():
            yield from _table("member", kind.members)
            for case, name in kind.variants.items():
                yield f"* with `{kind.tag}` `{case}` also those of {_linked(name)}"
            yield ""
        case Builtin():
            pass


def _table(title: str, members: Sequence[Member]) -> Iterator[str]:
    if not members:
        return
    yield from (f"| {title} | type | |", "| --- | --- | --- |")
    for member in members:
        optional = " (optional)" if member.optional else ""
        yield f"| `{member.name}`{optional} | {_linked(member.type)} | {member.doc} |"
    yield ""


def _linked(name: str) -> str:
    if name.startswith("["):
        return f"list of {_linked(name[1:-1])}"
    return f"[{name}](#{name.lower()})" if name[0].isupper() else name


if __name__ == "__main__":
    from fdstash.monitor.vocabulary import SCHEMA

    print(reference(SCHEMA))  # noqa: T201 - that is what it is run for
