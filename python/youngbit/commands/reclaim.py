"""The command ``reclaim``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import defaults, lab, traces
from ..experiments.reclaim import RUNS, ReclaimResult
from ..plot import reclaim_over_time
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

__all__ = ["WAY", "register"]


@click.command()
@click.option("--workload", "source", default="zipf", show_default=True, metavar="NAME|FILE",
              help="zipf, hot-cold (with phases), trace (the recorded program that comes with"
              " the package), or a trace file.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of a trace file; otherwise by its ending.")  # fmt: skip
@click.option("--memory", type=SizeType(), default=defaults.RECLAIM_MEMORY, show_default=True,
              help="Guest memory of zipf and hot-cold.")  # fmt: skip
@click.option("--accesses", type=click.IntRange(1), default=defaults.RECLAIM_ACCESSES,
              show_default=True, help="Accesses of zipf and hot-cold.")  # fmt: skip
@click.option("--limit", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              default=defaults.RECLAIM_LIMIT, show_default=True,
              help="Share of the footprint that may stay in memory.")  # fmt: skip
@click.option("--pressure", type=click.Choice(defaults.RECLAIM_PRESSURES),
              default="proactive", show_default=True,
              help="proactive: an agent ages by + and evicts by - commands; reclaim: it writes"
              " memory.reclaim; max, high: the limit is memory.max or memory.high.")  # fmt: skip
@click.option("--aged", is_flag=True,
              help="An agent ages each interval whoever reclaims, as with proactive anyway."
              )  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=None, metavar="N",
              help="Accesses between two agings; otherwise as many as touch a third of the"
              " footprint.")  # fmt: skip
@click.option("--round", type=click.IntRange(1), default=defaults.RECLAIM_ROUND,
              show_default=True, metavar="N", help="Agings between two rounds of eviction."
              )  # fmt: skip
@click.option("--window", type=click.IntRange(1), default=None, metavar="N",
              help="An evicted page is hot if it is used again within N accesses; otherwise"
              " within --every.")  # fmt: skip
@click.option("--phases", type=click.IntRange(1, 64), default=defaults.RECLAIM_PHASES,
              show_default=True, metavar="N",
              help="Run everything N times, each time with the first round a share of a round"
              " later, and add up.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.RECLAIM_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB; 0 for none.")  # fmt: skip
@click.option("--swap-in-us", type=click.FloatRange(0, 1e9, max_open=True),
              default=defaults.RECLAIM_SWAP_IN_US, show_default=True, metavar="US",
              help="What the guest waits for a page from swap.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw the runs over time, .png or .svg.")
@print_option
@json_option
def reclaim(
    source: str,
    format_: str | None,
    memory: int,
    accesses: int,
    plot: str | None,
    print_experiment: bool,
    json_to: str | None,
    **options: Any,
) -> None:
    """Reclaim from a guest with secondary MMU walks off (0x7) and on (0xf).

    Beside both stands an oracle that knows the future. Counted are evictions of
    hot pages, refaults, pages read from swap, and what the guest waits for them.
    """
    run_described(
        WAY,
        lambda: lab.ReclaimDescription(
            memory=memory,
            workload=_workload(source, format_, accesses, absolute=print_experiment),
            **options,
        ),
        print_experiment=print_experiment,
        json_to=json_to,
        plot=plot,
    )


def _run(experiment: lab.ReclaimDescription, base: Path | None, _quiet: bool) -> lab.Result:
    with show_progress("reclaim", None) as advance:
        return lab.run(experiment, base=base, ticked=lambda name: advance(f"reclaim, 0x8 {name}"))


def _workload(
    source: str, format_: str | None, accesses: int, *, absolute: bool
) -> lab.Zipf | lab.HotCold | lab.TraceWorkload:
    if source == "zipf":
        return lab.Zipf(accesses)
    if source == "hot-cold":
        return lab.HotCold(accesses)
    if source == "trace":
        return lab.TraceWorkload()
    if not Path(source).exists():
        known = ", ".join(defaults.RECLAIM_WORKLOADS)
        raise click.UsageError(f"--workload: {source!r} is none of {known}, and no file")
    named = named_trace(source, format_, absolute=absolute)
    return lab.TraceWorkload(named.file, named.format)


def _text(found: lab.Result) -> None:
    result: ReclaimResult = found.detail
    about, parameters = result.workload, result.parameters
    capacity = parameters["capacity"]
    click.echo(
        f"{about['name']}: {about['accesses']:,} accesses to {about['pages']:,} pages,"
        f" {capacity:,} may stay ({format_size(capacity * PAGE_SIZE)});"
        f" pressure: {parameters['pressure']}, intervals of {parameters['every']:,},"
        f" hot: used again within {parameters['window']:,};"
        f" {len(result.phases)} phases, added up"
    )
    table = new_table(
        "", "0x8 off", "0x8 on", "cut", "from", "to", "exact LRU", "oracle", left=("",)
    )
    shown: list[tuple[str, str, Callable[[float], str]]] = [
        ("evicted", "pages evicted", lambda n: f"{n:,}"),
        ("hot", "  used soon after: hot", lambda n: f"{n:,}"),
        ("recent", "  used just before", lambda n: f"{n:,}"),
        ("refaults", "refaults", lambda n: f"{n:,}"),
        ("swap_ins", "pages swapped in", lambda n: f"{n:,}"),
        ("stall_seconds", "guest stall, s", lambda n: f"{n:.3f}"),
    ]
    for name, title, text in shown:
        off, on, lru, oracle = (text(result.total(run, name)) for run in RUNS)
        each = [cut for cut in result.cuts(name) if cut is not None]
        spread = (_percent(min(each)), _percent(max(each))) if each else ("", "")
        table.add_row(title, off, on, _percent(result.cut(name)), *spread, lru, oracle)
    for key, title in (
        ("pgscan", "pages scanned"),
        ("notifier_clear_young_slow", "accurate notifier calls"),
        ("notifier_clear_young_fast", "fast notifier calls"),
    ):
        before, after = result.counter("off", key), result.counter("on", key)
        cut = _percent((before - after) / before if before else None)
        table.add_row(title, f"{before:,}", f"{after:,}", cut, "", "", "", "")
    print_table(table)
    for cause in result.causes():
        click.echo(cause)
    for name in ("off", "on"):
        missed = sum(getattr(phase, name).missed_rounds for phase in result.phases)
        if missed:
            click.echo(f"0x8 {name}: {missed} rounds did not get down to the limit")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f}%"


WAY = Way(_run, _text, draw=reclaim_over_time)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(reclaim)
