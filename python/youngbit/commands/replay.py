"""The command ``replay``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .. import defaults, lab, traces
from ..experiments import ReplayPass, ReplayResult
from .shared import (
    NumberType,
    check_picture,
    check_target,
    json_option,
    named_trace,
    print_option,
    show_progress,
    write_json,
)

__all__ = ["register", "show_replay"]


@click.command()
@click.argument("trace", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--every", type=click.IntRange(1), default=defaults.REPLAY_EVERY, show_default=True,
              metavar="N", help="Accesses between two aging passes.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.REPLAY_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB; 0 makes the estimate exact.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How the VM is aged.")  # fmt: skip
@click.option("--capabilities", type=NumberType(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of TRACE; otherwise by its ending.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw the generations over time, .png or .svg.")
@print_option
@json_option
def replay(
    trace: str | None,
    every: int,
    tlb_entries: int,
    protocol: str,
    capabilities: int,
    format_: str | None,
    plot: str | None,
    print_experiment: bool,
    json_to: str | None,
) -> None:
    """Replay TRACE, a recorded program, as guest accesses; age as it goes.

    TRACE is an .npz, CSV or lackey recording (docs/traces.md); without it the
    one that comes with the package is replayed.
    """
    check_target(json_to)
    check_picture(plot)
    experiment = lab.ReplayDescription(
        every=every,
        tlb_entries=tlb_entries,
        protocol=protocol,
        capabilities=capabilities,
        trace=named_trace(trace, format_, absolute=print_experiment),
    )
    if print_experiment:
        click.echo(lab.to_toml(experiment), nl=False)
        return
    show_replay(experiment, json_to, plot=plot)


def show_replay(
    experiment: lab.ReplayDescription,
    json_to: str | None,
    *,
    plot: str | None = None,
    base: Path | None = None,
) -> lab.Result:
    """Run it and print what the command prints; names of files start at ``base``."""
    total = -(-len(experiment.trace.read(base)) // experiment.every)
    with show_progress("replay", total) as advance:

        def passed(each: ReplayPass) -> None:
            advance(f"pass {each.number}")

        found = lab.run(experiment, base=base, passed=passed)
    result: ReplayResult = found.detail
    if json_to != "-":
        _print_replay(result)
    if json_to is not None:
        write_json(result.to_dict(), json_to)
    if plot is not None:
        from ..plot import generations_over_time

        generations_over_time(result, plot)
        if json_to != "-":
            click.echo(f"Wrote {plot}")
    return found


def _print_replay(result: ReplayResult) -> None:
    about = result.trace
    click.echo(
        f"{about['source']}: {about['events']:,} accesses to {about['pages']:,} pages,"
        f" aged every {result.parameters['every']:,}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("pass", "accesses", "generations: pages, oldest first", "touched", "estimated",
                 "precision", "recall", "aging ms"):  # fmt: skip
        table.add_column(name, justify="left" if name.startswith("gen") else "right")
    for each in result.passes:
        generations = "  ".join(f"{g.seq}: {g.nr_pages}" for g in each.generations)
        table.add_row(
            str(each.number),
            f"{each.accesses:,}",
            generations,
            f"{each.true_pages:,}",
            f"{each.estimated_pages:,}",
            f"{each.precision:.4f}",
            f"{each.recall:.4f}",
            f"{each.aging.seconds * 1e3:.3f}",
        )
    # A pipe has no width; do not fold its lines.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(replay)
