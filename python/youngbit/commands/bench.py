"""The command ``bench``."""

from __future__ import annotations

import errno
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import defaults
from ..experiments.bench import Bench, BenchResult
from .shared import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    NumberType,
    check_target,
    fail,
    json_option,
    write_json,
)

__all__ = ["register"]

#: Counters that explain a time, most telling first; all are in the JSON.
_TELLING = (
    "mmu_lock_write",
    "mmu_lock_read",
    "mmu_lock_contended",
    "spte_fetch_and",
    "spte_cas",
    "spte_plain_stores",
    "rmap_locks",
    "memslots_visited",
    "sptes_aged",
    "pgscan",
    "look_arounds",
    "spte_walk_loads",
    "kvm_page_faults",
    "notifier_clear_young_fast",
    "notifier_clear_young_slow",
)
_TOLD = 4
#: Columns of the summary.
_SUMMARY = {
    "pass": "pass, locked / lockless",
    "guest_locked": "guest, locked / no aging",
    "guest_lockless": "guest, lockless / no aging",
    "p99": "fault p99, locked / lockless",
}
_PIPE_WIDTH = 260


def _number(value: float) -> str:
    """Four digits, which is more than any of these is good for."""
    if value != 0 and not 1e-3 <= abs(value) < 1e7:
        return f"{value:.3e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _times(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _ratios(row: dict[str, Any]) -> str:
    if row["metric"]["less_is_better"] is None:
        return ""
    texts = []
    for ratio in row["ratios"]:
        text = f"{ratio['median']:.2f}x {ratio['to']} ({ratio['min']:.2f}-{ratio['max']:.2f})"
        if ratio["bound"] is not None:
            held = "held" if ratio["median"] <= ratio["bound"] else "NOT held"
            text += f", promised {ratio['bound']:g}: {held}"
        texts.append(text)
    return "; ".join(texts)


def _counted(row: dict[str, Any]) -> str:
    counters = row["counters"]
    told = [name for name in _TELLING if name in counters][:_TOLD]
    return ", ".join(f"{counters[name]:,} {name}" for name in told)


def _case_table(rows: list[dict[str, Any]]) -> Table:
    """Show one case: a line a figure; counters once a contestant."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("contestant")
    table.add_column("figure")
    for name in ("median", "least", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("against, repetition by repetition")
    table.add_column("counted in the last repetition")
    before = None
    for row in rows:
        first = row["contestant"] != before
        before = row["contestant"]
        table.add_row(
            row["contestant"] if first else "",
            row["metric"]["name"],
            *(_number(row[name]) for name in ("median", "min", "max")),
            "" if row["metric"]["unit"] == "1" else row["metric"]["unit"],
            _ratios(row),
            _counted(row) if first else "",
        )
    return table


def _conditions(rows: list[dict[str, Any]], processors: int) -> str:
    """Say under what conditions a case was measured."""
    row = rows[0]
    threads = row["threads"]
    parts = [f"{len(row['samples'])} repetitions, interleaved", f"{threads} thread(s)"]
    if row["oversubscribed"]:
        parts.append(
            f"on {processors} processor(s): the scheduler is part of every time, compare"
            " processor time and lock waits"
        )
    parts.append("pinned" if row["pinned"] else "not pinned")
    return ", ".join(parts)


class _Printer:
    """Prints each case when it is over."""

    def __init__(self, quiet: bool) -> None:
        # A pipe has no width; do not fold its lines.
        self._console = Console(
            width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False, quiet=quiet
        )
        self._lock = threading.Lock()
        self._closed = False

    def heading(self, result: BenchResult) -> None:
        about, build = result.machine, result.build
        say = self._say
        guest = ", a virtual machine" if about["virtual_machine"] else ""
        say(
            f"machine  {about['processors']} of {about['processors_of_machine']} processor(s),"
            f" {about['cpu']}{guest}; {about['system']}"
        )
        say(
            f"build    youngbit {build['version']}, {build['profile']}, {build['rustc']},"
            f" {build['target']}"
        )
        say(f"run      scale {result.parameters['scale']}, seed {result.parameters['seed']}")

    def _say(self, text: str = "") -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def case(self, rows: list[dict[str, Any]], processors: int) -> None:
        """Print the rows of a case, unless the run was stopped."""
        with self._lock:
            if self._closed:
                return
            self._console.print()
            self._console.print(
                f"{rows[0]['suite']}: {rows[0]['case']}", style="bold", markup=False
            )
            self._say(_conditions(rows, processors))
            self._console.print(_case_table(rows))

    def close(self) -> None:
        """Print no more cases."""
        with self._lock:
            self._closed = True

    def summary(self, result: BenchResult) -> None:
        """Print what lockless aging buys, and which promises were kept."""
        lines = result.contention()
        if lines:
            table = Table(box=None, pad_edge=False, header_style="bold")
            for name in ("mmu", "vCPUs"):
                table.add_column(name, justify="right")
            table.add_column("")
            for name in _SUMMARY.values():
                table.add_column(name, justify="right")
            table.add_column("")
            for line in lines:
                table.add_row(
                    line["mmu"],
                    str(line["vcpus"]),
                    line["kind"],
                    *(_times(line[key]) for key in _SUMMARY),
                    "more threads than processors" if line["oversubscribed"] else "",
                )
            self._console.print()
            self._console.print("What aging costs, locked and lockless", style="bold")
            self._say("ratios of times, repetition by repetition: median (least-most)")
            self._console.print(table)
        if result.others is not None and result.is_disturbed:
            self._console.print()
            self._say(
                f"Others used {result.others['used']:.0%} of the machine meanwhile, and"
                f" {result.others['stolen']:.0%} were stolen by its hypervisor: that is in these"
                " times, and less in their ratios."
            )
        promises = result.promises()
        if promises:
            self._console.print()
            self._console.print("Promised ratios", style="bold")
        for row, ratio in promises:
            held = "held    " if ratio["median"] <= ratio["bound"] else "NOT held"
            self._say(
                f"{held} {ratio['median']:.2f}x, at most {ratio['bound']:g}x:"
                f" {row['suite']}: {row['case']}: {row['contestant']} / {ratio['to']}"
            )


@contextmanager
def _spinner() -> Iterator[Callable[[str], None]]:
    """Show on standard error what is run, if that is a terminal.

    It is drawn between repetitions only: a thread that redraws it ten times a
    second would be in the times.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    live = Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
    )
    with live as progress:
        task = progress.add_task("", total=None)

        def show(what: str) -> None:
            progress.update(task, description=what.replace("[", r"\["), refresh=True)

        yield show


