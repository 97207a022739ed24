"""The commands ``lru-gen``, ``conformance`` and ``reclaim``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from . import defaults, lab, traces
from ._files import atomic_write
from .cli import (
    EXIT_FAILED,
    _check_picture,
    _check_target,
    _json_option,
    _Number,
    _print_option,
    _progress,
    _Size,
    _trace_file,
    _write_json,
)
from .experiments.reclaim import RUNS, ReclaimResult
from .experiments.scenario import (
    Conformance,
    ConformanceResult,
    Scenario,
    ScenarioResult,
    ScenarioStep,
)
from .sizes import PAGE_SIZE, format_size

__all__ = ["register"]


def _print_table(table: Table) -> None:
    # A pipe has no width; do not fold its lines.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


def _table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    return table


@click.command("lru-gen")
@click.argument("scenario", type=click.Path(exists=True, dir_okay=False))
@click.option("--capabilities", type=_Number(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.SCENARIO_MMUS), default=defaults.MMU,
              show_default=True, help="Which MMU maps a guest's memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How a VM is aged.")  # fmt: skip
@click.option("--aging-asks", type=click.Choice(("none", "accurate")), default=None,
              help="What aging asks in the baseline's kernel: nothing before 6.12-rc6,"
              " else the accurate notifier.")  # fmt: skip
@click.option("--no-ad", "no_ad", is_flag=True, help="Page tables without A/D bits.")
@click.option("--swap", type=click.IntRange(0, 1 << 31), default=defaults.SCENARIO_SWAP_PAGES,
              show_default=True, metavar="PAGES", help="Slots of the swap device.")  # fmt: skip
@_json_option
def lru_gen(
    scenario: str,
    capabilities: int,
    mmu: str,
    protocol: str,
    aging_asks: str | None,
    no_ad: bool,
    swap: int,
    json_to: str | None,
) -> None:
    """Run SCENARIO, and print what is there after each step.

    The language is that of docs/scenarios.md. With --json the run is written as
    a recording: one JSON object a line, the conditions first, then the steps.
    """
    _check_target(json_to)
    try:
        experiment = Scenario(
            capabilities=capabilities,
            mmu=mmu,
            protocol=protocol,
            aging_asks=aging_asks,
            ad=not no_ad,
            swap_pages=swap,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    quiet = json_to == "-"

    def stepped(step: ScenarioStep) -> None:
        if not quiet:
            click.echo("\n".join(_step_lines(step)))

    result = experiment.run(scenario, stepped=stepped)
    _write_recording(result, json_to)


def _step_lines(step: ScenarioStep) -> list[str]:
    record = step.record
    error = f"  errno {step.errno}" if step.errno else ""
    lines = [f"step {record['step']}, line {step.line}: {record['op']} {record['args']}".rstrip()]
    lines[0] += error
    if "command" in record:
        lines.append(f"  command     {record['command']}")
    generations = "  ".join(f"{n}: {a}+{f}" for n, (a, f) in record["generations"].items())
    lines.append(f"  generations {generations}")
    for name, region in record["regions"].items():
        cached = f", {region['incore']} cached" if "incore" in region else ""
        lines.append(
            f"  region      {name}: {region['kind']}, {region['pages']} pages,"
            f" {region['present']} present, {region['swapped']} swapped{cached}"
        )
    if calls := {key: n for key, n in record.get("trace", {}).items() if n}:
        lines.append("  hooks       " + "  ".join(f"{key} {n}" for key, n in calls.items()))
    if stat := {key: n for key, n in record["memory_stat"].items() if n}:
        lines.append("  memory.stat " + "  ".join(f"{key} {n}" for key, n in stat.items()))
    if counted := {key: n for key, n in step.counters.items() if n}:
        lines.append("  counted     " + "  ".join(f"{key} {n}" for key, n in counted.items()))
    return lines


def _write_recording(result: ScenarioResult, to: str | None) -> None:
    if to == "-":
        sys.stdout.write(result.to_jsonl())
        sys.stdout.flush()
    elif to is not None:
        with atomic_write(to) as file:
            file.write(result.to_jsonl())


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@_json_option
def conformance(directory: str, json_to: str | None) -> None:
    """Compare every recording of a real kernel in DIRECTORY with the model.

    DIRECTORY has scenarios/NAME.scn and FOLDER/*.jsonl, as
    tests/data/conformance has. Exits 0 only if every step of every recording is
    equal by the rules of docs/scenarios.md, 1 if not, 2 if there is nothing to
    compare.
    """
    _check_target(json_to)
    experiment = Conformance(directory)
    files = experiment.files()
    if not files:
        raise click.UsageError(f"{directory}: has no recordings, FOLDER/*.jsonl")
    result = ConformanceResult(directory)
    with _progress("conformance", len(files)) as advance:
        for each in experiment.run():
            result.recordings.append(each)
            advance(each.file)
    if json_to != "-":
        _print_conformance(result)
    if json_to is not None:
        _write_json(result.to_dict(), json_to)
    for each in result.recordings:
        if not each.compared:
            click.echo(f"youngbit: {each.file}: {each.first_difference}", err=True)
    if not result.is_equal:
        raise SystemExit(EXIT_FAILED)


def _print_conformance(result: ConformanceResult) -> None:
    table = _table("recording", "steps", "equal", "first difference",
                   left=("recording", "first difference"))  # fmt: skip
    for each in result.recordings:
        table.add_row(
            each.file, str(each.steps), str(each.equal_steps), each.first_difference or ""
        )
    _print_table(table)
    click.echo(f"{result.nr_equal} of {len(result.recordings)} recordings are equal")


@click.command()
@click.option("--workload", "source", default="zipf", show_default=True, metavar="NAME|FILE",
              help="zipf, hot-cold (with phases), trace (the recorded program that comes with"
              " the package), or a trace file.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of a trace file; otherwise by its ending.")  # fmt: skip
@click.option("--memory", type=_Size(), default=defaults.RECLAIM_MEMORY, show_default=True,
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
@click.option("--seed", type=_Number(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw the runs over time, .png or .svg.")
@_print_option
@_json_option
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
    _check_target(json_to)
    _check_picture(plot)
    workload = _workload(source, format_, accesses, absolute=print_experiment)
    try:
        experiment = lab.ReclaimDescription(memory=memory, workload=workload, **options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if print_experiment:
        click.echo(lab.to_toml(experiment), nl=False)
        return
    _show_reclaim(experiment, json_to, plot=plot)


def _show_reclaim(
    experiment: lab.ReclaimDescription,
    json_to: str | None,
    *,
    plot: str | None = None,
    base: Path | None = None,
) -> lab.Result:
    with _progress("reclaim", None) as advance:
        found = lab.run(experiment, base=base, ticked=lambda name: advance(f"reclaim, 0x8 {name}"))
    result: ReclaimResult = found.detail
    if json_to != "-":
        _print_reclaim(result)
    if json_to is not None:
        _write_json(result.to_dict(), json_to)
    if plot is not None:
        from .plot import reclaim_over_time

        reclaim_over_time(result, plot)
        if json_to != "-":
            click.echo(f"Wrote {plot}")
    return found


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
    named = _trace_file(source, format_, absolute=absolute)
    return lab.TraceWorkload(named.file, named.format)


def _print_reclaim(result: ReclaimResult) -> None:
    about, parameters = result.workload, result.parameters
    capacity = parameters["capacity"]
    click.echo(
        f"{about['name']}: {about['accesses']:,} accesses to {about['pages']:,} pages,"
        f" {capacity:,} may stay ({format_size(capacity * PAGE_SIZE)});"
        f" pressure: {parameters['pressure']}, intervals of {parameters['every']:,},"
        f" hot: used again within {parameters['window']:,};"
        f" {len(result.phases)} phases, added up"
    )
    table = _table("", "0x8 off", "0x8 on", "cut", "from", "to", "exact LRU", "oracle", left=("",))
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
    _print_table(table)
    for cause in result.causes():
        click.echo(cause)
    for name in ("off", "on"):
        missed = sum(getattr(phase, name).missed_rounds for phase in result.phases)
        if missed:
            click.echo(f"0x8 {name}: {missed} rounds did not get down to the limit")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share * 100:.1f}%"


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (lru_gen, conformance, reclaim):
        group.add_command(command)
