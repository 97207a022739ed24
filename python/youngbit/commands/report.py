"""The command ``report``: results of a run or a sweep as one interactive page."""

from __future__ import annotations

import importlib.util

import click

from .shared import EXIT_USAGE, check_target, fail

__all__ = ["register"]


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False))
@click.option("-o", "--output", required=True, metavar="FILE", help="The page, .html.")
def report(results: str, output: str) -> None:
    """Write one interactive page about RESULTS, a directory of a run or a sweep.

    It holds all that it shows and loads nothing: it can be mailed, and opened
    without a network. A sweep that is not finished is reported as far as it is.
    """
    if not output.endswith(".html"):
        raise click.UsageError(f"{output}: the name of a page must end in .html")
    check_target(output)
    for module, extra in (("plotly", "report"), ("pyarrow", "lab")):
        if importlib.util.find_spec(module) is None:
            fail(f"a report needs {module}: pip install 'youngbit[{extra}]'", EXIT_USAGE)
    from ..lab import load
    from ..reports.lab import build

    for path in build(load(results)).write(output):
        click.echo(f"Wrote {path}")


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(report)
