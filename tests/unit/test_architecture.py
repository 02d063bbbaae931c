"""The house plan (docs/architecture.md) as a test: who may import whom, and how big a file gets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "fdstash"
CORE = ROOT / "csrc"

# From the ground up. A module imports from its own floor and from those below it.
FLOORS = (
    {"errors", "_native", "_calls"},
    {"_ffi", "_version", "cache"},
    {"buffers", "requests", "stash", "opening", "passing"},
    {"hostfile", "locking", "names", "swap", "datapath", "waiting", "host"},
    {"formats"},
    {"file_opener", "clusters"},
    {"graph", "needs"},
    {"state", "limits", "extents", "report", "checking"},
    {"reopen", "change", "path_change", "slot_change"},
    {"image", "backing", "reading", "file_object", "several", "queue", "serving", "aio"},
    {"copying"},
    {"fdstash", "adapters", "export", "monitor", "bench"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# C files that know nothing of the rest of the core.
LEAVES = (
    "stash",
    "aligned_buffer",
    "cluster_table",
    "extent_map",
    "pump",
    "thread_life",
    "workers",
)

MAX_LINES = {".py": 400, ".c": 500, ".h": 500}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    for_types_only: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def module_name(path: Path) -> str:
    parts = ("fdstash", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
EXTENSIONS = {"_native", "_calls"}
KNOWN = {*MODULES, *(f"fdstash.{name}" for name in EXTENSIONS)}


def room_of(module: str) -> str:
    """The top-level part of the package that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "fdstash"


def types_only_nodes(tree: ast.AST) -> set[ast.AST]:
    guarded: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            guarded.update(inner for child in node.body for inner in ast.walk(child))
    return guarded


def names_in(node: ast.AST, importer: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            is_package = MODULES[importer].name == "__init__.py"
            parts = importer.split(".")
            kept = parts[: len(parts) - node.level + is_package]
            base = ".".join([*kept, base] if base else kept)
        for alias in node.names:
            # "from package import module" imports the module, any other name the package.
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in KNOWN else base


def imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text())
    guarded = types_only_nodes(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in names_in(node, module):
                if name.split(".")[0] == "fdstash":
                    yield Import(module, name, node.lineno, node in guarded)


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def violations(imports: list[Import]) -> str:
    return "\n".join(str(found) for found in imports)


def test_every_module_has_its_floor() -> None:
    homeless = {room_of(module) for module in MODULES} - FLOOR_OF.keys()
    assert not homeless, f"say in FLOORS where these belong: {sorted(homeless)}"


def test_imports_point_downwards() -> None:
    top = len(FLOORS)
    wrong = [
        found
        for found in IMPORTS
        if FLOOR_OF.get(room_of(found.imported), top) > FLOOR_OF.get(room_of(found.importer), top)
    ]
    assert not wrong, violations(wrong)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in KNOWN}
    for found in IMPORTS:
        if not found.for_types_only and found.imported != found.importer:
            graph[found.importer].add(found.imported)
    while leaves := {module for module, targets in graph.items() if not targets}:
        graph = {
            module: targets - leaves for module, targets in graph.items() if module not in leaves
        }
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def test_ffi_alone_imports_the_extensions() -> None:
    wrong = [
        found
        for found in IMPORTS
        if room_of(found.imported) in EXTENSIONS and found.importer != "fdstash._ffi"
    ]
    assert not wrong, violations(wrong)


def test_decisions_never_touch_the_core_directly() -> None:
    wrong = [
        found
        for found in IMPORTS
        if room_of(found.importer)
        in {"formats", "graph", "change", "path_change", "slot_change", "reopen"}
        and room_of(found.imported) == "_ffi"
    ]
    assert not wrong, violations(wrong)


def test_formats_know_errors_and_each_other_only() -> None:
    wrong = [
        found
        for found in IMPORTS
        if room_of(found.importer) == "formats"
        and room_of(found.imported) not in {"formats", "errors"}
    ]
    assert not wrong, violations(wrong)


def test_errors_import_nothing_of_ours() -> None:
    wrong = [found for found in IMPORTS if room_of(found.importer) == "errors"]
    assert not wrong, violations(wrong)


def c_files() -> list[Path]:
    return sorted(path for path in CORE.rglob("*.[ch]"))


def includes(path: Path) -> list[tuple[str, bool]]:
    """Every included name, and whether it is a system header."""
    found = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', path.read_text(), re.MULTILINE)
    return [(name, bracket == "<") for bracket, name in found]


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_of_the_core_include_nothing_of_it(leaf: str) -> None:
    allowed = {f"{leaf}.h", "fdstash.h"}
    for suffix in (".c", ".h"):
        ours = {name for name, system in includes(CORE / "src" / f"{leaf}{suffix}") if not system}
        assert ours <= allowed, f"{leaf}{suffix} includes {sorted(ours - allowed)}"


@pytest.mark.parametrize("library", ["load", "nbd"])
def test_libraries_beside_the_core_use_what_every_program_can(library: str) -> None:
    own = {path.name for path in (CORE / library).iterdir()}
    public = {"fdstash.h", f"fdstash_{library}.h"}
    for path in (CORE / library).iterdir():
        ours = {name for name, system in includes(path) if not system}
        assert ours <= own | public, f"{path.name} includes {sorted(ours - own - public)}"


def test_the_protocol_of_nbd_is_a_leaf() -> None:
    assert all(system for _, system in includes(CORE / "nbd" / "protocol.h"))


def test_the_core_knows_no_python() -> None:
    wrong = [path.name for path in c_files() if any(n == "Python.h" for n, _ in includes(path))]
    assert not wrong


def test_a_lock_of_the_process_is_made_anew_in_a_forked_child() -> None:
    """Else a child whose parent had a thread inside would wait for it for ever."""
    static = re.compile(r"PTHREAD_(MUTEX|COND|RWLOCK\w*)_INITIALIZER")
    files = [path for path in CORE.rglob("*.c") if static.search(path.read_text())]
    assert files
    assert [path.name for path in files if "pthread_atfork" not in path.read_text()] == []


@pytest.mark.parametrize("library", ["", "queue_", "swap_", "load_", "nbd_"])
def test_the_api_files_have_no_directives(library: str) -> None:
    text = (CORE / "include" / f"fdstash_{library}api.h").read_text()
    assert not re.findall(r"^\s*#.*$", text, re.MULTILINE)


def test_the_build_compiles_every_file_of_the_core() -> None:
    listed = re.findall(r"csrc/(\w+/\w+\.c)", (ROOT / "CMakeLists.txt").read_text())
    there = {str(path.relative_to(CORE)) for path in CORE.glob("*/*.c")}
    assert sorted(listed) == sorted(there)


def test_files_stay_small() -> None:
    long = []
    for folder in ("python", "csrc", "bench", "examples", "tests"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            limit = MAX_LINES.get(path.suffix)
            if limit:
                lines = path.read_bytes().count(b"\n")
                if lines > limit:
                    long.append(f"{path.relative_to(ROOT)}: {lines} lines, limit {limit}")
    assert not long, "a second concept has moved in:\n" + "\n".join(long)
