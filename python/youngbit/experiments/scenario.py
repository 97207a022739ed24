"""Scenarios: a worker in a memory cgroup of its own, driven step by step.

The language and the format of what is recorded are specified in
``docs/scenarios.md``. A run's records are a recording: `Conformance` compares
other kernels' with runs of the model, and may be given runs of the model too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _core, defaults
from ..errors import FormatError, format_errors
from ._parts import ignore

__all__ = [
    "Comparison",
    "Conformance",
    "ConformanceResult",
    "Scenario",
    "ScenarioResult",
    "ScenarioStep",
]


@dataclass(frozen=True)
class ScenarioStep:
    """One step of a scenario, and what was there after it."""

    #: Line in the scenario.
    line: int
    #: The record, in the format of recordings.
    record: dict[str, Any]
    #: What was counted in the step.
    counters: dict[str, int]

    @property
    def errno(self) -> int:
        """The error's number, or 0."""
        return int(self.record["errno"])


@dataclass
class ScenarioResult:
    """What a run of a scenario recorded."""

    #: Its conditions, as the first line of a recording.
    header: dict[str, Any]
    steps: list[ScenarioStep] = field(default_factory=list)

    def to_jsonl(self) -> str:
        """Return the run as a recording: one JSON object a line."""
        objects = [self.header, *(step.record for step in self.steps)]
        return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects)


@dataclass(frozen=True)
class Scenario:
    """The conditions of a scenario; `run` runs it.

    Attributes:
        capabilities: Mask of ``lru_gen/enabled``.
        mmu: Which MMU a VM of the scenario has: one of ``defaults.SCENARIO_MMUS``.
        protocol: How the VM is aged.
        aging_asks: What MGLRU's aging asks; otherwise what the protocol's kernel
            does. Only the baseline has a choice, ``"none"`` or ``"accurate"``.
        ad: Whether its page tables have accessed and dirty bits.
        swap_pages: Slots of the swap device.

    """

    capabilities: int = defaults.CAPABILITIES
    mmu: str = defaults.MMU
    protocol: str = defaults.PROTOCOL
    aging_asks: str | None = None
    ad: bool = True
    swap_pages: int = defaults.SCENARIO_SWAP_PAGES

    def __post_init__(self) -> None:
        if self.mmu not in defaults.SCENARIO_MMUS:
            known = ", ".join(defaults.SCENARIO_MMUS)
            raise ValueError(f"mmu: {self.mmu!r} is none of {known}")
        if self.protocol not in defaults.PROTOCOLS:
            known = ", ".join(defaults.PROTOCOLS)
            raise ValueError(f"protocol: {self.protocol!r} is none of {known}")
        possible = {defaults.PROTOCOL_ASKS[self.protocol]}
        if self.protocol == "baseline":
            possible.add("none")
        if self.aging_asks not in {None, *possible}:
            raise ValueError(
                f"aging_asks: the kernel of {self.protocol} asks"
                f" {' or '.join(sorted(possible))}, not {self.aging_asks}"
            )
        if not 0 <= self.capabilities < 1 << 32:
            raise ValueError(f"capabilities: {self.capabilities} is not a mask of 32 bits")

    def header(self, name: str, *, has_vm: bool) -> dict[str, Any]:
        """Return the conditions as the first line of a recording."""
        asks = self.aging_asks or defaults.PROTOCOL_ASKS[self.protocol]
        kernel = {"baseline": "linux-6.12", "v7": "linux-v7", "v9": "linux-v9"}[self.protocol]
        if asks == "none":
            kernel += "-no-notify"
        if not self.ad:
            kernel += "-no-ad"
        return {
            "scenario": name,
            "kernel": kernel,
            "version": f"youngbit {_core.build_info()['version']}",
            "lru_gen_enabled": f"{self.capabilities:#06x}",
            "secondary_mmu_walk": asks == "accurate"
            or (asks == "fast_only" and bool(self.capabilities & defaults.SECONDARY_MMU_WALK)),
            "mmu": self.mmu if has_vm else "none",
            "page_size": 4096,
            "swap_pages": self.swap_pages,
            "recorder_pages": 16,
        }

    def run(
        self,
        path: str | os.PathLike[str],
        *,
        stepped: Callable[[ScenarioStep], None] = ignore,
    ) -> ScenarioResult:
        """Run a scenario file.

        Args:
            path: The file.
            stepped: Called after each step.

        Raises:
            FormatError: If the file is no scenario, with line and column.
            OSError: If the file cannot be read, or a machine in these conditions
                does not exist. Errors that a kernel would return are recorded.

        """
        path = Path(path)
        text = path.read_bytes()
        with format_errors(str(path)):
            steps = _core.parse_scenario(text)
        has_vm = any(op in ("vm", "vm2") for _, op, _ in steps)
        header = json.dumps(self.header(path.stem, has_vm=has_vm))
        machine = _core.Scenario(header.encode(), text)
        result = ScenarioResult(json.loads(machine.header))
        for line, _, _ in steps:
            record, counters = machine.step()
            step = ScenarioStep(line, json.loads(record), counters)
            result.steps.append(step)
            stepped(step)
        return result


