"""The command ``access-tracking``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import defaults, lab
from ..experiments import AccessTracking, AccessTrackingResult
from ..experiments.access_tracking import Step, not_asked
from . import contention
from .described import Way, run_described
from .shared import (
    NumberType,
    SizeType,
    format_seconds,
    json_option,
    print_option,
    show_progress,
)

__all__ = ["WAY", "register"]

if TYPE_CHECKING:
    _TupleType = click.ParamType[tuple[int, ...]]
else:
    # Generic only in recent versions.
    _TupleType = click.ParamType


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


#: Options that are called otherwise than what they describe.
_OPTIONS = {"aliases": "--alias", "l1_ad": "--l1-no-ad"}


@click.command("access-tracking")
@click.option("-l", "lru_gen", is_flag=True,
              help="Idle memory with MGLRU aging, and verify; needs capabilities 0x1 and 0x2."
              " Without 0x8 pages do not get younger, which fails.")  # fmt: skip
@click.option("-p", "benchmark", is_flag=True, help="Populate while aging in a loop; needs -l.")
@click.option("-v", "vcpus", type=_Counts(), default=str(defaults.VCPUS), show_default=True,
              metavar="N",
              help="Number of vCPUs; with --against also several, as 2,4,8,16.")  # fmt: skip
@click.option("-b", "vcpu_bytes", type=SizeType(), default=defaults.VCPU_BYTES, show_default=True,
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
              " populated beforehand, aging on a processor of its own; print ratios.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1, 1000), default=defaults.CONTENTION_REPETITIONS,
              show_default=True, metavar="N",
              help="Runs of each protocol, with --against.")  # fmt: skip
@click.option("--aging-asks", type=click.Choice(defaults.AGING_ASKS), default=None,
              help="What MGLRU's aging asks; otherwise what the protocol's kernel does:"
              " baseline and v9 accurate, v7 fast_only.")  # fmt: skip
@click.option("--no-ad", "no_ad", is_flag=True, help="Page tables without A/D bits (EPT only).")
@click.option("--l1-no-ad", "l1_no_ad", is_flag=True,
              help="A nested guest's page tables without A/D bits (EPT only); only with --mmu"
              " nested.")  # fmt: skip
@click.option("--alias", "aliases", type=click.IntRange(1), default=1, show_default=True,
              metavar="N", help="Let a guest map each page N times; only with --mmu shadow"
              " or nested, for tdp maps guest frames and never sees it.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(defaults.FORMATS), default=None,
              help="Format of page-table entries; otherwise ept, and npt for shadow"
              " paging.")  # fmt: skip
@click.option("--capabilities", type=NumberType(), default=f"{defaults.CAPABILITIES:#x}",
              show_default=True, metavar="MASK", help="Mask of lru_gen/enabled.")  # fmt: skip
@click.option("--tlb", "tlb_entries", type=click.IntRange(0, 1 << 20),
              default=defaults.ACCESS_TRACKING_TLB_ENTRIES, show_default=True, metavar="ENTRIES",
              help="Entries of each vCPU's TLB; 0 for none.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=f"{defaults.SEED:#x}", show_default=True,
              help="Of everything random.")  # fmt: skip
@click.option("--live/--inline", "live", default=None,
              help="One thread a vCPU (default), or one vCPU after another in one.")  # fmt: skip
@print_option
@json_option
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

    Exits 0 when verified, 1 when a check failed, 2 for bad usage, and 4 when -l is
    skipped, because capability 0x1 or 0x2 is off.
    """
    live = (options["benchmark"] or defaults.LIVE) if live is None else live
    options |= {"ad": not no_ad, "l1_ad": not l1_no_ad, "format": format_, "live": live}

    def describe() -> lab.Experiment:
        try:
            return described()
        except ValueError as error:
            key, _, problem = str(error).partition(": ")
            raise ValueError(f"{_OPTIONS[key]}: {problem}" if key in _OPTIONS else error) from None

    def described() -> lab.Experiment:
        if against is None:
            if len(vcpus) > 1:
                raise ValueError("several numbers of vCPUs need --against")
            return lab.AccessTracking(vcpus=vcpus[0], **options)
        return lab.ContentionDescription(
            vcpus=vcpus[0],
            vcpu_counts=vcpus if len(vcpus) > 1 else None,
            against=against,
            repetitions=repeat,
            **options,
        )

    if against is not None and not print_experiment:
        for protocol in (options["protocol"], against):
            asks = options["aging_asks"] or defaults.PROTOCOL_ASKS[protocol]
            warning = not_asked(asks, options["capabilities"])
            if warning is not None:
                click.echo(f"{protocol}: {warning}", err=True)
    run_described(
        WAY if against is None else contention.WAY,
        describe,
        print_experiment=print_experiment,
        json_to=json_to,
    )


def _run(experiment: AccessTracking, _base: Path | None, quiet: bool) -> lab.Result:
    """Run it, and print each step as the selftest does."""

    def say(line: str = "") -> None:
        if not quiet:
            click.echo(line)

    with show_progress("access-tracking", None) as advance:

        def started(result: AccessTrackingResult) -> None:
            first, end = result.guest_physical
            say(f"Random seed: {experiment.seed:#x}")
            if result.skipped is not None:
                say(f"1..0 # SKIP - {result.skipped}")
                return
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
                say(f"{step.name:<30}: {format_seconds(step.seconds)}")

        found = lab.run(experiment, started=started, stepped=stepped, warned=say)
    _tell(found.detail)
    return found


def _tell(result: AccessTrackingResult) -> None:
    """Say on standard error what failed, whoever reads standard output."""
    if result.failure is not None:
        click.echo("==== Test Assertion Failure ====", err=True)
        click.echo(f"  check {result.failure.check} of 5: {result.failure.detail}", err=True)
        click.echo(f"  {result.failure.reason}", err=True)


def _text(found: lab.Result) -> None:
    result: AccessTrackingResult = found.detail
    if result.vcpu_wall_seconds is None:
        return
    click.echo(f"{'vcpu wall time':<30}: {format_seconds(result.vcpu_wall_seconds)}")
    passes = result.aging_passes
    if not passes:
        click.echo(f"{'lru_gen avg pass duration':<30}: no passes")
        return
    total = sum(passes)
    click.echo(
        f"{'lru_gen avg pass duration':<30}: {format_seconds(total / len(passes))},"
        f" (passes:{len(passes)}, total:{format_seconds(total)})"
    )


WAY = Way(_run, _text)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(access_tracking)
