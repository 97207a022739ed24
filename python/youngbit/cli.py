"""The command ``youngbit``."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import __version__, defaults, lab, traces
from ._core import build_info
from ._files import atomic_write
from .experiments import AccessTracking, AccessTrackingResult, ReplayPass, ReplayResult
from .experiments.access_tracking import Step
from .experiments.bench import machine
from .sizes import format_size, parse_size

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

Function = TypeVar("Function", bound=Callable[..., Any])


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TupleType = click.ParamType[tuple[int, ...]]
else:
    # Generic only in recent versions.
    _IntType = click.ParamType
    _TupleType = click.ParamType


class _Size(_IntType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value, what="size")
        except (ValueError, TypeError) as error:
            self.fail(str(error), param, ctx)


class _Number(_IntType):
    """A whole number, decimal or with 0x."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is not a number such as 15 or 0xf", param, ctx)
        if not 0 <= number < 1 << 63:
            self.fail(f"{value!r} is negative or not below 2**63", param, ctx)
        return number


class _Counts(_TupleType):
    """A number of vCPUs, or several with commas between them."""

    name = "count"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        one = click.IntRange(1, defaults.MAX_VCPUS)
        return tuple(one(each, param, ctx) for each in str(value).split(","))


def _json_option(function: Function) -> Function:
    return click.option(
        "--json",
        "json_to",
        metavar="FILE|-",
        help="Write the result as JSON; with - to standard output, and nothing else there.",
    )(function)


def _print_option(function: Function) -> Function:
    return click.option(
        "--print-experiment",
        is_flag=True,
        help="Print the experiment as TOML, for youngbit run, and do not run it.",
    )(function)


def _seconds(value: float) -> str:
    nanoseconds = round(value * 1e9)
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}s"


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"youngbit: {message}", err=True)
    raise SystemExit(code)


def _write_json(result: dict[str, Any], to: str) -> None:
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if to == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with atomic_write(to) as file:
        file.write(text)


def _check_target(path: str | None) -> None:
    """Refuse before the work is done what could not be written after it."""
    if path is None or path == "-":
        return
    if Path(path).is_dir():
        raise click.UsageError(f"{path}: is a directory")
    if not Path(path).absolute().parent.is_dir():
        raise click.UsageError(f"{path}: there is no directory to write it to")


