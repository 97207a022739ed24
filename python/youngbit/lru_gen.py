r"""Histograms of the multi-gen LRU as text, of the model and of real machines.

`parse` reads what ``/sys/kernel/debug/lru_gen`` or ``lru_gen_full`` printed,
by a kernel or by `Host.debugfs`, into the same objects:

>>> [memcg] = parse(
...     "memcg    57 /machine\n"
...     " node     0\n"
...     "          3       2048         31           4 \n"
...     "          4       1024       1000           0 \n"
... )
>>> memcg.path, memcg.nodes[0]
('/machine', Generations(seq 3: 31+4, seq 4: 1000+0))
>>> memcg.totals().nr_pages
1035
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from . import _core
from .errors import FormatError, format_errors
from .generations import Generation, GenerationDetail, Generations
from .policy import Choice, Policy

__all__ = [
    "Choice",
    "MemcgHistogram",
    "Policy",
    "format",
    "parse",
    "parse_counters",
    "read",
    "read_counters",
]

_Lettered: TypeAlias = "tuple[int, str]"
_Row: TypeAlias = (
    "tuple[int, int, int, int, bool, bool, tuple[list[list[_Lettered]], list[_Lettered]] | None]"
)


@dataclass(frozen=True)
class MemcgHistogram:
    """The generations of one memory cgroup."""

    #: The number that commands use.
    id: int
    #: Path below the cgroup mount point.
    path: str
    #: The generations on each node, by its number.
    nodes: dict[int, Generations] = field(default_factory=dict)

    def totals(self) -> Generations:
        """Return the generations with the pages of all nodes.

        The age is that of the node where the generation is oldest.
        """
        sums: dict[int, Generation] = {}
        for generation in (each for node in self.nodes.values() for each in node):
            other = sums.get(generation.seq)
            sums[generation.seq] = Generation(
                generation.seq,
                max(generation.age_ms, other.age_ms if other else 0),
                generation.anon + (other.anon if other else 0),
                generation.file + (other.file if other else 0),
            )
        return Generations([sums[seq] for seq in sorted(sums)])

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict."""
        nodes = [{"node": n, "generations": g.to_dict()} for n, g in self.nodes.items()]
        return {"id": self.id, "path": self.path, "nodes": nodes}


def _generation(row: _Row) -> Generation:
    seq, age_ms, anon, file, anon_retired, file_retired, full = row
    if full is None and not (anon_retired or file_retired):
        return Generation(seq, age_ms, anon, file)
    tiers, walk = full or ([], [])
    detail = GenerationDetail(
        anon_retired, file_retired, tuple(tuple(tier) for tier in tiers), tuple(walk)
    )
    return Generation(seq, age_ms, anon, file, detail)


def _row(generation: Generation) -> _Row:
    plain = (generation.seq, generation.age_ms, generation.anon, generation.file)
    detail = generation.detail
    if detail is None:
        return (*plain, False, False, None)
    tiers = [list(tier) for tier in detail.tiers]
    full = (tiers, list(detail.walk)) if tiers or detail.walk else None
    return (*plain, detail.anon_retired, detail.file_retired, full)


def parse(text: str | bytes, *, source: str = "<text>") -> list[MemcgHistogram]:
    """Read what a kernel's ``lru_gen`` or ``lru_gen_full`` printed.

    Args:
        text: The text.
        source: What to call it in errors.

    Raises:
        FormatError: With line and column of the first thing that cannot be.

    """
    data = text.encode() if isinstance(text, str) else bytes(text)
    with format_errors(source):
        found = _core.parse_lru_gen(data)
    histograms = []
    for number, path, nodes in found:
        by_node: dict[int, Generations] = {}
        for node, rows in nodes:
            if node in by_node:
                raise FormatError(source, 1, 1, f"node {node} of memcg {number} is there twice")
            by_node[node] = Generations([_generation(row) for row in rows])
        histograms.append(MemcgHistogram(number, path, by_node))
    return histograms


def read(path: str | Path) -> list[MemcgHistogram]:
    """Read a file, saved or of this very machine, as `parse` does.

    Raises:
        OSError: If it cannot be read.
        FormatError: As `parse`.

    """
    return parse(Path(path).read_bytes(), source=str(path))


def format(histograms: Iterable[MemcgHistogram]) -> str:
    """Return histograms as the kernel prints them."""
    return _core.format_lru_gen(
        [
            (memcg.id, memcg.path, [(n, [_row(g) for g in gs]) for n, gs in memcg.nodes.items()])
            for memcg in histograms
        ]
    )


def parse_counters(text: str | bytes, *, source: str = "<text>") -> dict[str, int]:
    r"""Read what a kernel's ``memory.stat`` or ``/proc/vmstat`` printed.

    They have the names and meanings of `Memcg.stat` and `Host.vmstat`, so that a
    real machine's can be held against the model's.

    >>> parse_counters("anon 4096\nworkingset_refault_anon 7\n")
    {'anon': 4096, 'workingset_refault_anon': 7}

    Args:
        text: The text.
        source: What to call it in errors.

    Raises:
        FormatError: With line and column of the first thing that cannot be.

    """
    data = text.encode() if isinstance(text, str) else bytes(text)
    counters: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line and number == data.count(b"\n") + 1:
            break
        name, space, value = line.partition(b" ")
        if not re.fullmatch(rb"[a-z][a-z0-9_]*", name):
            raise FormatError(source, number, 1, f"expected a counter's name, found {_shown(name)}")
        # Counters that the kernel prints as signed may be briefly below zero.
        if not space or not re.fullmatch(rb"-?[0-9]{1,20}", value):
            column = len(name) + 2
            raise FormatError(source, number, column, f"expected a number, found {_shown(value)}")
        if name.decode() in counters:
            raise FormatError(source, number, 1, f"{name.decode()} is there twice")
        counters[name.decode()] = int(value)
    return counters


def _shown(found: bytes) -> str:
    text = found[:40].decode(errors="backslashreplace")
    return f'"{text}"' if text else "the end of the line"


def read_counters(path: str | Path) -> dict[str, int]:
    """Read a file, saved or of this very machine, as `parse_counters` does.

    Raises:
        OSError: If it cannot be read.
        FormatError: As `parse_counters`.

    """
    return parse_counters(Path(path).read_bytes(), source=str(path))
