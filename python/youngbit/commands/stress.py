"""The command ``mmu-stress``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .. import defaults, lab
from ..experiments import StressResult
from .described import INTERRUPTED, Way, run_described
from .shared import NumberType, json_option, print_option

__all__ = ["WAY", "register"]

#: What is printed of the counters.
COUNTERS = (
    "kvm_page_faults",
    "fast_page_faults",
    "sptes_aged",
    "sptes_zapped",
    "shadow_pages_recycled",
    "tlb_flushes",
    "pswpout",
    "pswpin",
    "poison_reads",
)


if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    # Generic only in recent versions.
    _FloatType = click.ParamType


class _Seconds(_FloatType):
    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not (math.isfinite(seconds) and 0 < seconds <= 1e6):
            self.fail(f"{value!r} is not above 0 and at most a million seconds", param, ctx)
        return seconds


@click.command("mmu-stress")
@click.option("--threads", type=click.IntRange(1, defaults.STRESS_MAX_THREADS),
              default=defaults.STRESS_THREADS, show_default=True,
              help="vCPUs, each a thread.")  # fmt: skip
@click.option("--agers", type=click.IntRange(0, defaults.STRESS_MAX_AGERS),
              default=defaults.STRESS_AGERS, show_default=True,
              help="Threads that age.")  # fmt: skip
@click.option("--seconds", type=_Seconds(), default=defaults.STRESS_SECONDS, show_default=True,
              help="For how long rounds are begun; the last is cut short.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=None,
              help="So many rounds, however long they take.")  # fmt: skip
@click.option("--accesses", type=click.IntRange(1), default=defaults.STRESS_ACCESSES,
              show_default=True, help="Accesses of each vCPU in a round.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=defaults.SEED, show_default=True,
              help="Seed of the first round; each next one's follows from it.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How machines are aged.")  # fmt: skip
@print_option
@json_option
def mmu_stress(
    threads: int,
    agers: int,
    seconds: float,
    rounds: int | None,
    accesses: int,
    seed: int,
    mmu: str,
    protocol: str,
    print_experiment: bool,
    json_to: str | None,
) -> None:
    """Do everything to virtual machines at once, and check them.

    Each round makes a machine from its seed, runs it while others age it, move
    its memory, swap it out, log its writes and rewrite its page tables, and then
    checks it and takes it apart. Exits with 1 if anything was wrong, and prints
    the command that repeats the round; how threads interleave is not repeated,
    so it may have to be run more than once.
    """
    run_described(
        WAY,
        lambda: lab.Stress(
            threads=threads,
            agers=agers,
            duration=seconds,
            rounds=rounds,
            accesses=accesses,
            seed=seed,
            mmu=mmu,
            protocol=protocol,
        ),
        print_experiment=print_experiment,
        json_to=json_to,
    )


def _run(experiment: lab.Stress, _base: Path | None, _quiet: bool) -> lab.Result:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    results: list[StressResult] = []
    with Progress(*columns, console=console, transient=True,
                  disable=not console.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("", total=None)

        def accessed(accesses: int) -> None:
            done = results[0].rounds + 1
            progress.update(task, description=f"round {done}, {accesses:,} accesses")

        try:
            found = lab.run(experiment, began=results.append, accessed=accessed)
        except KeyboardInterrupt:
            return lab.Result({"status": INTERRUPTED}, {}, results[0])
    if (failure := found.detail.failure) is not None:
        click.echo(f"youngbit: {failure.what}", err=True)
        click.echo(f"machine: {failure.machine}", err=True)
        click.echo(f"repeat: {failure.repeat}", err=True)
    return found


def _text(found: lab.Result) -> None:
    result: StressResult = found.detail
    asked = result.experiment
    click.echo(
        f"{asked.mmu} {asked.protocol}: {result.rounds} rounds,"
        f" {result.accesses:,} accesses, {result.wall_seconds:.1f} s, seed {asked.seed:#x}"
    )
    chosen = {name: result.counters.get(name, 0) for name in COUNTERS}
    for name, n in {**result.deeds, **chosen}.items():
        click.echo(f"{n:>14,}  {name.replace('_', ' ')}")
    click.echo("nothing was lost" if result.failure is None else "FAILED")


WAY = Way(_run, _text)


def register(group: click.Group) -> None:
    """Add the command."""
    group.add_command(mmu_stress)
