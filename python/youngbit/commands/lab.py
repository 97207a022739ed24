"""The commands ``run`` and ``sweep``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import lab
from .._core import build_info
from ..experiments.aging import AgingPass
from ..lab import store
from ..lab.columns import COUNTERS
from .access_tracking import show_access_tracking
from .estimate import show_estimate, show_policies
from .reclaim import show_reclaim
from .replay import show_replay
from .shared import (
    EXIT_FAILED,
    check_target,
    json_option,
    new_table,
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
@json_option
def run(file: str, results: str | None, json_to: str | None) -> None:
    """Run the experiment that FILE, a TOML file, describes.

    docs/experiments.md says what it may hold; any experiment's own command
    prints one to start from with --print-experiment.
    """
    check_target(json_to)
    experiment = lab.read(file)
    kept = None
    if results is not None:
        store.arrow()
        kept = store.Store(results, lab.Sweep.of(experiment))
    try:
        found = _show(experiment, json_to, Path(file).parent)
        if kept is not None:
            # What says where and when is of a sweep's runs.
            kept.add((0, found.row, found.passes))
            kept.compact()
            if json_to != "-":
                click.echo(f"Wrote {results}")
    finally:
        if kept is not None:
            kept.close()
    if found.row.get("verdict", "pass") != "pass":
        raise SystemExit(EXIT_FAILED)


def _show(experiment: lab.Experiment, json_to: str | None, base: Path) -> lab.Result:
    """Run, and print as the experiment's own command does."""
    if isinstance(experiment, lab.AccessTracking):
        return show_access_tracking(experiment, json_to)
    if isinstance(experiment, lab.ReplayDescription):
        return show_replay(experiment, json_to, base=base)
    if isinstance(experiment, lab.ReclaimDescription):
        return show_reclaim(experiment, json_to, base=base)
    if isinstance(experiment, lab.EstimateDescription):
        return show_estimate(experiment, json_to, base=base)
    if isinstance(experiment, lab.PoliciesDescription):
        return show_policies(experiment, json_to, base=base)
    with show_progress("run", None) as advance:
        callbacks: dict[str, Any] = {}
        if isinstance(experiment, lab.Aging):

            def passed(each: AgingPass) -> None:
                advance(f"pass {each.number}")

            callbacks["passed"] = passed
        found = lab.run(experiment, base=base, **callbacks)
    if json_to != "-":
        _print_passes(found)
    if json_to is not None:
        write_json(_plain(found), json_to)
    return found


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


def _print_passes(found: lab.Result) -> None:
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
    for command in (run, sweep):
        group.add_command(command)