def _stop_here() -> NoReturn:
    """End the process while threads of the run are still in native code.

    A repetition may last seconds more, and nobody is going to read it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_INTERRUPTED)


@click.command()
@click.argument("suites", nargs=-1, metavar="[SUITE]...")
@click.option("--quick", "scale", flag_value="quick",
              help="Smaller guests and fewer repetitions: a minute or so.")  # fmt: skip
@click.option("--large", "scale", flag_value="large",
              help="A guest of 64 GiB too; needs 3 GiB of memory.")  # fmt: skip
@click.option("--smallest", "scale", flag_value="smallest", hidden=True)
@click.option("--repetitions", type=click.IntRange(1), default=None, metavar="N",
              help="Of each contestant; otherwise what the scale says.")  # fmt: skip
@click.option("--only", default=None, metavar="TEXT",
              help="Only cases with this in their name.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=str(defaults.BENCH_SEED), show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--report", "report_to", metavar="FILE.html",
              help="Write a page with figures, which needs nothing else, and the figures"
              " beside it as PNG.")  # fmt: skip
@click.option("--from", "source", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="Measure nothing: take the result of an earlier --json.")  # fmt: skip
@json_option
def bench(
    suites: tuple[str, ...],
    scale: str | None,
    repetitions: int | None,
    only: str | None,
    seed: int,
    report_to: str | None,
    source: str | None,
    json_to: str | None,
) -> None:
    """Measure lockless against locked aging, on this machine.

    SUITE is spte, walk, aging, contention or reclaim; without one, all are run.
    Contestants are run in turn, repetition by repetition; verified after each;
    figures are medians, with the least and the most. What is finished when
    Ctrl-C is pressed is printed and written.
    """
    check_target(json_to)
    check_target(report_to)
    if report_to is not None:
        if Path(report_to).suffix not in (".html", ".htm"):
            raise click.UsageError(f"--report: {report_to!r} does not end in .html")
        _need_matplotlib()
    printer = _Printer(quiet=json_to == "-")
    if source is not None:
        if suites or scale or only or repetitions:
            raise click.UsageError("--from measures nothing: it goes with --json and --report")
        from ..experiments.bench import read

        result = read(source)
        printer.heading(result)
        for rows in result.cases().values():
            printer.case(rows, result.machine["processors"])
        _end(printer, result, json_to, report_to)
        return
    try:
        experiment = Bench(
            suites=suites,
            scale=scale or defaults.BENCH_SCALE,
            repetitions=repetitions,
            only=only,
            seed=seed,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    result = experiment.prepare()
    printer.heading(result)
    failure = _measure(experiment, result, printer)
    if isinstance(failure, KeyboardInterrupt):
        # A second one does not spoil what the first one saves.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if only is not None and not result.rows and failure is None:
        raise click.UsageError(f"--only: no case has {only!r} in its name")
    _end(printer, result, json_to, report_to)
    if isinstance(failure, KeyboardInterrupt):
        click.echo("youngbit: interrupted; what was finished is kept", err=True)
        _stop_here()
    if isinstance(failure, OSError) and failure.errno == errno.EIO:
        # A verification: what was measured is not what it should have been.
        fail(str(failure), EXIT_FAILED)
    if failure is not None:
        raise failure


def _measure(experiment: Bench, result: BenchResult, printer: _Printer) -> BaseException | None:
    """Measure in a thread of its own; return what stopped it.

    This thread sleeps meanwhile, and wakes for Ctrl-C at once, which between
    two repetitions could be seconds later.
    """
    done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    processors = result.machine["processors"]
    with _spinner() as show:

        def work() -> None:
            try:
                experiment.run(
                    result, progress=show, finished=lambda rows: printer.case(rows, processors)
                )
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        threading.Thread(target=work, name="bench", daemon=True).start()
        try:
            return done.get()
        except KeyboardInterrupt as interrupt:
            printer.close()
            return interrupt


def _end(
    printer: _Printer, result: BenchResult, json_to: str | None, report_to: str | None
) -> None:
    """Print and write what there is."""
    printer.summary(result)
    if json_to is not None:
        write_json(result.to_dict(), json_to)
    if report_to is not None:
        from ..reports.bench import build

        for path in build(result).write(report_to, pngs=True):
            if json_to != "-":
                click.echo(f"Wrote {path}")


def _need_matplotlib() -> None:
    if find_spec("matplotlib") is None:
        fail("--report needs matplotlib: pip install 'youngbit[plot]'", EXIT_USAGE)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(bench)
