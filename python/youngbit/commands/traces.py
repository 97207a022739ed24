"""The commands ``trace`` and ``record``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .. import defaults, traces
from ..sizes import PAGE_SIZE, format_size
from ..traces import Block, Reader, tools
from ..traces.recorder import record as record_program
from .shared import (
    EXIT_INTERRUPTED,
    NumberType,
    check_target,
    fail,
    json_option,
    new_table,
    print_table,
    show_progress,
    write_json,
)

__all__ = ["register"]

if TYPE_CHECKING:
    _RangeType = click.ParamType[tuple[int, "int | None"]]
else:
    _RangeType = click.ParamType


class _Range(_RangeType):
    """Two numbers with a colon between them, either of which may be left out."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        if isinstance(value, tuple):
            return value
        low, colon, high = value.partition(":")
        try:
            start = int(low, 0) if low else 0
            end = int(high, 0) if high else None
        except ValueError:
            colon = ""
        if not colon:
            self.fail(f"{value!r} is not a range such as 1000:2000 or 0x7f00000000:", param, ctx)
        if start < 0 or start >= 1 << 63 or (end is not None and not start < end < 1 << 63):
            self.fail(f"{value!r} is empty, or not of numbers below 2**63", param, ctx)
        return start, end


_EVERYTHING = (0, None)
_TRACE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def _from(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--window", type=NumberType(), default=str(traces.DEFAULT_WINDOW), show_default=True,
        metavar="N", help="Of a lackey recording: keep a page once in N instructions; 0: always."
    )(function)  # fmt: skip
    return click.option(
        "--from", "from_", type=click.Choice(traces.FORMATS), default=None,
        help="Format that is read; otherwise by the ending."
    )(function)  # fmt: skip


def _to(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--interval", type=click.IntRange(1), default=defaults.DAMON_INTERVAL, show_default=True,
        metavar="TIME", help="Of a DAMON record: time in a snapshot."
    )(function)  # fmt: skip
    return click.option(
        "--to", type=click.Choice(traces.WRITTEN), default=None,
        help="Format that is written; otherwise by the ending."
    )(function)  # fmt: skip


@click.group()
def trace() -> None:
    """Convert, cut, sample, merge and count recorded programs.

    Formats, by ending: .npz, .csv, .parquet, .oracleGeneral (also .zst), .perf,
    .damon; anything else is the text of valgrind's lackey. docs/traces.md
    specifies them.
    """


def _check_output(target: str, to: str | None) -> None:
    """Refuse before the work is done what could not be written after it."""
    if target == "-":
        raise click.UsageError("-: for a trace on standard output write to /dev/stdout")
    check_target(target)
    if to is None and traces.format_of(target) not in traces.WRITTEN:
        written = ", ".join(traces.WRITTEN)
        raise click.UsageError(f"{target}: the ending says no format; give --to: {written}")


def _say(target: str, message: str) -> None:
    """Print a message; where the trace may have gone to standard output, not there."""
    click.echo(message, err=not Path(target).is_file())


def _say_what_is_lost(target: str, to: str | None) -> None:
    lost = {"oracle": "which events write", "damon": "all but pages and intervals"}
    form = to or traces.format_of(target)
    if form in lost:
        _say(target, f"The format has no place for {lost[form]}")


def _run(
    source: str,
    target: str,
    from_: str | None,
    to: str | None,
    window: int,
    interval: int,
    step: Callable[[Reader], Iterator[Block]],
    **kept: Any,
) -> None:
    """Pass a trace through a step, and say what was written."""
    _check_output(target, to)
    with (
        show_progress("trace", None) as advance,
        traces.open_trace(
            source, from_, window=window, any_page=kept.pop("any_page", False)
        ) as reader,
    ):
        vms = reader.vms if kept.pop("keep_vms", True) else ()
        # A step may change the window that is written.
        blocks = step(reader)
        with traces.writing(target, to, window=reader.window, vms=vms, interval=interval) as writer:
            events = 0
            for block in blocks:
                events += traces.write_all([block], writer)
                advance(f"{events:,} events")
            if not events:
                raise ValueError(f"{source}: nothing is left to write to {target}")
        skipped = reader.skipped
    _say(target, f"Wrote {target}: {events:,} events")
    _say_what_is_lost(target, to)
    if skipped:
        _say(target, f"{skipped:,} samples were left out: the kernel's, or without an address")


