"""The command ``youngbit`` with all of its subcommands."""

from __future__ import annotations

import os
import sys

import click

from .. import __version__
from ..errors import PolicyError
from . import (
    access_tracking,
    bench,
    estimate,
    info,
    lab,
    pictures,
    reclaim,
    replay,
    report,
    scenario,
    stress,
    traces,
)
from .shared import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, fail

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="youngbit")
def cli() -> None:
    """A reference model of multi-gen LRU aging across secondary MMUs."""


for _family in (
    access_tracking,
    replay,
    info,
    scenario,
    reclaim,
    bench,
    stress,
    lab,
    traces,
    estimate,
    pictures,
    report,
):
    _family.register(cli)


def main() -> None:
    """Run the command; the exit status says what happened."""
    try:
        cli.main(prog_name="youngbit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(EXIT_USAGE) from None
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_FAILED) from None
    except (ValueError, OSError, MemoryError, ImportError, PolicyError) as error:
        fail(str(error) or type(error).__name__, EXIT_USAGE)
