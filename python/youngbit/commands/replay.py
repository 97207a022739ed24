"""The command ``replay``."""

from __future__ import annotations

from pathlib import Path

import click

from .. import defaults, lab, traces
from ..experiments import ReplayResult
from ..plot import generations_over_time
from .described import Way, run_described
from .shared import (
    NumberType,
    json_option,
    named_trace,
    new_table,
    print_option,
    print_table,
    show_progress,
)

__all__ = ["WAY", "register"]


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
    run_described(
        WAY,
        lambda: lab.ReplayDescription(
            every=every,
            tlb_entries=tlb_entries,
            protocol=protocol,
            capabilities=capabilities,
            trace=named_trace(trace, format_, absolute=print_experiment),
        ),
        print_experiment=print_experiment,
        json_to=json_to,
        plot=plot,
    )


def _run(experiment: lab.ReplayDescription, base: Path | None, _quiet: bool) -> lab.Result:
    total = -(-len(experiment.trace.read(base)) // experiment.every)
    with show_progress("replay", total) as advance:
        return lab.run(experiment, base=base, passed=lambda each: advance(f"pass {each.number}"))


def _text(found: lab.Result) -> None:
    result: ReplayResult = found.detail
    about = result.trace
    click.echo(
        f"{about['source']}: {about['events']:,} accesses to {about['pages']:,} pages,"
        f" aged every {result.parameters['every']:,}"
    )
    generations = "generations: pages, oldest first"
    table = new_table(
        "pass", "accesses", generations, "touched", "estimated", "precision", "recall",
        "aging ms", left=(generations,),
    )  # fmt: skip
    for each in result.passes:
        table.add_row(
            str(each.number),
            f"{each.accesses:,}",
            "  ".join(f"{g.seq}: {g.nr_pages}" for g in each.generations),
            f"{each.true_pages:,}",
            f"{each.estimated_pages:,}",
            f"{each.precision:.4f}",
            f"{each.recall:.4f}",
            f"{each.aging.seconds * 1e3:.3f}",
        )
    print_table(table)


WAY = Way(_run, _text, draw=generations_over_time)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(replay)
