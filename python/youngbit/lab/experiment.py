"""Kinds of experiments, and what a run of any of them gives."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from ..errors import FormatError
from . import describe
from .columns import Column, column, register

__all__ = [
    "KINDS",
    "Experiment",
    "Kind",
    "Measured",
    "Result",
    "Scalar",
    "add_kind",
    "failed",
    "from_toml",
    "kind_of",
    "parameters",
    "read",
    "run",
    "to_toml",
]

#: What a cell of a table holds.
Scalar: TypeAlias = "int | float | bool | str | None"


class Experiment(Protocol):
    """A frozen dataclass with a seed; what it may hold is said in `lab.describe`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Of everything random."""


AnExperiment = TypeVar("AnExperiment", bound=Experiment)


@dataclass
class Measured:
    """What a kind of experiment found: a summary, and a table of passes."""

    #: Scalars by column, wall times too.
    summary: dict[str, Scalar]
    #: One list a column, an entry a pass; all of one length.
    passes: dict[str, list[Any]] = field(default_factory=dict)
    #: The experiment's own result, for those who want all of it.
    detail: Any = None


@dataclass(frozen=True)
class Kind(Generic[AnExperiment]):
    """A kind of experiment."""

    #: What a description calls it.
    name: str
    #: The frozen dataclass.
    type: type[AnExperiment]
    #: Runs it; names of files start at the second argument. Takes the callbacks of
    #: the experiment's own ``run`` by their names.
    measure: Callable[..., Measured]


#: All kinds, by name.
KINDS: dict[str, Kind[Any]] = {}


def add_kind(kind: Kind[Any], *, runs: list[Column], passes: list[Column]) -> None:
    """Let descriptions have a kind of experiment.

    Args:
        kind: The kind. Every field of its type needs its line under "Attributes" in
            the docstring: the column of that parameter is documented by it.
        runs: Columns of its summary that no other kind has documented.
        passes: Columns of its passes that no other kind has documented.

    """
    if kind.name in KINDS:
        raise ValueError(f"{kind.name}: there is such a kind of experiment")
    register("runs", runs)
    register("passes", passes)
    KINDS[kind.name] = kind


def kind_of(experiment: Experiment) -> Kind[Any]:
    """Return the kind of an experiment.

    Raises:
        TypeError: If it is none.

    """
    for kind in KINDS.values():
        if type(experiment) is kind.type:
            return kind
    known = ", ".join(kind.type.__name__ for kind in KINDS.values())
    raise TypeError(f"experiment: expected one of {known}, not {type(experiment).__name__}")


@dataclass(frozen=True)
class Result:
    """What a run gave: one row, and a table of passes."""

    #: One value a column, documented by `column`.
    row: dict[str, Scalar]
    #: One list a column, an entry a pass.
    passes: dict[str, list[Any]] = field(repr=False)
    #: The experiment's own result; None where it came from elsewhere.
    detail: Any = field(default=None, repr=False, compare=False)

    @property
    def found(self) -> dict[str, Scalar]:
        """The row without what may differ from run to run: wall times, and where it ran."""
        return {name: value for name, value in self.row.items() if parameter_or_result(name)}


def parameter_or_result(name: str) -> bool:
    """Whether a column of runs is the same wherever an inline run ran."""
    try:
        return column("runs", name).group in ("parameter", "result")
    except KeyError:
        # Parameters are documented by the dataclass that they are of.
        return True


def parameters(experiment: Experiment) -> dict[str, Scalar]:
    """Return every parameter of an experiment by its dotted key."""
    return describe.flatten(experiment)


def run(
    experiment: Experiment,
    *,
    base: str | os.PathLike[str] | None = None,
    **callbacks: Callable[..., None],
) -> Result:
    """Run an experiment.

    Args:
        experiment: One of the types of `KINDS`.
        base: Where relative names of files in it start; otherwise the working directory.
        callbacks: As the experiment's own ``run`` has them.

    Raises:
        TypeError: If it is no experiment.
        Exception: What the experiment raises.

    """
    kind = kind_of(experiment)
    begun = time.perf_counter()
    measured = kind.measure(experiment, None if base is None else Path(base), **callbacks)
    seconds = time.perf_counter() - begun
    asked = parameters(experiment)
    found = {*measured.summary, "experiment", "status", "error", "passes", "seconds"}
    twice = sorted(asked.keys() & found)
    if twice:
        raise ValueError(f"{kind.name}: {', '.join(twice)} are parameters and results")
    lengths = {len(values) for values in measured.passes.values()}
    if len(lengths) > 1:
        raise ValueError(f"{kind.name}: columns of passes are of different lengths")
    row: dict[str, Scalar] = {
        "experiment": kind.name,
        **asked,
        "status": "ok",
        "error": None,
        "passes": lengths.pop() if lengths else 0,
        **measured.summary,
        "seconds": seconds,
    }
    for table, names in (("runs", row), ("passes", measured.passes)):
        for name in names:
            describe_column(table, name, kind.name)
    return Result(row, measured.passes, measured.detail)


def failed(experiment: Experiment, error: str | BaseException) -> Result:
    """Return what a run gave that did not come to an end: its parameters and the error."""
    if isinstance(error, BaseException):
        kind = type(error).__name__
        error = f"{kind}: {error}" if str(error) else kind
    row: dict[str, Scalar] = {
        "experiment": kind_of(experiment).name,
        **parameters(experiment),
        "status": "failed",
        "error": error,
        "passes": 0,
    }
    return Result(row, {})


@cache
def describe_column(table: Literal["runs", "passes"], name: str, kind: str) -> Column:
    """Return what a column of a kind's table is: one of its own, or a parameter.

    Raises:
        KeyError: If it is documented nowhere.

    """
    try:
        return column(table, name)
    except KeyError:
        found = describe.lookup(KINDS[kind].type, tuple(name.split(".")))
        if found is None or table == "passes":
            raise
        return Column(name, *found, "parameter")


def from_table(data: dict[str, Any]) -> Experiment:
    """Return the experiment that a table of TOML describes.

    Raises:
        Wrong: If it describes none.

    """
    name = data.get("experiment")
    known = ", ".join(sorted(KINDS))
    if name is None:
        raise describe.Wrong((), f"expected a key 'experiment': {known}")
    if not isinstance(name, str) or name not in KINDS:
        hint = describe.closest(str(name), list(KINDS))
        raise describe.Wrong(("experiment",), f"there is no experiment {name!r}; {hint}")
    rest = {key: value for key, value in data.items() if key != "experiment"}
    experiment: Experiment = describe.build(KINDS[name].type, rest)
    return experiment


def from_toml(text: str | bytes, source: str = "description") -> Experiment:
    r"""Return the experiment that TOML describes.

    >>> from_toml('experiment = "replay"\nevery = 5000').every
    5000

    Raises:
        FormatError: With line and column, if it describes none.

    """
    text = text.encode() if isinstance(text, str) else text
    data = describe.parse(text, source)
    try:
        if "sweep" in data:
            raise describe.Wrong(("sweep",), "this describes a sweep: use youngbit sweep")
        return from_table(data)
    except describe.Wrong as error:
        raise located(text, source, error) from None


def located(text: bytes, source: str, error: describe.Wrong) -> FormatError:
    """Return an error with the line that it is about."""
    line, column_ = describe.place(text, error.path)
    return FormatError(source, line, column_, str(error))


def read(path: str | os.PathLike[str]) -> Experiment:
    """Return the experiment that a TOML file describes.

    Raises:
        FormatError: With line and column, if it describes none.
        OSError: If it cannot be read.

    """
    return from_toml(Path(path).read_bytes(), os.fspath(path))


def to_toml(experiment: Experiment) -> str:
    """Return an experiment as TOML, every key of it, with what it means."""
    if not dataclasses.is_dataclass(experiment):
        raise TypeError(f"experiment: {type(experiment).__name__} is no dataclass")
    return describe.to_toml(experiment, kind_of(experiment).name)
