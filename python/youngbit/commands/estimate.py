"""The commands ``estimate`` and ``policies``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .. import defaults, lab, traces
from ..experiments.estimate import COSTS, ESTIMATORS, EstimateResult
from ..experiments.policies import ALGORITHMS, PoliciesResult
from ..plot import estimate_working_sets, policy_miss_ratios
from ..sizes import PAGE_SIZE, format_size
from .described import Way, run_described
from .shared import (
    NumberType,
    SizeType,
    json_option,
    named_trace,
    new_table,
    print_option,
    print_table,
    show_progress,
)

__all__ = ["ESTIMATE", "POLICIES", "register"]

_TRACE = click.Path(exists=True, dir_okay=False)


@dataclass(frozen=True)
class _Asked:
    """What both commands are asked alike: which accesses, and where the result goes."""

    trace_file: str | None
    workload: str
    format_: str | None
    memory: int
    accesses: int
    layout: str
    seed: int
    plot: str | None
    print_experiment: bool
    json_to: str | None

    def run(self, way: Way, kind: Callable[..., lab.Experiment], **options: Any) -> None:
        """Run a kind of experiment with its own options on the accesses."""
        run_described(
            way,
            lambda: kind(
                memory=self.memory, seed=self.seed, workload=self._described_workload(), **options
            ),
            print_experiment=self.print_experiment,
            json_to=self.json_to,
            plot=self.plot,
        )

    def _described_workload(self) -> lab.Zipf | lab.HotCold | lab.TraceWorkload:
        if self.trace_file is not None or self.workload == "trace":
            named = named_trace(self.trace_file, self.format_, absolute=self.print_experiment)
            return lab.TraceWorkload(named.file, named.format, self.layout)
        kind = lab.Zipf if self.workload == "zipf" else lab.HotCold
        return kind(self.accesses)


def _asks(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `_Asked`, which is the function's first argument."""

    @wraps(function)
    def asked(**given: Any) -> None:
        alike = {name: given.pop(name) for name in _Asked.__dataclass_fields__}
        function(_Asked(**alike), **given)

    for option in (
        click.argument("trace_file", metavar="[TRACE]", required=False, type=_TRACE),
        click.option("--workload", type=click.Choice(("zipf", "hot-cold", "trace")),
                     default="trace", show_default=True,
                     help="Instead of TRACE: made-up accesses, or the trace that comes with the"
                     " package."),
        click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
                     help="Format of TRACE; otherwise by its ending."),
        click.option("--memory", type=SizeType(), default=defaults.RECLAIM_MEMORY,
                     show_default=True, help="Footprint of zipf and hot-cold."),
        click.option("--accesses", type=click.IntRange(1), default=defaults.RECLAIM_ACCESSES,
                     show_default=True, help="Accesses of zipf and hot-cold."),
        click.option("--layout", type=click.Choice(defaults.LAYOUTS), default="touch",
                     show_default=True,
                     help="How pages of a trace become the guest's: numbered by first touch, or"
                     " by address without the gaps."),
        click.option("--seed", type=NumberType(), default=f"{defaults.SEED:#x}", show_default=True,
                     help="Of everything random."),
        click.option("--plot", metavar="FILE", help="Draw it, as PNG or SVG."),
        print_option,
        json_option,
    ):  # fmt: skip
        asked = option(asked)
    return asked


def _about(workload: dict[str, Any]) -> str:
    return f"{workload['name']}: {workload['accesses']:,} accesses to {workload['pages']:,} pages"


@click.command()
@click.option("--every", type=click.IntRange(1), default=None, metavar="N",
              help="Accesses in an interval; otherwise 4000, or a sixteenth of fewer than"
              " 64000.")  # fmt: skip
