"""Commands that are descriptions of experiments: print one, or run and show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .. import lab
from .shared import EXIT_FAILED, EXIT_SKIPPED, check_picture, check_target, write_json

__all__ = ["INTERRUPTED", "Way", "exit_by_verdict", "plain", "run_described", "show"]


#: Status of what was shown as far as it came.
INTERRUPTED = "interrupted"


def plain(found: lab.Result) -> dict[str, Any]:
    """Return an experiment's own result as a plain dict."""
    result: dict[str, Any] = found.detail.to_dict()
    return result


@dataclass(frozen=True)
class Way:
    """How a kind of experiment is run and shown on a terminal."""

    #: Runs it, and shows how far it is: the experiment, where names of files in it
    #: start, and whether standard output is another's. What it gives with the status
    #: `INTERRUPTED` is shown like any other, and then the command is interrupted.
    run: Callable[[Any, Path | None, bool], lab.Result]
    #: Prints what it found.
    text: Callable[[lab.Result], None]
    #: What is written as JSON.
    json: Callable[[lab.Result], dict[str, Any]] = plain
    #: Draws it, if there is a picture of it.
    draw: Callable[[Any, str], None] | None = None
    #: Where it is drawn unless said otherwise, if a picture is all that there is to see.
    picture: str | None = None


def show(
    way: Way,
    experiment: lab.Experiment,
    json_to: str | None,
    *,
    plot: str | None = None,
    base: Path | None = None,
) -> lab.Result:
    """Run an experiment; print, write and draw what it found."""
    quiet = json_to == "-"
    found = way.run(experiment, base, quiet)
    if not quiet:
        way.text(found)
    if json_to is not None:
        write_json(way.json(found), json_to)
    if plot is not None:
        if way.draw is None:
            raise ValueError(f"{plot}: there is no picture of this kind of experiment")
        way.draw(found.detail, plot)
        if not quiet:
            click.echo(f"Wrote {plot}")
    if found.row.get("status") == INTERRUPTED:
        raise KeyboardInterrupt
    return found


def exit_by_verdict(found: lab.Result) -> None:
    """End the command with the status that a verdict has, unless it is good."""
    verdict = found.row.get("verdict", "pass")
    if verdict != "pass":
        raise SystemExit(EXIT_SKIPPED if verdict == "skip" else EXIT_FAILED)


def run_described(
    way: Way,
    describe: Callable[[], lab.Experiment],
    *,
    print_experiment: bool,
    json_to: str | None,
    plot: str | None = None,
) -> None:
    """Do what a command does whose options describe an experiment.

    Args:
        way: How it is shown.
        describe: Makes the description; what it refuses is a wrong usage.
        print_experiment: Print it, and do not run it.
        json_to: Where the result is written as JSON.
        plot: Where it is drawn.

    """
    check_target(json_to)
    check_picture(plot)
    try:
        experiment = describe()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if print_experiment:
        click.echo(lab.to_toml(experiment), nl=False)
    else:
        exit_by_verdict(show(way, experiment, json_to, plot=plot))
