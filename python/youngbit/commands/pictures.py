"""The commands ``plot`` and ``heatmap``: pictures of a trace, and of how aging follows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import access, defaults, lab, traces
from ..plot import heat_map
from ..plot.canvas import short
from .described import Way, run_described
from .shared import NumberType, check_picture, json_option, named_trace, print_option, show_progress

if TYPE_CHECKING:
    from ..experiments import ReplayResult

__all__ = ["HEAT_MAP", "register"]

#: Where a heat map is drawn, unless said otherwise.
_PICTURE = "heatmap.png"
#: What can be drawn, and what it shows.
KINDS = {
    "generations": "pages in each generation after each aging pass",
    "working-set": "pages touched between two passes, estimate and truth",
    "miss-ratios": "what LRU and the optimum would miss, over sizes of memory",
    "reuse": "distribution of the distance between two uses of a page",
}


@click.command("plot")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("trace", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", required=True, metavar="FILE",
              help="The picture, .png or .svg.")  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=defaults.REPLAY_EVERY, show_default=True,
              metavar="N", help="Accesses between two aging passes, for the first two."
              )  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.REPLAY_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB, for the first two.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of TRACE; otherwise by its ending.")  # fmt: skip
def plot(
    kind: str, trace: str | None, output: str, every: int, tlb_entries: int, format_: str | None
) -> None:
    """Draw a picture of TRACE, otherwise of the one that comes with the package.

    KIND is what to draw. "generations" and "working-set" replay the trace as a
    guest that is aged every so many accesses; "miss-ratios" and "reuse" are
    exact figures of the trace itself.
    """
    check_picture(output)
    recorded = traces.shipped() if trace is None else traces.read(trace, format_)
    from .. import plot as pictures

    if kind in ("generations", "working-set"):
        result = _replay(recorded, every, tlb_entries)
        draw = {
            "generations": pictures.generations_over_time,
            "working-set": pictures.replay_working_set,
        }[kind]
        draw(result, output)
    else:
        from .. import reuse

        stream = access.trace(recorded)
        name = short(recorded.source)
        if kind == "miss-ratios":
            curves = [reuse.lru_misses(stream), reuse.optimal_misses(stream)]
            pictures.miss_ratio_curves(curves, output, title=f"Misses of {name}")
        else:
            pictures.distributions(
                {name: reuse.distances(stream)},
                output,
                unit="other pages of 4 KiB since the page was used last",
                title=f"Reuse distances of {name}",
            )
    click.echo(f"Wrote {output}")


def _replay(recorded: traces.Trace, every: int, tlb_entries: int) -> ReplayResult:
    from ..experiments import Replay

    with show_progress("plot", -(-len(recorded) // every)) as advance:
        experiment = Replay(every=every, tlb_entries=tlb_entries)
        return experiment.run(recorded, passed=lambda each: advance(f"pass {each.number}"))


@click.command()
@click.argument(
    "trace_file", metavar="[TRACE]", required=False, type=click.Path(exists=True, dir_okay=False)
)
@click.option("-o", "--output", default=_PICTURE, show_default=True, metavar="FILE",
              help="The picture, PNG or SVG.")  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=None, metavar="N",
              help="Accesses between two aging passes; otherwise 4000, or a sixteenth of fewer"
              " than 64000.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.REPLAY_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB; 0 for none.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How the VM is aged.")  # fmt: skip
@click.option("--capabilities", type=NumberType(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--layout", type=click.Choice(defaults.LAYOUTS), default="address",
              show_default=True, help="How pages become the guest's: by address without the gaps,"
              " or by first touch.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of TRACE; otherwise by its ending.")  # fmt: skip
@print_option
@json_option
def heatmap(
    trace_file: str | None,
    output: str,
    format_: str | None,
    print_experiment: bool,
    json_to: str | None,
    **options: Any,
) -> None:
    """Draw accesses over address and time, with the generation of each page beside them.

    TRACE is a recorded program; without it the one that comes with the package
    is drawn.
    """
    run_described(
        HEAT_MAP,
        lambda: lab.HeatMapDescription(
            trace=named_trace(trace_file, format_, absolute=print_experiment), **options
        ),
        print_experiment=print_experiment,
        json_to=json_to,
        plot=output,
    )


def _run(experiment: lab.HeatMapDescription, base: Path | None, _quiet: bool) -> lab.Result:
    return lab.run(experiment, base=base)


def _text(found: lab.Result) -> None:
    """Say nothing: what there is to see is drawn."""


HEAT_MAP = Way(_run, _text, draw=heat_map, picture=_PICTURE)


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (plot, heatmap):
        group.add_command(command)
