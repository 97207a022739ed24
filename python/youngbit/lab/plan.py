"""Sweeps: one experiment, and what is varied in it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import defaults
from . import describe
from .describe import Refused, Wrong
from .experiment import KINDS, Experiment, from_table, kind_of, located

__all__ = ["Point", "Range", "Sweep"]


@dataclass(frozen=True)
class Range:
    """Numbers that a random sweep draws.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether each order of magnitude is as likely as any other.
        whole: Whether only whole numbers are drawn.

    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is above high, {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: {self.low} is not positive, and log is on")
        if self.whole and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"low: there is no whole number from {self.low} to {self.high}")

    @property
    def ends(self) -> tuple[int | float, int | float]:
        """The smallest and the largest number that can be drawn."""
        if self.whole:
            return math.ceil(self.low), math.floor(self.high)
        return float(self.low), float(self.high)

    def draw(self, random: np.random.Generator) -> int | float:
        """Draw a number."""
        low, high = self.ends
        if self.whole and not self.log:
            return int(random.integers(int(low), int(high), endpoint=True))
        if self.log:
            value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(random.uniform(low, high))
        return min(max(round(value) if self.whole else value, low), high)


@dataclass(frozen=True)
class _Choices:
    choice: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        return self.choice[int(random.integers(len(self.choice)))]


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its number, and its experiment or why there is none."""

    run: int
    #: Keys that are varied, and their values here.
    values: dict[str, Any]
    experiment: Experiment | None
    #: Why the experiment cannot be: it contradicts itself.
    error: str | None = None


_KEYS = ["grid", "list", "random", "seeds", "timeout"]


@dataclass(frozen=True)
class Sweep:
    """A sweep: the experiment as a table of TOML, and what is varied.

    The points are all combinations of a point of the grid, one of the list, one of
    the random ones, and a seed. Dotted keys lead into tables; a number stands for
    one of several, such as ``vms.0.memory``, and ``*`` for each of them.

    Attributes:
        experiment: The table, with its key ``experiment``.
        grid: Values of keys; every combination is run.
        points: Points that are given one by one, each with its values of keys.
        samples: How many points are drawn at random.
        random: From what their keys' values are drawn: a `Range`, or a list.
        random_seed: Seed of the drawing, otherwise the experiment's.
        seeds: Seeds of the experiment; each point is run with each.
        timeout: Seconds after which a run is given up; none without.

    """

    experiment: Mapping[str, Any]
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()
    samples: int = 0
    random: Mapping[str, Range | Sequence[Any]] = field(default_factory=dict)
    random_seed: int | None = None
    seeds: Sequence[int] = ()
    timeout: float | None = None

    @classmethod
    def of(cls, experiment: Experiment, **varied: Any) -> Sweep:
        """Return a sweep over an experiment.

        Args:
            experiment: The experiment.
            varied: As the attributes.

        """
        table = {"experiment": kind_of(experiment).name, **describe.plain(experiment)}
        return cls(table, **varied)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Sweep:
        """Return the sweep that a TOML file describes.

        Raises:
            FormatError: With line and column, if it describes none.
            OSError: If it cannot be read.

        """
        return cls.from_toml(Path(path).read_bytes(), os.fspath(path))

    @classmethod
    def from_toml(cls, text: str | bytes, source: str = "description") -> Sweep:
        """Return the sweep that TOML describes: an experiment with a table ``sweep``.

        Raises:
            FormatError: With line and column, if it describes none.

        """
        text = text.encode() if isinstance(text, str) else text
        data = describe.parse(text, source)
        try:
            if "sweep" not in data:
                hint = "this describes one run, for youngbit run; expected a table [sweep]"
                raise Wrong((), hint)
            sweep = cls(
                {key: value for key, value in data.items() if key != "sweep"},
                **_varied(data["sweep"], data.get("seed", defaults.SEED)),
            )
            sweep.check()
        except Wrong as error:
            raise located(text, source, error) from None
        return sweep

    def __len__(self) -> int:
        grid = math.prod(len(values) for values in self.grid.values())
        return grid * max(len(self.points), 1) * max(self.samples, 1) * max(len(self.seeds), 1)

    @property
    def seed(self) -> int:
        """Seed of the experiment as described."""
        return int(self.experiment.get("seed", defaults.SEED))

    @property
    def keys(self) -> list[str]:
        """The keys that are varied."""
        found = [*self.grid, *(key for each in self.points for key in each), *self.random]
        return list(dict.fromkeys([*found, *(["seed"] if self.seeds else [])]))

    def check(self) -> None:
        """Check keys and types of every value, before anything is run.

        Raises:
            Wrong: If a key leads nowhere, or no point can have a value.

        """
        if len(self) > defaults.SWEEP_MAX_RUNS:
            raise Wrong(("sweep",), f"has {len(self)} runs, more than {defaults.SWEEP_MAX_RUNS}")
        base = dict(self.experiment)
        name = base.get("experiment")
        if not isinstance(name, str) or name not in KINDS:
            from_table(base)
        if self.samples and not self.random:
            raise Wrong(("sweep", "random"), "has samples and no keys to draw")
        if self.random and not self.samples:
            raise Wrong(("sweep", "random"), "the key 'samples' is missing")
        self._check_keys()
        seen: set[int] = set()
        for seed in self.seeds:
            if not 0 <= seed < 1 << 63:
                raise Wrong(("sweep", "seeds"), f"{seed} is negative or not below 2**63")
            if seed in seen:
                raise Wrong(("sweep", "seeds"), f"{seed} is there twice")
            seen.add(seed)
        cases = list(self._cases())
        if not cases:
            from_table(base)
        for where, values, exact in cases:
            try:
                from_table(_assigned(base, values))
            except Refused as error:
                # It may contradict what another key changes: is there a point without?
                if exact and not self._somewhere(values):
                    raise Wrong(_at(where, values, error), error.problem) from None
            except Wrong as error:
                raise Wrong(_at(where, values, error), error.problem) from None
        if not self._somewhere({}):
            raise Wrong((), f"no run of the sweep can be: {next(self.all()).error}")

    def _check_keys(self) -> None:
        known: dict[str, str] = {"seed": "seeds"} if self.seeds else {}
        groups: list[tuple[str, list[tuple[tuple[Any, ...], str]]]] = [
            ("grid", [((), key) for key in self.grid]),
            ("list", [((n,), key) for n, point in enumerate(self.points) for key in point]),
            ("random", [((), key) for key in self.random]),
        ]
        for group, keys in groups:
            for number, key in keys:
                if known.setdefault(key, group) != group:
                    problem = f"is varied by {known[key]} and by {group}"
                    raise Wrong(("sweep", group, *number, *_path(key)), problem)

    def _cases(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], bool]]:
        """Yield where in the description values are, the values, and whether one has to be."""
        for key, values in self.grid.items():
            for value in values:
                yield ("sweep", "grid"), {key: value}, True
        for number, point in enumerate(self.points):
            yield ("sweep", "list", number), dict(point), True
        for key, drawn in self.random.items():
            if isinstance(drawn, Range):
                for end in drawn.ends:
                    yield ("sweep", "random"), {key: end}, False
            else:
                for value in drawn:
                    yield ("sweep", "random"), {key: value}, True

    def _somewhere(self, values: Mapping[str, Any]) -> bool:
        """Whether any point that has these values can be."""
        return any(
            point.experiment is not None
            and all(_same(point.values.get(key), value) for key, value in values.items())
            for point in itertools.islice(self.all(), 10_000)
        )

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the values of every point, in the order of their numbers."""
        grid = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        drawn = [{}] if not self.samples else list(self._draw())
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.seeds] or [{}]
        for one in itertools.product(grid, self.points or [{}], drawn, seeds):
            values: dict[str, Any] = {}
            for part in one:
                values |= part
            yield values

    def _draw(self) -> Iterator[dict[str, Any]]:
        seed = self.seed if self.random_seed is None else self.random_seed
        random = np.random.default_rng(seed)
        from_what = {
            key: each if isinstance(each, Range) else _Choices(tuple(each))
            for key, each in self.random.items()
        }
        for _ in range(self.samples):
            yield {key: each.draw(random) for key, each in from_what.items()}

    def all(self) -> Iterator[Point]:
        """Yield every point."""
        for run, values in enumerate(self.combinations()):
            try:
                yield Point(run, values, from_table(_assigned(self.experiment, values)))
            except Wrong as error:
                yield Point(run, values, None, str(error))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a plain dict."""
        return {
            "experiment": self.experiment,
            "grid": {key: list(values) for key, values in self.grid.items()},
            "points": [dict(each) for each in self.points],
            "samples": self.samples,
            "random": {
                key: vars(each) if isinstance(each, Range) else list(each)
                for key, each in self.random.items()
            },
            "random_seed": self.random_seed,
            "seeds": list(self.seeds),
        }

    @property
    def fingerprint(self) -> str:
        """What two sweeps of the same runs have in common, and no others."""
        text = json.dumps(self.to_dict(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _at(where: tuple[Any, ...], values: Mapping[str, Any], error: Wrong) -> tuple[Any, ...]:
    """Return where in a description the value is that an error is about."""
    for key in values:
        path = _path(key)
        if all(k in (e, "*") for k, e in zip(path, error.path, strict=False)):
            return (*where, *path)
    return error.path


def _path(key: str) -> tuple[Any, ...]:
    return tuple(
        int(part) if part.isascii() and part.isdigit() else part for part in key.split(".")
    )


def _assigned(table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table in which keys have these values."""
    new = copy.deepcopy(dict(table))
    for key, value in values.items():
        _assign(new, _path(key), value, ())
    return new