@trace.command()
@click.argument("source", type=_TRACE)
@click.argument("target")
@click.option("--divide-time", type=click.IntRange(1, (1 << 64) - 1), default=1,
              show_default=True, metavar="N",
              help="Divide times by N; oracleGeneral has 32 bits for them.")  # fmt: skip
@_from
@_to
def convert(
    source: str, target: str, divide_time: int, from_: str | None, to: str | None, window: int,
    interval: int,
) -> None:  # fmt: skip
    """Read SOURCE and write it as TARGET."""

    def step(reader: Reader) -> Iterator[Block]:
        if divide_time == 1:
            return reader
        # Windows stay windows only if each is a whole number of the new unit.
        whole, rest = divmod(reader.window, divide_time)
        reader.window = 0 if rest else whole
        by = np.uint64(divide_time)
        return (block._replace(time=block.time // by) for block in reader)

    _run(source, target, from_, to, window, interval, step)


@trace.command()
@click.argument("source", type=_TRACE)
@click.argument("target")
@click.option("--time", type=_Range(), default=_EVERYTHING, metavar="FROM:TO",
              help="Keep events of these times, TO not included.")  # fmt: skip
@click.option("--address", type=_Range(), default=_EVERYTHING, metavar="FROM:TO",
              help="Keep pages with bytes in this range.")  # fmt: skip
@click.option("--events", type=_Range(), default=_EVERYTHING, metavar="FROM:TO",
              help="Keep events of these numbers, from 0.")  # fmt: skip
@_from
@_to
def cut(
    source: str,
    target: str,
    time: tuple[int, int | None],
    address: tuple[int, int | None],
    events: tuple[int, int | None],
    from_: str | None,
    to: str | None,
    window: int,
    interval: int,
) -> None:
    """Keep a part of SOURCE: by time, by address, by number of event."""

    def step(reader: Reader) -> Iterator[Block]:
        return tools.cut(reader, time=time, address=address, events=events)

    _run(source, target, from_, to, window, interval, step)


@trace.command()
@click.argument("source", type=_TRACE)
@click.argument("target")
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), required=True,
              help="Share of the pages that is kept.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Decides which pages.")  # fmt: skip
@_from
@_to
def sample(
    source: str, target: str, share: float, seed: int, from_: str | None, to: str | None,
    window: int, interval: int,
) -> None:  # fmt: skip
    """Keep a share of the pages of SOURCE, each with all its events."""
    _run(source, target, from_, to, window, interval,
         lambda reader: tools.sample(reader, share, seed))  # fmt: skip


@trace.command()
@click.argument("source", type=_TRACE)
@click.argument("target")
@_from
@_to
def remap(
    source: str, target: str, from_: str | None, to: str | None, window: int, interval: int
) -> None:
    """Number the pages of SOURCE by first touch: sparse addresses become dense.

    The only command that takes page numbers of 64 bits, as ids of objects in
    cache traces are.
    """
    _run(source, target, from_, to, window, interval, tools.remap, any_page=True, keep_vms=False)


@trace.command()
@click.argument("sources", type=click.Path(exists=True, dir_okay=False), nargs=-1, required=True)
@click.argument("target")
@_from
@_to
def merge(
    sources: tuple[str, ...],
    target: str,
    from_: str | None,
    to: str | None,
    window: int,
    interval: int,
) -> None:
    """Run the programs SOURCES side by side, each in a virtual machine of its own.

    Events are sorted by time. The pages of each are numbered by first touch, from
    the first page of its VM on.
    """
    if len(sources) < 2:
        raise click.UsageError("expected at least two traces to merge, and one to write")
    _check_output(target, to)
    for source in sources:
        if not Path(source).is_file():
            raise click.UsageError(f"{source}: is no file, and a trace to merge is read twice")
    counts = []
    for source in sources:
        numbering = tools.Numbering()
        with traces.open_trace(source, from_, window=window, any_page=True) as reader:
            for block in reader:
                numbering.of(block.page)
        counts.append(numbering.count)
    with ExitStack() as stack:
        readers = [
            stack.enter_context(traces.open_trace(source, from_, window=window, any_page=True))
            for source in sources
        ]
        blocks, vms = tools.merge(readers, counts)
        windows = {reader.window for reader in readers}
        common = windows.pop() if len(windows) == 1 else 0
        with traces.writing(target, to, window=common, vms=vms, interval=interval) as writer:
            events = traces.write_all(blocks, writer)
    _say(target, f"Wrote {target}: {events:,} events of {len(sources)} VMs")
    _say_what_is_lost(target, to)


