"""The commands ``run``, ``aging`` and ``sweep``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import defaults, lab
from .._core import build_info
from ..lab import store
from ..lab.columns import COUNTERS
from ..lab.experiment import failed
from . import access_tracking, contention, estimate, pictures, reclaim, replay, stress
from .described import INTERRUPTED, Way, exit_by_verdict, run_described, show
from .shared import (
    EXIT_FAILED,
    NumberType,
    SizeType,
    check_picture,
    check_target,
    json_option,
    new_table,
    print_option,
    print_table,
    show_progress,
    write_json,
)

__all__ = ["register"]

#: Failed runs that are printed with their errors.
_SHOWN = 10


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--results", metavar="DIR", help="Keep the result as tables in this directory.")
@click.option("--plot", metavar="FILE", help="Draw it as its command does, .png or .svg.")
@json_option
def run(file: str, results: str | None, plot: str | None, json_to: str | None) -> None:
    """Run the experiment that FILE, a TOML file, describes.

    docs/experiments.md says what it may hold; any experiment's own command
    prints one to start from with --print-experiment.
    """
    check_target(json_to)
    experiment = lab.read(file)
    way = WAYS.get(type(experiment), _ANY)
    if plot is json_to is results is None:
        plot = way.picture
    check_picture(plot)
    if plot is not None and way.draw is None:
        raise click.UsageError("--plot: there is no picture of this kind of experiment")
    with contextlib.ExitStack() as stack:
        if results is not None:
            store.arrow()
            kept = stack.enter_context(store.Store(results, lab.Sweep.of(experiment)))
            way = _keeping(way, kept)
        found = show(way, experiment, json_to, plot=plot, base=Path(file).parent)
        if results is not None and json_to != "-":
            click.echo(f"Wrote {results}")
    exit_by_verdict(found)


def _keeping(way: Way, kept: store.Store) -> Way:
    """Keep what comes out before it is shown, and what went wrong as a sweep would."""

    def keep(found: lab.Result) -> None:
        # What says where and when is of a sweep's runs.
        kept.add((0, found.row, found.passes))
        kept.compact()

    def run(experiment: lab.Experiment, base: Path | None, quiet: bool) -> lab.Result:
        try:
            found = way.run(experiment, base, quiet)
        except Exception as error:
            # What is there already is worth more.
            if "ok" not in kept.finished.values():
                keep(failed(experiment, error))
            raise
        if found.row["status"] != INTERRUPTED:
            keep(found)
        return found

    return dataclasses.replace(way, run=run)


def _run_any(experiment: lab.Experiment, base: Path | None, _quiet: bool) -> lab.Result:
    """Run a kind that has no command of its own."""
    return lab.run(experiment, base=base)


def _run_aging(experiment: lab.Aging, base: Path | None, _quiet: bool) -> lab.Result:
    with show_progress("aging", None) as advance:
        return lab.run(experiment, base=base, passed=lambda each: advance(f"pass {each.number}"))


def _plain(found: lab.Result) -> dict[str, Any]:
    """Return a result as a plain dict; ``docs/json.md`` specifies it."""
    return {
        "schema": "youngbit/run",
        "schema_version": 1,
        "seed": found.row["seed"],
        "build": build_info(),
        "row": found.row,
        "passes": found.passes,
    }


def _passes(found: lab.Result) -> None:
    names = [name for name in found.passes if COUNTERS not in name]
    table = new_table(*names)
    for values in zip(*(found.passes[name] for name in names), strict=True):
        table.add_row(*map(_text, values))
    print_table(table)
    row = found.row
    for name in ("precision", "recall", "working_set_pages", "working_set_error"):
        if name in row:
            click.echo(f"{name:<18} {_text(row[name])}")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(
        value, int) else str(value)  # fmt: skip


_ANY = Way(_run_any, _passes, json=_plain)
_AGING = Way(_run_aging, _passes, json=_plain)
#: How each kind is shown; a kind of the user's own as a table of its passes.
WAYS: dict[type, Way] = {
    lab.AccessTracking: access_tracking.WAY,
    lab.Aging: _AGING,
    lab.ContentionDescription: contention.WAY,
    lab.EstimateDescription: estimate.ESTIMATE,
    lab.HeatMapDescription: pictures.HEAT_MAP,
    lab.PoliciesDescription: estimate.POLICIES,
    lab.ReclaimDescription: reclaim.WAY,
    lab.ReplayDescription: replay.WAY,
    lab.Stress: stress.WAY,
}


@click.command()
@click.option("--vms", type=click.IntRange(1, 1024), default=1, show_default=True, metavar="N",
              help="How many VMs, all alike.")  # fmt: skip
@click.option("--memory", type=SizeType(), default="64M", show_default=True,
              help="Memory of each.")  # fmt: skip
@click.option("--accesses", type=click.IntRange(1), default=defaults.AGING_ACCESSES,
              show_default=True, help="Accesses of each vCPU, by Zipf's law.")  # fmt: skip
@click.option("--every", type=click.IntRange(1), default=defaults.AGING_EVERY, show_default=True,
              metavar="N", help="Accesses between two aging passes.")  # fmt: skip
@click.option("--warm-up", type=click.IntRange(0), default=defaults.AGING_WARM_UP,
              show_default=True, metavar="N", help="Passes that the summary leaves out."
              )  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.AGING_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of each vCPU's TLB; 0 makes the estimate exact.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How VMs are aged.")  # fmt: skip
@click.option("--capabilities", type=NumberType(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Of everything random.")  # fmt: skip
@print_option
@json_option
def aging(
    vms: int,
    memory: int,
    accesses: int,
    every: int,
    warm_up: int,
    capabilities: int,
    seed: int,
    print_experiment: bool,
    json_to: str | None,
    **options: Any,
) -> None:
    """Age VMs on a schedule, and compare each pass with the truth.

    The description that --print-experiment gives has more: VMs that differ,
    other workloads, memory pressure, a policy of your own.
    """
    run_described(
        _AGING,
        lambda: lab.Aging(
            seed=seed,
            warm_up=warm_up,
            host=lab.Machine(capabilities=capabilities),
            vms=(lab.VirtualMachine(memory=memory, workload=lab.Zipf(accesses), **options),) * vms,
            schedule=lab.Schedule(every=every),
        ),
        print_experiment=print_experiment,
        json_to=json_to,
    )


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--results", metavar="DIR",
              help="Directory of the results; otherwise FILE's name with .results.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=None, metavar="N",
              help="Processes that run experiments; otherwise one a processor.")  # fmt: skip
@click.option("--dask", metavar="ADDRESS", help="Run on the Dask cluster with this scheduler.")
@click.option("--retry-failed", is_flag=True, help="Run those again that failed.")
@click.option("--dry-run", is_flag=True, help="List the runs, and run none.")
@json_option
def sweep(
    file: str,
    results: str | None,
    jobs: int | None,
    dask: str | None,
    retry_failed: bool,
    dry_run: bool,
    json_to: str | None,
) -> None:
    """Run every experiment of the sweep that FILE, a TOML file, describes.

    Each finished run is kept at once. A sweep that was interrupted or killed goes
    on where it stopped when it is started again. Exits 0 if every run came to an
    end, 1 if some failed; those are rows with their error.
    """
    check_target(json_to)
    plan = lab.Sweep.read(file)
    quiet = json_to == "-"
    if dry_run:
        _list_runs(plan)
        return
    directory = results or f"{Path(file).stem}.results"
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    last = lab.Progress(len(plan))
    with bar:
        task = bar.add_task("sweep", total=len(plan))

        def progressed(progress: lab.Progress) -> None:
            nonlocal last
            if progress.done == 0 and progress.before and not quiet:
                click.echo(f"{progress.before} of {progress.runs} runs were finished before")
            last = progress
            failed = f", {progress.failed} failed" if progress.failed else ""
            bar.update(
                task, completed=progress.before + progress.done, description=f"sweep{failed}"
            )

        try:
            found = lab.run_sweep(
                plan,
                directory,
                jobs=jobs,
                dask=dask,
                base=Path(file).parent,
                retry_failed=retry_failed,
                progressed=progressed,
            )
        except KeyboardInterrupt:
            done = last.before + last.done
            click.echo(
                f"youngbit: {done} of {last.runs} runs are finished, in {directory};"
                " start the sweep again to go on",
                err=True,
            )
            raise
    failures = found.failures()
    if not quiet:
        click.echo(
            f"{len(found)} runs in {directory}: {len(found) - len(failures)} ok,"
            f" {len(failures)} failed"
        )
    for number, error in list(failures.items())[:_SHOWN]:
        click.echo(f"youngbit: run {number}: {error}", err=True)
    if len(failures) > _SHOWN:
        click.echo(f"youngbit: and {len(failures) - _SHOWN} more that failed", err=True)
    if json_to is not None:
        write_json(
            {
                "schema": "youngbit/sweep-summary",
                "schema_version": 1,
                "seed": plan.seed,
                "build": build_info(),
                "results": os.fspath(directory),
                "runs": len(found),
                "finished_before": last.before,
                "failed": len(failures),
                "failures": {str(number): error for number, error in failures.items()},
            },
            json_to,
        )
    if failures:
        raise SystemExit(EXIT_FAILED)


def _list_runs(plan: lab.Sweep) -> None:
    table = new_table("run", *plan.keys, "error", left=("error",))
    for point in plan.all():
        table.add_row(
            str(point.run),
            *(str(point.values.get(key, "")) for key in plan.keys),
            point.error or "",
        )
    print_table(table)


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (run, aging, sweep):
        group.add_command(command)
