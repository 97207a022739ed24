"""The commands ``lru-gen`` and ``conformance``."""

from __future__ import annotations

import sys

import click

from .. import defaults
from .._files import atomic_write
from ..experiments.scenario import (
    Conformance,
    ConformanceResult,
    Scenario,
    ScenarioResult,
    ScenarioStep,
)
from .shared import (
    EXIT_FAILED,
    NumberType,
    check_target,
    json_option,
    new_table,
    print_table,
    show_progress,
    write_json,
)

__all__ = ["register"]


@click.command("lru-gen")
@click.argument("scenario", type=click.Path(exists=True, dir_okay=False))
@click.option("--capabilities", type=NumberType(), default=f"{defaults.CAPABILITIES:#x}",
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
@json_option
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
    check_target(json_to)
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
@json_option
def conformance(directory: str, json_to: str | None) -> None:
    """Compare every recording of a real kernel in DIRECTORY with the model.

    DIRECTORY has scenarios/NAME.scn and FOLDER/*.jsonl, as
    tests/data/conformance has. Exits 0 only if every step of every recording is
    equal by the rules of docs/scenarios.md, 1 if not, 2 if there is nothing to
    compare.
    """
    check_target(json_to)
    experiment = Conformance(directory)
    files = experiment.files()
    if not files:
        raise click.UsageError(f"{directory}: has no recordings, FOLDER/*.jsonl")
    result = ConformanceResult(directory)
    with show_progress("conformance", len(files)) as advance:
        for each in experiment.run():
            result.recordings.append(each)
            advance(each.file)
    if json_to != "-":
        _print_conformance(result)
    if json_to is not None:
        write_json(result.to_dict(), json_to)
    for each in result.recordings:
        if not each.compared:
            click.echo(f"youngbit: {each.file}: {each.first_difference}", err=True)
    if not result.is_equal:
        raise SystemExit(EXIT_FAILED)


def _print_conformance(result: ConformanceResult) -> None:
    table = new_table("recording", "steps", "equal", "first difference",
                   left=("recording", "first difference"))  # fmt: skip
    for each in result.recordings:
        table.add_row(
            each.file, str(each.steps), str(each.equal_steps), each.first_difference or ""
        )
    print_table(table)
    click.echo(f"{result.nr_equal} of {len(result.recordings)} recordings are equal")


def register(group: click.Group) -> None:
    """Add the commands to the group."""
    for command in (lru_gen, conformance):
        group.add_command(command)
