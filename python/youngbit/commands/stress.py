"""The command ``mmu-stress``."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .. import _core, defaults
from .shared import EXIT_FAILED, EXIT_INTERRUPTED, NumberType, check_target, json_option, write_json

__all__ = ["register"]

#: What is printed of the counters.
COUNTERS = (
    "kvm_page_faults",
    "fast_page_faults",
    "sptes_aged",
    "sptes_zapped",
    "shadow_pages_recycled",
    "tlb_flushes",
    "pswpout",
    "pswpin",
    "poison_reads",
)


if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:
    # Generic only in recent versions.
    _FloatType = click.ParamType


class _Seconds(_FloatType):
    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not (math.isfinite(seconds) and 0 < seconds <= 1e6):
            self.fail(f"{value!r} is not above 0 and at most a million seconds", param, ctx)
        return seconds


@click.command("mmu-stress")
@click.option("--threads", type=click.IntRange(1, 64), default=defaults.STRESS_THREADS,
              show_default=True, help="vCPUs, each a thread.")  # fmt: skip
@click.option("--agers", type=click.IntRange(0, 16), default=defaults.STRESS_AGERS,
              show_default=True, help="Threads that age.")  # fmt: skip
@click.option("--seconds", type=_Seconds(), default=defaults.STRESS_SECONDS, show_default=True,
              help="For how long rounds are begun; the last is cut short.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(1), default=None,
              help="So many rounds, however long they take.")  # fmt: skip
@click.option("--accesses", type=click.IntRange(1), default=defaults.STRESS_ACCESSES,
              show_default=True, help="Accesses of each vCPU in a round.")  # fmt: skip
@click.option("--seed", type=NumberType(), default=defaults.SEED, show_default=True,
              help="Seed of the first round; each next one's follows from it.")  # fmt: skip
@click.option("--mmu", type=click.Choice(defaults.MMUS), default=defaults.MMU, show_default=True,
              help="Which MMU maps guest memory.")  # fmt: skip
@click.option("--protocol", type=click.Choice(defaults.PROTOCOLS), default=defaults.PROTOCOL,
              show_default=True, help="How machines are aged.")  # fmt: skip
@json_option
def mmu_stress(
    threads: int,
    agers: int,
    seconds: float,
    rounds: int | None,
    accesses: int,
    seed: int,
    mmu: str,
    protocol: str,
    json_to: str | None,
) -> None:
    """Do everything to virtual machines at once, and check them.

    Each round makes a machine from its seed, runs it while others age it, move
    its memory, swap it out, log its writes and rewrite its page tables, and then
    checks it and takes it apart. Exits with 1 if anything was wrong, and prints
    the command that repeats the round; how threads interleave is not repeated,
    so it may have to be run more than once.
    """
    check_target(json_to)
    console = Console(stderr=True)
    deeds: Counter[str] = Counter()
    counters: Counter[str] = Counter()
    begin = time.monotonic()
    made = done = 0
    failure: dict[str, Any] | None = None
    interrupted = False
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True,
                  disable=not console.is_terminal) as progress:  # fmt: skip
        task = progress.add_task("", total=None)

        def show(accesses_now: int) -> None:
            progress.update(task, description=f"round {done + 1}, {made + accesses_now:,} accesses")

        at = seed
        while not interrupted and failure is None:
            left = seconds - (time.monotonic() - begin)
            if done >= rounds if rounds is not None else left <= 0:
                break
            limit = left if rounds is None else 1e9
            try:
                ran = _core.stress_round(mmu, protocol, threads, agers, accesses, at, limit, show)
            except KeyboardInterrupt:
                interrupted = True
                break
            done += 1
            made += ran["accesses"]
            deeds.update(ran["deeds"])
            counters.update(ran["counters"])
            interrupted = ran["interrupted"]
            if ran["failure"] is not None:
                failure = {"seed": at, "machine": ran["machine"], "what": ran["failure"]}
            at = _core.next_seed(at)
    result: dict[str, Any] = {
        "schema": "youngbit/mmu-stress",
        "schema_version": 1,
        "mmu": mmu,
        "protocol": protocol,
        "threads": threads,
        "agers": agers,
        "seed": seed,
        "accesses_a_round": accesses,
        "seconds": round(time.monotonic() - begin, 3),
        "rounds": done,
        "accesses": made,
        "interrupted": interrupted,
        "deeds": dict(deeds),
        "counters": dict(counters),
        "failure": failure,
    }
    if failure is not None:
        repeat = (
            f"youngbit mmu-stress --mmu {mmu} --protocol {protocol} --threads {threads}"
            f" --agers {agers} --accesses {accesses} --rounds 1 --seed {failure['seed']}"
        )
        failure["repeat"] = repeat
    if json_to != "-":
        _print(result)
    if json_to is not None:
        write_json(result, json_to)
    if failure is not None:
        click.echo(f"youngbit: {failure['what']}", err=True)
        click.echo(f"machine: {failure['machine']}", err=True)
        click.echo(f"repeat: {failure['repeat']}", err=True)
        raise SystemExit(EXIT_FAILED)
    if interrupted:
        click.echo("youngbit: interrupted", err=True)
        raise SystemExit(EXIT_INTERRUPTED)


def _print(result: dict[str, Any]) -> None:
    click.echo(
        f"{result['mmu']} {result['protocol']}: {result['rounds']} rounds,"
        f" {result['accesses']:,} accesses, {result['seconds']:.1f} s, seed {result['seed']:#x}"
    )
    chosen = {name: result["counters"].get(name, 0) for name in COUNTERS}
    for name, n in {**result["deeds"], **chosen}.items():
        click.echo(f"{n:>14,}  {name.replace('_', ' ')}")
    click.echo("nothing was lost" if result["failure"] is None else "FAILED")


def register(group: click.Group) -> None:
    """Add the command."""
    group.add_command(mmu_stress)