def _check_picture(path: str | None) -> None:
    """Refuse before the work is done a picture that could not be drawn after it."""
    if path is None:
        return
    from .plot import format_of

    try:
        format_of(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    _check_target(path)
    if importlib.util.find_spec("matplotlib") is None:
        _fail("a picture needs matplotlib: pip install 'youngbit[plot]'", EXIT_USAGE)


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """Show progress on standard error if that is a terminal; call to advance."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(description: str) -> None:
            progress.update(task, advance=1, description=description)

        yield advance


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="youngbit")
def cli() -> None:
    """A reference model of multi-gen LRU aging across secondary MMUs."""


@cli.command("access-tracking")
@click.option("-l", "lru_gen", is_flag=True, help="Idle memory with MGLRU aging, and verify.")
@click.option("-p", "benchmark", is_flag=True, help="Populate while aging in a loop; needs -l.")
@click.option("-v", "vcpus", type=_Counts(), default=str(defaults.VCPUS), show_default=True,
              metavar="N",
              help="Number of vCPUs; with --against also several, as 2,4,8,16.")  # fmt: skip
@click.option("-b", "vcpu_bytes", type=_Size(), default=defaults.VCPU_BYTES, show_default=True,
              help="Memory of each vCPU.")  # fmt: skip
@click.option("-o", "overlap", is_flag=True, help="Let each vCPU touch the memory of all.")
@click.option("-s", "backing", type=click.Choice(list(defaults.BACKINGS)),
              default=defaults.BACKING, show_default=True,
              help="Size of the host's pages behind guest memory.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How the VM is aged.")  # fmt: skip
@click.option("--against", type=click.Choice(defaults.PROTOCOLS), default=None,
              help="With -p: run --protocol and this one in turn, each in a guest of which half is"
              " populated beforehand, aging on a processor of its own, and print ratios.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1, 1000), default=defaults.CONTENTION_REPETITIONS,
              show_default=True, metavar="N",
              help="Runs of each protocol, with --against.")  # fmt: skip
@click.option("--aging-asks", type=click.Choice(defaults.AGING_ASKS), default=None,
              help="What MGLRU's aging asks; otherwise what the protocol's kernel does:"
              " baseline and v9 accurate, v7 fast_only.")  # fmt: skip
@click.option("--no-ad", "no_ad", is_flag=True, help="Page tables without A/D bits (EPT only).")
@click.option("--l1-no-ad", "l1_no_ad", is_flag=True,
              help="A nested guest's page tables without A/D bits (EPT only).")  # fmt: skip
@click.option("--alias", "aliases", type=click.IntRange(1), default=1, show_default=True,
              metavar="N", help="Let a guest with page tables of its own map each page N"
              " times.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(defaults.FORMATS), default=None,
              help="Format of page-table entries; otherwise ept, and npt for shadow"
              " paging.")  # fmt: skip
@click.option("--capabilities", type=_Number(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.ACCESS_TRACKING_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of each vCPU's TLB; 0 for none.")  # fmt: skip
@click.option("--seed", type=_Number(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--live/--inline", "live", default=None,
              help="One thread a vCPU (default), or one vCPU after another in one.")  # fmt: skip
@_print_option
@_json_option
def access_tracking(
    *,
    json_to: str | None,
    print_experiment: bool,
    no_ad: bool,
    l1_no_ad: bool,
    format_: str | None,
    live: bool | None,
    vcpus: tuple[int, ...],
    against: str | None,
    repeat: int,
    **options: Any,
) -> None:
    """Run the series' access_tracking_perf_test on the model.

    Exits 0 when verified, 1 when a check failed, 2 for bad usage.
    """
    _check_target(json_to)
    live = (options["benchmark"] or defaults.LIVE) if live is None else live
    try:
        experiment = AccessTracking(
            ad=not no_ad,
            l1_ad=not l1_no_ad,
            format=format_,
            live=live,
            vcpus=vcpus[0],
            **options,
        )
        if against is not None:
            from .cli_contention import compare

            compare(experiment, against, vcpus, repeat, json_to)
            return
        if len(vcpus) > 1:
            raise ValueError("several numbers of vCPUs need --against")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if print_experiment:
        click.echo(lab.to_toml(experiment), nl=False)
    elif _show_access_tracking(experiment, json_to).row["verdict"] != "pass":
        raise SystemExit(EXIT_FAILED)


def _show_access_tracking(experiment: AccessTracking, json_to: str | None) -> lab.Result:
    """Run it, print as the selftest does, and what failed on standard error."""
    quiet = json_to == "-"

    def say(line: str = "") -> None:
        if not quiet:
            click.echo(line)

    with _progress("access-tracking", None) as advance:

        def started(result: AccessTrackingResult) -> None:
            first, end = result.guest_physical
            say(f"Random seed: {experiment.seed:#x}")
            if experiment.lru_gen:
                say("Created memcg at /access_tracking_perf_test")
            say("Testing guest mode: PA-bits:ANY, VA-bits:48,  4K pages")
            say(f"guest physical test memory: [{first:#x}, {end:#x})")
            if experiment.benchmark:
                say("Running lru_gen benchmark...")
                say(f"{'Populating memory (async)':<30}")
            else:
                say()

        def stepped(step: Step) -> None:
            advance(step.name)
            if not experiment.benchmark:
                say(f"{step.name:<30}: {_seconds(step.seconds)}")

        found = lab.run(experiment, started=started, stepped=stepped, warned=say)
    result: AccessTrackingResult = found.detail

    if result.vcpu_wall_seconds is not None:
        say(f"{'vcpu wall time':<30}: {_seconds(result.vcpu_wall_seconds)}")
        passes = result.aging_passes
        if passes:
            total = sum(passes)
            say(
                f"{'lru_gen avg pass duration':<30}: {_seconds(total / len(passes))},"
                f" (passes:{len(passes)}, total:{_seconds(total)})"
            )
        else:
            say(f"{'lru_gen avg pass duration':<30}: no passes")
    if json_to is not None:
        _write_json(result.to_dict(), json_to)
    if result.failure is not None:
        click.echo("==== Test Assertion Failure ====", err=True)
        click.echo(f"  check {result.failure.check} of 5: {result.failure.detail}", err=True)
        click.echo(f"  {result.failure.reason}", err=True)
    return found


@cli.command()
@click.argument("trace", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--every", type=click.IntRange(1), default=defaults.REPLAY_EVERY, show_default=True,
              metavar="N", help="Accesses between two aging passes.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.REPLAY_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of the vCPU's TLB; 0 makes the estimate exact.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How the VM is aged.")  # fmt: skip
@click.option("--capabilities", type=_Number(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(traces.FORMATS), default=None,
              help="Format of TRACE; otherwise by its ending.")  # fmt: skip
@click.option("--plot", metavar="FILE", help="Draw the generations over time, .png or .svg.")
@_print_option
@_json_option
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
    _check_target(json_to)
    _check_picture(plot)
    experiment = lab.ReplayDescription(
        every=every,
        tlb_entries=tlb_entries,
        protocol=protocol,
        capabilities=capabilities,
        trace=_trace_file(trace, format_, absolute=print_experiment),
    )
    if print_experiment:
        click.echo(lab.to_toml(experiment), nl=False)
        return
    _show_replay(experiment, json_to, plot=plot)


def _trace_file(trace: str | None, format_: str | None, *, absolute: bool) -> lab.TraceFile:
    """Return how a description names a trace; it may be read from somewhere else."""
    if trace is None:
        return lab.TraceFile()
    return lab.TraceFile(str(Path(trace).absolute()) if absolute else trace, format_)


def _show_replay(
    experiment: lab.ReplayDescription,
    json_to: str | None,
    *,
    plot: str | None = None,
    base: Path | None = None,
) -> lab.Result:
    total = -(-len(experiment.trace.read(base)) // experiment.every)
    with _progress("replay", total) as advance:

        def passed(each: ReplayPass) -> None:
            advance(f"pass {each.number}")

        found = lab.run(experiment, base=base, passed=passed)
    result: ReplayResult = found.detail
    if json_to != "-":
        _print_replay(result)
    if json_to is not None:
        _write_json(result.to_dict(), json_to)
    if plot is not None:
        from .plot import generations_over_time

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


@cli.command()
@_json_option
def info(json_to: str | None) -> None:
    """Show version, build, processor and features."""
    _check_target(json_to)
    build = build_info()
    about: dict[str, Any] = {
        "schema": "youngbit/info",
        "schema_version": 1,
        "version": __version__,
        "build": build,
        "python": platform.python_version(),
        "cpu": {"model": machine()["cpu"], "count": os.cpu_count()},
        "features": {
            "mmus": list(defaults.MMUS),
            "protocols": list(defaults.PROTOCOLS),
            "formats": list(defaults.FORMATS),
            "backings": list(defaults.BACKINGS),
            "trace_formats": list(traces.FORMATS),
        },
    }
    if json_to != "-":
        debug = " with debug assertions" if build["debug_assertions"] else ""
        click.echo(f"youngbit       {__version__}")
        click.echo(f"build          {build['profile']}, opt-level {build['opt_level']}{debug},"
                   f" {build['rustc']}, {build['target']}")  # fmt: skip
        click.echo(f"python         {about['python']}")
        click.echo(f"cpu            {about['cpu']['count']} x {about['cpu']['model']}")
        for name, values in about["features"].items():
            click.echo(f"{name.replace('_', ' '):<15}{', '.join(values)}")
        click.echo(f"default        {format_size(parse_size(defaults.VCPU_BYTES))} a vCPU,"
                   f" seed {defaults.SEED:#x}")  # fmt: skip
    if json_to is not None:
        _write_json(about, json_to)


def commands() -> click.Group:
    """Return the command with all of its subcommands."""
    from . import (
        cli_bench,
        cli_estimate,
        cli_lab,
        cli_lru,
        cli_plot,
        cli_report,
        cli_stress,
        cli_traces,
    )

    rooms = (
        cli_lru,
        cli_bench,
        cli_stress,
        cli_lab,
        cli_traces,
        cli_estimate,
        cli_plot,
        cli_report,
    )
    for more in rooms:
        more.register(cli)
    return cli


def main() -> None:
    """Run the command; the exit status says what happened."""
    command = commands()
    try:
        command.main(prog_name="youngbit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(EXIT_USAGE) from None
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_FAILED) from None
    except (ValueError, OSError, MemoryError, ImportError) as error:
        _fail(str(error) or type(error).__name__, EXIT_USAGE)
