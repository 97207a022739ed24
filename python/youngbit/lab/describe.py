"""Dataclasses from TOML and back, with errors that name key and line.

What a description may hold is said by the type annotations of frozen
dataclasses and nothing else: names, types, choices and units are read from
there, what a field means from the docstring. TOML itself is read by the
standard library; what is wrong is found again in the text by reading shorter
and shorter beginnings of it.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import inspect
import json
import math
import re
import sys
import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from ..errors import FormatError
from ..sizes import format_size, parse_size
from ..units import Choice, Unit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Refused",
    "Wrong",
    "build",
    "closest",
    "docs",
    "flatten",
    "parse",
    "place",
    "to_toml",
    "units",
]

Path = tuple[Any, ...]
_AT = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)


#: What a line begins with where a statement may begin, or a comment, or nothing is.
_STATEMENT = re.compile(r"""\s*(?:#|$|\[|["'\w-][^=]*=)""")


class Wrong(ValueError):
    """A value of a description is not what it should be.

    Attributes:
        path: Keys and numbers that lead to it.
        problem: What is wrong.

    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(path, problem)

    def __str__(self) -> str:
        return f"{_shown(self.path)}: {self.problem}" if self.path else self.problem


class Refused(Wrong):
    """Values are what they should be, one by one, and the dataclass refuses them."""


def dotted(path: Path) -> str:
    """Return a path as it is written in sweeps.

    >>> dotted(("vms", 0, "memory"))
    'vms.0.memory'
    """
    return ".".join(map(str, path))


def _shown(path: Path) -> str:
    """Return a path as messages have it: what cannot be seen is quoted."""
    parts = (str(each) for each in path)
    return ".".join(each if each and each.isprintable() else repr(each) for each in parts)


def closest(name: str, names: list[str]) -> str:
    """Return a hint at what was meant.

    >>> closest("protocl", ["protocol", "seed"])
    "did you mean 'protocol'?"
    """
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.55)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"


def parse(text: bytes, source: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        FormatError: With line and column.

    """
    if text.startswith(codecs.BOM_UTF8):
        raise FormatError(source, 1, 1, "expected TOML, found a byte order mark before it")
    try:
        data: dict[str, Any] = tomllib.loads(text.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        before = text[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        raise FormatError(source, line, column, f"expected UTF-8, found {error.reason}") from None
    except tomllib.TOMLDecodeError as error:
        found = _AT.fullmatch(str(error))
        lines = text.decode("utf-8").splitlines()
        problem = str(error).partition(" (at ")[0]
        if found is None:
            end = len(lines[-1]) + 1 if lines else 1
            raise FormatError(source, max(len(lines), 1), end, f"{problem}, at the end") from None
        raise FormatError(source, int(found[2]), int(found[3]), problem) from None
    except RecursionError:
        raise FormatError(source, 1, 1, "nested too deeply") from None
    return data


def _has(data: Any, path: Path) -> bool:
    """Whether a path leads somewhere; a key may be several of its parts with dots."""
    if not path:
        return True
    if isinstance(data, list):
        return type(path[0]) is int and path[0] < len(data) and _has(data[path[0]], path[1:])
    return isinstance(data, dict) and any(
        (key := dotted(path[:end])) in data and _has(data[key], path[end:])
        for end in range(len(path), 0, -1)
    )


def place(text: bytes, path: Path) -> tuple[int, int]:
    """Return line and column of what a path leads to, or of the nearest thing around it."""
    lines = text.decode("utf-8").replace("\r\n", "\n").splitlines(keepends=True)

    def read(end: int) -> Any:
        try:
            return tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            return None

    whole = read(len(lines))
    while path and not _has(whole, path):
        path = path[:-1]
    if not path:
        return 1, 1
    # A beginning that is TOML ends where a statement ends, and if one has the
    # path, all longer ones have: halve until one statement is left.
    ends = [0, *(n for n, line in enumerate(lines) if n and _STATEMENT.match(line)), len(lines)]
    low, high = 0, len(ends) - 1
    while True:
        middle = (low + high) // 2
        for at in (*range(middle, low, -1), *range(middle + 1, high)):
            found = read(ends[at])
            if found is not None:
                break
        else:
            break
        if _has(found, path):
            high = at
        else:
            low = at
    low, high = ends[low], ends[high]
    key = next((each for each in reversed(path) if isinstance(each, str)), "")
    pattern = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])")
    for number, line in enumerate(lines[low:high], low + 1):
        if match := pattern.search(line):
            return number, match.start() + 1
    return low + 1, 1


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without None and annotations, and the annotations."""
    notes: tuple[Any, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            notes += hint.__metadata__
            hint = hint.__origin__
        elif get_origin(hint) in (Union, types.UnionType):
            kinds = [each for each in get_args(hint) if each is not type(None)]
            if len(kinds) > 1:
                return tuple(_bare(each)[0] for each in kinds), notes
            hint = kinds[0]
        else:
            return hint, notes


def _named(value: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text",
             dict: "a table", list: "a list"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def _refuse(path: Path, expected: str, value: Any) -> Wrong:
    shown = f" {value!r}" if isinstance(value, (bool, int, float, str)) else ""
    if isinstance(value, bool):
        shown = f" {str(value).lower()}"
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return Wrong(path, f"expected {expected}, found{shown or ' ' + _named(value)}")


def convert(value: Any, hint: Any, path: Path) -> Any:
    """Return a value of TOML as what a type says."""
    kind, notes = _bare(hint)
    unit = next((note.name for note in notes if isinstance(note, Unit)), "")
    choice = next((note for note in notes if isinstance(note, Choice)), None)
    if choice is not None:
        if value not in choice.names or not isinstance(value, str):
            known = ", ".join(choice.names)
            raise _refuse(path, f"one of {known}", value)
        return value
    if isinstance(kind, tuple):
        return _one_of(value, kind, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, path)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise _refuse(path, "a list", value)
        inner = get_args(kind)[0]
        expected = get_args(kind)
        if expected[-1] is not ... and len(value) != len(expected):
            raise Wrong(path, f"expected {len(expected)} values, found {len(value)}")
        return tuple(convert(each, inner, (*path, i)) for i, each in enumerate(value))
    if unit == "bytes" and isinstance(value, (str, int)) and not isinstance(value, bool):
        try:
            return parse_size(value)
        except ValueError as error:
            raise Wrong(path, str(error).removeprefix("size: ")) from None
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _refuse(path, "a finite number", value)
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        if not -(1 << 63) <= value < 1 << 63:
            raise _refuse(path, "a number below 2**63", value)
        return value
    if type(value) is not kind:
        example = kind()
        raise _refuse(path, "a size such as '64M'" if unit == "bytes" else _named(example), value)
    return value


def _one_of(value: Any, kinds: tuple[Any, ...], path: Path) -> Any:
    """Return the dataclass that the key ``kind`` of a table names."""
    by_name = {each.tag: each for each in kinds}
    if not isinstance(value, dict):
        raise _refuse(path, f"a table with a kind: {', '.join(by_name)}", value)
    if "kind" not in value:
        raise Wrong(path, f"expected a key 'kind': {', '.join(by_name)}")
    name = value["kind"]
    if not isinstance(name, str) or name not in by_name:
        raise Wrong((*path, "kind"), f"{name!r}: {closest(str(name), list(by_name))}")
    return build(by_name[name], value, path)


def build(cls: type, data: Any, path: Path = ()) -> Any:
    """Return a dataclass of a table.

    Raises:
        Wrong: If a key is unknown or a value is not of its type, or if the
            dataclass itself refuses.

    """
    if not isinstance(data, dict):
        raise _refuse(path, "a table", data)
    hints = _hints(cls)
    if (tag := getattr(cls, "tag", None)) and "kind" in data:
        if data["kind"] != tag:
            raise _refuse((*path, "kind"), repr(tag), data["kind"])
        data = {key: value for key, value in data.items() if key != "kind"}
    for key in data:
        if key not in hints:
            raise Wrong((*path, key), f"there is no such key; {closest(key, list(hints))}")
    values = {key: convert(value, hints[key], (*path, key)) for key, value in data.items()}
    for field in dataclasses.fields(cls):
        missing = dataclasses.MISSING
        if field.name not in values and field.default is field.default_factory is missing:
            raise Wrong(path, f"the key {field.name!r} is missing")
    try:
        return cls(**values)
    except Wrong as error:
        raise Refused((*path, *error.path), error.problem) from None
    except ValueError as error:
        name, _, problem = str(error).partition(": ")
        known = name in hints
        raise Refused((*path, name) if known else path, problem if known else str(error)) from None


@cache
def docs(cls: Any) -> dict[str, str]:
    """Return what each field of a dataclass means: the Attributes of its docstring."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        _, _, section = text.partition("\nAttributes:\n")
        for entry in re.split(r"\n(?=    \w)", "\n" + section.split("\n\n")[0])[1:]:
            name, _, meaning = entry.partition(":")
            found[name.strip()] = " ".join(meaning.split())
    return {name: found[name] for name in _hints(cls) if name in found}


def units(cls: type, name: str) -> str:
    """Return the unit of a field: a unit, or what values it takes."""
    kind, notes = _bare(_hints(cls)[name])
    if get_origin(kind) is tuple:
        kind, inner = _bare(get_args(kind)[0])
        notes += inner
    for note in notes:
        if isinstance(note, Unit):
            return note.name
        if isinstance(note, Choice):
            return ", ".join(note.names)
    return {int: "count", float: "number", bool: "true or false", str: "text"}.get(kind, "table")


def flatten(value: Any, path: Path = ()) -> dict[str, Any]:
    """Return every scalar of a description by its dotted key."""
    if dataclasses.is_dataclass(value):
        found = {}
        if tag := getattr(value, "tag", None):
            found[dotted((*path, "kind"))] = tag
        for field in dataclasses.fields(value):
            found |= flatten(getattr(value, field.name), (*path, field.name))
        return found
    if isinstance(value, tuple):
        found = {}
        for number, each in enumerate(value):
            found |= flatten(each, (*path, number))
        return found
    return {dotted(path): value}


def plain(value: Any) -> Any:
    """Return a description as plain dicts and lists, without what is None."""
    if dataclasses.is_dataclass(value):
        found = {}
        if tag := getattr(value, "tag", None):
            found["kind"] = tag
        for field in dataclasses.fields(value):
            each = getattr(value, field.name)
            if each is not None:
                found[field.name] = plain(each)
        return found
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def _is_table(value: Any) -> bool:
    """Whether a field's value is a table of TOML, or several."""
    if isinstance(value, tuple):
        return any(dataclasses.is_dataclass(each) for each in value)
    return dataclasses.is_dataclass(value)


def _scalar(value: Any, unit: str) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_scalar(each, unit) for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if unit == "bytes":
            return f'"{format_size(value)}"'
        return f"{value:#x}" if unit == "mask" else str(value)
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _fields(value: Any) -> list[str]:
    """Return the lines of a dataclass's scalars, each with what it means."""
    cls: Any = type(value)
    lines = []
    if tag := getattr(cls, "tag", None):
        lines.append(f'kind = "{tag}"')
    for name in _hints(cls):
        each = getattr(value, name)
        if _is_table(each):
            continue
        meaning = docs(cls).get(name, "").replace("``", "")
        choice = next((n for n in _bare(_hints(cls)[name])[1] if isinstance(n, Choice)), None)
        if choice is not None and not meaning.startswith(choice.names[0]):
            meaning = f"{', '.join(choice.names)}: {meaning[:1].lower()}{meaning[1:]}"
        line = f"# {name} =" if each is None else f"{name} = {_scalar(each, units(cls, name))}"
        lines.append(f"{line:<32}# {meaning}".rstrip())
    return lines


def to_toml(value: Any, kind: str) -> str:
    """Return a description as TOML that reads back as an equal one."""
    head = [f'experiment = "{kind}"', *_fields(value)]

    def tables(of: Any, path: Path) -> list[str]:
        lines: list[str] = []
        for field in dataclasses.fields(of):
            each = getattr(of, field.name)
            inner = (*path, field.name)
            many = isinstance(each, tuple)
            for one in each if many else [each]:
                if dataclasses.is_dataclass(one):
                    name = dotted(inner)
                    lines += ["", f"[[{name}]]" if many else f"[{name}]", *_fields(one)]
                    lines += tables(one, inner)
        return lines

    return "\n".join([*head, *tables(value, ())]) + "\n"


def lookup(cls: type, path: tuple[str, ...]) -> tuple[Any, str, str] | None:
    """Return type in tables, unit and meaning of what a dotted key leads to."""
    key, rest = path[0], path[1:]
    if not rest and key == "kind" and getattr(cls, "tag", None):
        return "string", "text", "Which kind of it."
    if key not in _hints(cls):
        return None
    kind, _ = _bare(_hints(cls)[key])
    if get_origin(kind) is tuple:
        kind, _ = _bare(get_args(kind)[0])
        rest = rest[1:]
    if rest:
        found = (lookup(each, rest) for each in (kind if isinstance(kind, tuple) else (kind,))
                 if dataclasses.is_dataclass(each) and isinstance(each, type))  # fmt: skip
        return next((each for each in found if each is not None), None)
    types_ = {int: "int64", float: "double", bool: "bool", str: "string"}
    if kind not in types_:
        return None
    return types_[kind], units(cls, key), docs(cls).get(key, "").replace("``", "")