@dataclass(frozen=True)
class Comparison:
    """One recording, held against a run of the model."""

    #: The recording, relative to the directory.
    file: str
    #: Steps that it has; 0 if it cannot be read.
    steps: int
    #: Of them equal.
    equal_steps: int
    #: The first difference in words, or why there is no run; None if there is none.
    first_difference: str | None
    #: Whether there was something to compare.
    compared: bool = True

    @property
    def is_equal(self) -> bool:
        """Whether all steps are equal."""
        return self.compared and self.first_difference is None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        return {
            "file": self.file,
            "steps": self.steps,
            "equal_steps": self.equal_steps,
            "first_difference": self.first_difference,
            "compared": self.compared,
        }


@dataclass
class ConformanceResult:
    """How a directory of recordings compares."""

    directory: str
    recordings: list[Comparison] = field(default_factory=list)

    @property
    def nr_equal(self) -> int:
        """Recordings of which every step is equal."""
        return sum(each.is_equal for each in self.recordings)

    @property
    def is_equal(self) -> bool:
        """Whether all of them are, and there is one at all."""
        return 0 < len(self.recordings) == self.nr_equal

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict; ``docs/json.md`` specifies it."""
        return {
            "schema": "youngbit/conformance",
            "schema_version": 1,
            "parameters": {"directory": self.directory},
            "build": _core.build_info(),
            "equal": self.nr_equal,
            "recordings": [each.to_dict() for each in self.recordings],
        }


@dataclass(frozen=True)
class Conformance:
    """A directory of recordings, as ``tests/data/conformance`` is laid out.

    Attributes:
        directory: It has ``scenarios/NAME.scn``, and recordings of them in other
            folders, as ``FOLDER/*.jsonl``.

    """

    directory: str | os.PathLike[str]

    def files(self) -> list[Path]:
        """Return the recordings, in order.

        Raises:
            OSError: ``ENOENT`` or ``ENOTDIR`` if there is no such directory.

        """
        root = Path(self.directory)
        folders = [each for each in root.iterdir() if each.is_dir() and each.name != "scenarios"]
        return sorted(file for folder in folders for file in folder.glob("*.jsonl"))

    def run(self) -> Iterator[Comparison]:
        """Run each recording's scenario under its conditions, and compare.

        What cannot be compared is never equal: a recording that cannot be read,
        one whose scenario is not there or cannot be read, and one of a machine
        that the model does not have.
        """
        root = Path(self.directory)
        for file in self.files():
            yield self._compare(root, file)

    @staticmethod
    def _compare(root: Path, file: Path) -> Comparison:
        name = file.relative_to(root).as_posix()
        steps = 0
        try:
            recording = file.read_bytes()
            with format_errors(str(file)):
                scenario, steps = _core.recording_scenario(recording)
            if not scenario or "/" in scenario or scenario.startswith("."):
                raise FormatError(
                    str(file), 1, 1, f"expected a scenario's name, found {scenario!r}"
                )
            path = root / "scenarios" / f"{scenario}.scn"
            text = path.read_bytes()
            with format_errors(str(path)):
                _core.parse_scenario(text)
            found, equal, difference = _core.replay_recording(recording, text)
        except FormatError as error:
            return Comparison(name, steps, 0, str(error), compared=False)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            return Comparison(name, steps, 0, f"{what}", compared=False)
        return Comparison(name, found, equal, difference)
