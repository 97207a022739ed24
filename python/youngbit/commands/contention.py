"""``youngbit access-tracking -p --against``: two protocols side by side."""

from __future__ import annotations

from pathlib import Path

import click

from .. import lab
from ..experiments import Contention, ContentionPoint, ContentionResult
from ..experiments.contention import FIGURES
from ..sizes import format_size
from .described import Way
from .shared import format_seconds, show_progress

__all__ = ["WAY"]


def _run(experiment: lab.ContentionDescription, _base: Path | None, quiet: bool) -> lab.Result:
    """Run both protocols in turn for each number of vCPUs, and print ratios."""
    contention = experiment.contention()
    repetitions = contention.repetitions
    if not quiet:
        click.echo(
            f"{contention.protocol} against {contention.against}, {experiment.mmu},"
            f" {format_size(experiment.vcpu_bytes)} a vCPU, half of it populated beforehand:"
            f" one run of each,\nthen {repetitions} of each in turn; medians"
        )
    runs = len(contention.vcpus) * 2 * (repetitions + 1)
    with show_progress("access-tracking", runs) as advance:
        return lab.run(
            experiment,
            running=lambda n, protocol, _: advance(f"{n} vCPUs, {protocol}"),
            measured=lambda point: None if quiet else _print(contention, point),
        )


def _text(found: lab.Result) -> None:
    result: ContentionResult = found.detail
    most = max(point.vcpus for point in result.points)
    if most >= result.processors:
        click.echo(
            f"{most + 1} threads on {result.processors} processors: where threads outnumber"
            " processors, waiting for a lock\nincludes waiting for the scheduler, and processor"
            " time says what the work itself cost."
        )


def _print(contention: Contention, point: ContentionPoint) -> None:
    click.echo()
    click.echo(f"{point.vcpus} vCPUs")
    for protocol, runs in point.runs.items():
        wall = point.spread(protocol, "vcpu_wall_seconds")
        average = point.spread(protocol, "average_pass_seconds")
        page = point.spread(protocol, "page_seconds")
        cpu = point.spread(protocol, "page_cpu_seconds")
        last = runs[-1]
        parts = [
            f"vcpu wall time {format_seconds(wall.median)}" if wall else "",
            f"avg pass {format_seconds(average.median)}" if average else "no passes",
            f"{page.median * 1e9:.0f} ns a page" if page else "",
            f"{cpu.median * 1e9:.0f} of processor time" if cpu else "",
        ]
        click.echo(f"  {protocol:<9} " + ", ".join(part for part in parts if part))
        click.echo(
            f"            last run: {last.passes} passes, {last.empty_passes} empty,"
            f" {last.asked:,} pages asked about; mmu_lock taken {last.aging_mmu_locks:,} times by"
            f" aging,\n            waited for {last.mmu_lock_waits:,} times by all,"
            f" {format_seconds(last.mmu_lock_wait_seconds)}; LRU lock"
            f" {format_seconds(last.lru_lock_wait_seconds)}"
        )
    for figure, name in FIGURES.items():
        ratio = point.ratio(contention.protocol, contention.against, figure)
        if ratio is not None:
            click.echo(
                f"  {contention.protocol} / {contention.against}: {name:<32}"
                f" {ratio.median:8.2f}  ({ratio.least:.2f} to {ratio.greatest:.2f})"
            )


WAY = Way(_run, _text)