@trace.command("stats")
@click.argument("source", type=_TRACE)
@click.option("--every", type=click.IntRange(1), default=defaults.REPLAY_EVERY, show_default=True,
              metavar="N", help="Events in an interval of the working set.")  # fmt: skip
@_from
@json_option
def stats(source: str, every: int, from_: str | None, window: int, json_to: str | None) -> None:
    """Count what is in SOURCE."""
    check_target(json_to)
    with traces.open_trace(source, from_, window=window, any_page=True) as reader:
        found = tools.stats(reader, every)
        about = {"source": source, "format": reader.format, "window": reader.window,
                 "vms": len(reader.vms), "skipped": reader.skipped}  # fmt: skip
    if json_to != "-":
        rows = [
            ("format", f"{about['format']}"),
            ("events", f"{found.events:,}"),
            ("  that write", f"{found.writes:,} ({found.writes / found.events:.1%})"),
            ("time", f"{found.first_time:,} to {found.last_time:,}"),
            ("window", f"{about['window']:,}" if about["window"] else "none: every access"),
            ("pages", f"{found.pages:,} ({format_size(found.pages * PAGE_SIZE)})"),
            ("  written", f"{found.written_pages:,}"),
            ("addresses", f"{found.first_page * PAGE_SIZE:#x} to"
                          f" {(found.last_page + 1) * PAGE_SIZE:#x}, {found.runs:,} runs of pages"),
            ("working set", f"{found.working_set_mean:,.0f} pages in {found.every:,} events,"
                            f" at most {found.working_set_max:,}"),
        ]  # fmt: skip
        if about["vms"]:
            rows.insert(1, ("VMs", f"{about['vms']}"))
        if about["skipped"]:
            rows.append(("left out", f"{about['skipped']:,} samples"))
        table = new_table("", "", left=("",))
        table.show_header = False
        for name, value in rows:
            table.add_row(name, value)
        click.echo(source)
        print_table(table)
    if json_to is not None:
        write_json(
            {"schema": "youngbit/trace-stats", "schema_version": 1, **about, **found.to_dict()},
            json_to,
        )


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("-o", "--output", default="trace.npz", show_default=True, metavar="FILE",
              help="The trace; its ending says the format.")  # fmt: skip
@click.option("--window", type=NumberType(), default=str(traces.DEFAULT_WINDOW), show_default=True,
              metavar="N", help="Keep a page once in N instructions; 0 keeps every access."
              )  # fmt: skip
@click.option("--max-instructions", type=NumberType(), default="0", metavar="N",
              help="Stop the program after so many.")  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def record(output: str, window: int, max_instructions: int, command: tuple[str, ...]) -> None:
    """Record which pages COMMAND touches, through valgrind.

    Put -- before COMMAND. It runs some thousand times slower than usual. Ctrl-C
    ends it and keeps what was recorded.
    """
    check_target(output)
    if traces.format_of(output) not in traces.WRITTEN:
        raise click.UsageError(f"{output}: the ending is none of a format that can be written")
    with show_progress("record", None) as advance:
        made = record_program(
            command, output, window=window, max_instructions=max_instructions,
            progress=lambda events: advance(f"{events:,} events"),
        )  # fmt: skip
    sys.stdout.flush()
    click.echo(
        f"Wrote {output}: {made.events:,} events in {made.last_time + 1:,} instructions", err=True
    )
    if made.full:
        click.echo(
            "The program was stopped there: oracleGeneral has 32 bits for a time. Record it as"
            " .npz, and convert that with --divide-time",
            err=True,
        )
    if made.became:
        click.echo(
            f"The program went on as {made.became}, which is not recorded: give that as COMMAND",
            err=True,
        )
    if made.interrupted:
        fail("interrupted; what was recorded is written", EXIT_INTERRUPTED)
    if made.exit_status:
        click.echo(f"The program exited with {made.exit_status}", err=True)


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    group.add_command(trace)
    group.add_command(record)
