"""The package's modules import each other one way: see docs/architecture.md."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "python" / "youngbit"


def name_of(path: Path) -> str:
    parts = ("youngbit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(name: str, path: Path) -> set[str]:
    """Modules of the package that a module imports when it runs, wherever it says so."""
    tree = ast.parse(path.read_text())
    typed = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for part in test.body
        for node in ast.walk(part)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in typed:
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            found.add(inner if inner in MODULES else base)
    return (found & MODULES.keys()) - {name}


ARROWS = {name: imports(name, path) for name, path in MODULES.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def without_packages_own(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Leave out what is imported from the top: it gives names of the whole package."""
    return {name: found - {"youngbit"} for name, found in arrows.items()}


def test_no_module_imports_itself_by_way_of_others():
    assert len(MODULES) > 60
    assert sum(map(len, ARROWS.values())) > 150
    assert circle(without_packages_own(ARROWS)) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


ROOMS = (
    "access", "traces", "results", "files", "memcg", "mm", "vm", "machine",
    "experiments", "plot", "lab", "reports", "commands",
)  # fmt: skip


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_what_stands_below_them_only(room):
    above = ROOMS[ROOMS.index(room) + 1 :]
    for name, found in ARROWS.items():
        if name.split(".")[1:2] == [room]:
            assert not [each for each in found if each.split(".")[1:2] in [[a] for a in above]], (
                name
            )


def test_what_commands_share_imports_none_of_them():
    for name in ("shared", "described"):
        found = ARROWS[f"youngbit.commands.{name}"]
        inside = {each for each in found if each.startswith("youngbit.commands.")}
        assert inside <= {"youngbit.commands.shared"}
    families = set(MODULES) - {f"youngbit.commands.{n}" for n in ("main", "shared", "described")}
    families = {each for each in families if each.startswith("youngbit.commands.")}
    joined = ARROWS["youngbit.commands.main"]
    # contention is an option of access-tracking.
    assert families - joined == {"youngbit.commands.contention"}