def _assign(data: Any, path: tuple[Any, ...], value: Any, before: tuple[Any, ...]) -> None:
    key, rest = path[0], path[1:]
    if isinstance(data, list) and key == "*":
        for number in range(len(data)):
            _assign(data, (number, *rest), value, before)
        return
    if isinstance(data, list):
        if not isinstance(key, int) or key >= len(data):
            raise Wrong((*before, key), f"there are {len(data)}, numbered from 0; * is each")
    elif not isinstance(data, dict):
        raise Wrong((*before, key), f"{describe.dotted(before)} is no table")
    if not rest:
        data[key] = copy.deepcopy(value)
        return
    if isinstance(data, dict) and key not in data:
        data[key] = [{}] if rest[0] == "*" or isinstance(rest[0], int) else {}
    _assign(data[key], rest, value, (*before, key))


def _leaves(data: Any, path: tuple[str, ...], is_leaf: Any) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and not is_leaf(value):
            yield from _leaves(value, (*path, key), is_leaf)
        else:
            yield ".".join((*path, key)), value


def _varied(data: Any, seed: Any) -> dict[str, Any]:
    """Return what the table ``sweep`` says, as the arguments of `Sweep`."""
    if not isinstance(data, dict):
        raise Wrong(("sweep",), "expected a table")
    for key in data:
        if key not in _KEYS:
            hint = describe.closest(key, _KEYS)
            raise Wrong(("sweep", key), f"there is no such key; {hint}")
    found: dict[str, Any] = {}
    if "grid" in data:
        found["grid"] = _grid(data["grid"])
    if "list" in data:
        if not isinstance(data["list"], list) or not data["list"]:
            raise Wrong(("sweep", "list"), "expected tables, [[sweep.list]]")
        points = []
        for number, each in enumerate(data["list"]):
            if not isinstance(each, dict) or not each:
                raise Wrong(("sweep", "list", number), "expected a table with keys")
            points.append(dict(_leaves(each, (), lambda value: "kind" in value)))
        found["points"] = points
    if "random" in data:
        found |= _random(data["random"])
    if "seeds" in data:
        seeds = data["seeds"]
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= defaults.SWEEP_MAX_RUNS:
                raise Wrong(("sweep", "seeds"), f"{seeds} is not a number of seeds")
            if type(seed) is not int:
                raise Wrong(("seed",), f"expected a whole number, found {seed!r}")
            found["seeds"] = tuple(range(seed, seed + seeds))
        elif isinstance(seeds, list) and seeds and all(type(each) is int for each in seeds):
            found["seeds"] = tuple(seeds)
        else:
            raise Wrong(("sweep", "seeds"), "expected how many, or a list of seeds")
    if "timeout" in data:
        timeout = describe.convert(data["timeout"], float, ("sweep", "timeout"))
        if timeout <= 0:
            raise Wrong(("sweep", "timeout"), f"{timeout} is not positive")
        found["timeout"] = timeout
    if not found.keys() - {"timeout"}:
        raise Wrong(("sweep",), "nothing is varied: expected grid, list, random or seeds")
    return found


