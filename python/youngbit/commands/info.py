"""The command ``info``."""

from __future__ import annotations

import os
import platform
from typing import Any

import click

from .. import __version__, defaults, traces
from .._core import build_info
from ..experiments.bench import machine
from ..sizes import format_size, parse_size
from .shared import check_target, json_option, write_json

__all__ = ["register"]


@click.command()
@json_option
def info(json_to: str | None) -> None:
    """Show version, build, processor and features."""
    check_target(json_to)
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
        write_json(about, json_to)


def register(group: click.Group) -> None:
    """Add the command to the group."""
    group.add_command(info)