@click.option("--warm-up", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Intervals at the start that are not counted.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.REPLAY_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB; 0 for none.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How the VM is aged.")  # fmt: skip
@click.option("--estimator", "estimators", type=click.Choice(tuple(ESTIMATORS)), multiple=True,
              help="Only this one; may be given several times.")  # fmt: skip
@_asks
def estimate(asked: _Asked, estimators: tuple[str, ...], **options: Any) -> None:
    """Compare ways of asking which pages of a guest were accessed with the truth.

    Each runs on the same accesses: those of TRACE, a recorded program, or of
    --workload. docs/estimators.md says what the columns mean.
    """
    asked.run(
        ESTIMATE, lab.EstimateDescription, estimators=estimators or tuple(ESTIMATORS), **options
    )


def _estimate(experiment: lab.EstimateDescription, base: Path | None, _quiet: bool) -> lab.Result:
    with show_progress("estimate", len(experiment.estimators)) as advance:
        return lab.run(experiment, base=base, finished=advance)


def _estimate_text(found: lab.Result) -> None:
    result: EstimateResult = found.detail
    parameters = result.parameters
    intervals = result.estimators[0].intervals
    true = sum(each.true_pages for each in intervals) / len(intervals)
    click.echo(
        f"{_about(result.workload)}, {len(intervals)} intervals of {parameters['every']:,};"
        f" {true:,.0f} pages touched in one; TLB of {parameters['tlb_entries']:,}"
    )
    names = [name.replace("_", " ") for name in COSTS]
    table = new_table(
        "estimator", "precision", "recall", "size error", "age error", *names, left=("estimator",)
    )
    for each in result.estimators:
        table.add_row(
            each.what,
            f"{each.precision:.4f}",
            f"{each.recall:.4f}",
            f"{each.working_set_error:.1%}",
            f"{each.age_error:.3f}",
            *(f"{each.cost[name]:,}" for name in COSTS),
        )
    print_table(table)


@click.command()
@click.option("--size", "sizes", type=click.FloatRange(0, 1, min_open=True), multiple=True,
              help="Share of the footprint that may stay; may be given several times."
              " Otherwise eighths."
              )  # fmt: skip
@click.option("--algorithm", "algorithms", type=click.Choice(ALGORITHMS), multiple=True,
              help="Only this one; may be given several times.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.RECLAIM_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB under MGLRU; 0 for none.")  # fmt: skip
@_asks
def policies(
    asked: _Asked, sizes: tuple[float, ...], algorithms: tuple[str, ...], tlb_entries: int
) -> None:
    """Compare reclaim policies at equal memory: MGLRU, and cache algorithms.

    Each runs on the same pages: those of TRACE, a recorded program, or of
    --workload. Shown are misses as a share of accesses, for each size of memory;
    belady is the least that there can be.
    """
    asked.run(
        POLICIES,
        lab.PoliciesDescription,
        sizes=sizes or None,
        algorithms=algorithms or None,
        tlb_entries=tlb_entries,
    )


def _policies(experiment: lab.PoliciesDescription, base: Path | None, _quiet: bool) -> lab.Result:
    with show_progress("policies", None) as advance:
        return lab.run(experiment, base=base, finished=advance)


def _policies_text(found: lab.Result) -> None:
    result: PoliciesResult = found.detail
    click.echo(f"{_about(result.workload)}; miss ratio by memory")
    shown = [f"{size:,} ({format_size(size * PAGE_SIZE)})" for size in result.sizes]
    table = new_table("pages", *shown, left=("pages",))
    for name in result.names:
        table.add_row(name, *(f"{ratio:.4f}" for ratio in result.curve(name)[1]))
    table.add_row("refaults:", *("" for _ in shown))
    for name in result.names:
        table.add_row(name, *(f"{result.row(name, size).refaults:,}" for size in result.sizes))
    print_table(table)
    for reason in sorted(set(result.left_out.values())):
        names = ", ".join(name for name, why in result.left_out.items() if why == reason)
        click.echo(f"Left out: {names}. {reason}")


ESTIMATE = Way(_estimate, _estimate_text, draw=estimate_working_sets)
POLICIES = Way(_policies, _policies_text, draw=policy_miss_ratios)


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (estimate, policies):
        group.add_command(command)
