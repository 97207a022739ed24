"""The command ``plot``: pictures of a trace, and of how well aging follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import access, defaults, traces
from .cli import _check_picture, _progress

if TYPE_CHECKING:
    from .experiments import ReplayResult

__all__ = ["register"]

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
    _check_picture(output)
    recorded = traces.shipped() if trace is None else traces.read(trace, format_)
    from . import plot as pictures

    if kind in ("generations", "working-set"):
        result = _replay(recorded, every, tlb_entries)
        draw = {
            "generations": pictures.generations_over_time,
            "working-set": pictures.replay_working_set,
        }[kind]
        draw(result, output)
    else:
        from . import reuse

        stream = access.trace(recorded)
        name = recorded.source
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
    from .experiments import Replay

    with _progress("plot", -(-len(recorded) // every)) as advance:
        experiment = Replay(every=every, tlb_entries=tlb_entries)
        return experiment.run(recorded, passed=lambda each: advance(f"pass {each.number}"))


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(plot)