def _grid(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        raise Wrong(("sweep", "grid"), "expected keys with lists of values")
    grid = dict(_leaves(data, (), lambda value: not value))
    for key, values in grid.items():
        path = ("sweep", "grid", *_path(key))
        if not isinstance(values, list):
            raise Wrong(path, f"expected a list of values, found {values!r}")
        if not values:
            raise Wrong(path, "has no values")
        for number, value in enumerate(values):
            if any(_same(value, other) for other in values[:number]):
                raise Wrong(path, f"has {value!r} twice")
    return grid


def _random(data: Any) -> dict[str, Any]:
    at = ("sweep", "random")
    if not isinstance(data, dict):
        raise Wrong(at, "expected a table")
    found: dict[str, Any] = {}
    samples = describe.convert(data.get("samples", 0), int, (*at, "samples"))
    if not 1 <= samples <= defaults.SWEEP_MAX_RUNS:
        raise Wrong((*at, "samples"), f"expected how many points to draw, found {samples}")
    found["samples"] = samples
    if "seed" in data and not isinstance(data["seed"], dict):
        found["random_seed"] = describe.convert(data["seed"], int, (*at, "seed"))
    rest = {k: v for k, v in data.items() if k != "samples" and (k != "seed" or type(v) is dict)}
    drawn: dict[str, Any] = {}
    for key, value in _leaves(rest, (), lambda v: not v or "choice" in v or "low" in v):
        path = (*at, *_path(key))
        if isinstance(value, dict) and "choice" in value:
            if len(value) > 1 or not isinstance(value["choice"], list) or not value["choice"]:
                raise Wrong(path, "expected { choice = [...] } and nothing else")
            drawn[key] = tuple(value["choice"])
        elif isinstance(value, dict):
            drawn[key] = describe.build(Range, value, path)
        else:
            raise Wrong(path, "expected { low = ..., high = ... } or { choice = [...] }")
    found["random"] = drawn
    return found
