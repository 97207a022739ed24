"""Where pictures are drawn and how they become files: by the suffix, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import defaults
from .._files import atomic_write
from ..errors import missing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "format_of", "new", "save", "short"]

#: Letters of a name that a title has room for.
_ROOM = 36

#: Suffixes of picture files.
FORMATS: tuple[str, ...] = (".png", ".svg")


def format_of(path: str | os.PathLike[str]) -> str:
    """Return which format a picture's name asks for.

    >>> format_of("found/generations.SVG")
    'svg'

    Raises:
        ValueError: If the name ends in none of `FORMATS`.

    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        found = f"ends in {suffix}" if suffix else "has no suffix"
        raise ValueError(
            f"{os.fspath(path)}: the name of a picture {found}; expected {' or '.join(FORMATS)}"
        )
    return suffix[1:]


def short(name: str) -> str:
    """Return a name as titles have it: of a long path the end, which tells most.

    >>> short("mine.npz"), len(short("/very" * 20 + "/mine.npz"))
    ('mine.npz', 36)
    """
    return name if len(name) <= _ROOM else f"…{name[1 - _ROOM :]}"


def new(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, with no window behind it.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing("a picture", "matplotlib", "plot") from None

    figure = Figure(figsize=(width, height), layout="constrained")
    # Never a window: the backend is chosen with the canvas.
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as its name's suffix says.

    The same figure gives the same bytes: neither the date nor random names of
    an SVG's parts are in them.

    Raises:
        ValueError: As `format_of`.
        OSError: If the file cannot be written; what was there before stays.

    """
    from matplotlib import rc_context

    format_ = format_of(path)
    undated: dict[str, Any] = {"Date": None} if format_ == "svg" else {}
    settings: Any = {"svg.hashsalt": "youngbit", "svg.fonttype": "none"}
    with rc_context(settings), atomic_write(path, "wb") as file:
        figure.savefig(file, format=format_, dpi=defaults.PLOT_DPI, metadata=undated)
