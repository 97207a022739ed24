"""What several commands need: types of options, options, and ways to print and write."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import lab
from .._files import atomic_write
from ..sizes import parse_size

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_SKIPPED",
    "EXIT_USAGE",
    "NumberType",
    "SizeType",
    "check_picture",
    "check_target",
    "fail",
    "format_seconds",
    "json_option",
    "named_trace",
    "new_table",
    "print_option",
    "print_table",
    "show_progress",
    "write_json",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_SKIPPED = 4
EXIT_INTERRUPTED = 130

Function = TypeVar("Function", bound=Callable[..., Any])


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
else:
    # Generic only in recent versions.
    _IntType = click.ParamType


class SizeType(_IntType):
    """A size such as 128M, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        try:
            return parse_size(value, what="size")
        except (ValueError, TypeError) as error:
            self.fail(str(error), param, ctx)


class NumberType(_IntType):
    """A whole number, decimal or with 0x."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            self.fail(f"{value!r} is not a number such as 15 or 0xf", param, ctx)
        if not 0 <= number < 1 << 63:
            self.fail(f"{value!r} is negative or not below 2**63", param, ctx)
        return number


def json_option(function: Function) -> Function:
    """Add ``--json``."""
    return click.option(
        "--json",
        "json_to",
        metavar="FILE|-",
        help="Write the result as JSON; with - to standard output, and nothing else there.",
    )(function)


def print_option(function: Function) -> Function:
    """Add ``--print-experiment``."""
    return click.option(
        "--print-experiment",
        is_flag=True,
        help="Print the experiment as TOML, for youngbit run, and do not run it.",
    )(function)


def format_seconds(value: float) -> str:
    """Return seconds as the selftest prints them."""
    nanoseconds = round(value * 1e9)
    return f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}s"


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, and exit."""
    click.echo(f"youngbit: {message}", err=True)
    raise SystemExit(code)


def write_json(result: dict[str, Any], to: str) -> None:
    """Write a result as JSON to a file, or with ``-`` to standard output."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if to == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with atomic_write(to) as file:
        file.write(text)


def check_target(path: str | None) -> None:
    """Refuse before the work is done what could not be written after it."""
    if path is None or path == "-":
        return
    if Path(path).is_dir():
        raise click.UsageError(f"{path}: is a directory")
    if not Path(path).absolute().parent.is_dir():
        raise click.UsageError(f"{path}: there is no directory to write it to")


def check_picture(path: str | None) -> None:
    """Refuse before the work is done a picture that could not be drawn after it."""
    if path is None:
        return
    from ..plot import format_of

    try:
        format_of(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    check_target(path)
    if importlib.util.find_spec("matplotlib") is None:
        fail("a picture needs matplotlib: pip install 'youngbit[plot]'", EXIT_USAGE)


@contextmanager
def show_progress(what: str, total: int | None) -> Iterator[Callable[[str], None]]:
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


def named_trace(trace: str | None, format_: str | None, *, absolute: bool) -> lab.TraceFile:
    """Return how a description names a trace; it may be read from somewhere else."""
    if trace is None:
        return lab.TraceFile()
    return lab.TraceFile(str(Path(trace).absolute()) if absolute else trace, format_)


def print_table(table: Table) -> None:
    """Print a table."""
    # A pipe has no width; do not fold its lines.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)


def new_table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """Return an empty table; columns not named in ``left`` are aligned right."""
    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right")
    return table
