"""One HTML page that holds everything it shows.

A report is a file that somebody opens from a disk or a mail, years later and
without a network: figures are inside the page, and nothing is loaded. Nothing
runs but what draws interactive figures, where there are any. What is text comes
out as text: titles, cells and captions are escaped.

>>> page = Page("Aging", lead="Two guests.")
>>> page.table(["guest", "ns a page"], [["a < b", 28.5]], caption="Cost")
>>> "a &lt; b" in page.to_html()
True
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import defaults
from .._files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "new_figure"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
p.lead { font-size: 1.15rem; } p { max-width: 46rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: #555; font-size: .9rem; text-align: left; max-width: 46rem; }
caption { caption-side: top; padding-bottom: .4rem; }
div.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
thead th { border-bottom: 2px solid #999; }
.n { text-align: right; white-space: nowrap; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
p.note { background: #fff6dc; border-left: 4px solid #e0b100; padding: .5rem .8rem; }
footer { margin: 3rem 0 1rem; color: #555; font-size: .85rem; }
"""

# Nothing may be loaded, and nothing may run but scripts with the hashes that are
# named, whatever text found its way in.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_INTERACTIVE_CONFIG = {"displaylogo": False, "responsive": True}

_NUMBER = re.compile(
    r"[-+]?[\d,.]+(e[-+]?\d+)?( ?(%|x|[num]?s))?"
    r"( \(([-\d,. ]+|[-+\d.e]+ to [-+\d.e]+)\))?"
)


def new_figure(width: float = 9.0, height: float = 4.5) -> Figure:
    """Return an empty figure, in inches, that never opens a window.

    Raises:
        ImportError: If matplotlib is not installed.

    """
    from ..plot.canvas import new

    return new(width, height)


def _svg(figure: Figure) -> bytes:
    """Draw a figure that comes out the same each time."""
    import matplotlib as mpl

    data = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "youngbit", "svg.fonttype": "path"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    return data.getvalue()


def _cell(value: Any) -> tuple[str, bool]:
    """Text of a cell, and whether it is a number and goes to the right."""
    if value is None:
        return "", False
    if isinstance(value, bool):
        return ("yes" if value else "no"), False
    if isinstance(value, float):
        return f"{value:.4g}", True
    if isinstance(value, int):
        return f"{value:,}", True
    text = str(value)
    return text, _NUMBER.fullmatch(text) is not None


@dataclass
class _Figure:
    name: str
    figure: Figure


class Page:
    """A page that is written from top to bottom.

    Args:
        title: Its title and first heading.
        lead: A sentence or two under it: what the reader will find out.

    """

    def __init__(self, title: str, *, lead: str = "") -> None:
        self._title = title
        self._parts: list[str] = []
        self._figures: list[_Figure] = []
        self._interactive: list[str] = []
        self._scripts: list[str] = []
        if lead:
            self._parts.append(f'<p class="lead">{html.escape(lead)}</p>')

    @property
    def figures(self) -> list[str]:
        """Names of the figures that are pictures, in the order of the page."""
        return [each.name for each in self._figures]

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section."""
        if not 2 <= level <= 6:
            raise ValueError(f"level: {level} is not in the range of 2 to 6")
        self._parts.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, *paragraphs: str) -> None:
        """Add paragraphs."""
        self._parts.extend(f"<p>{html.escape(each)}</p>" for each in paragraphs)

    def note(self, text: str) -> None:
        """Add a paragraph that nobody should overlook."""
        self._parts.append(f'<p class="note">{html.escape(text)}</p>')

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        *,
        caption: str = "",
        folded: bool = False,
    ) -> None:
        """Add a table.

        Args:
            columns: Their headings.
            rows: A cell a column; None is empty, numbers go to the right.
            caption: What it shows.
            folded: Whether the reader has to open it: for what is long.

        Raises:
            ValueError: If a row has more or fewer cells than there are columns.

        """
        lines = ['<div class="table"><table>']
        if caption and not folded:
            lines.append(f"<caption>{html.escape(caption)}</caption>")
        texts = []
        numeric = [True] * len(columns)
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns")
            cells = [_cell(value) for value in row]
            texts.append([text for text, _ in cells])
            numeric = [
                n and (right or not text) for n, (text, right) in zip(numeric, cells, strict=True)
            ]
        # A column of numbers goes to the right, with its heading.
        sides = [" class=n" if right and texts else "" for right in numeric]

        def cells_of(tag: str, values: Sequence[str]) -> str:
            return "".join(
                f"<{tag}{side}>{html.escape(value)}</{tag}>"
                for side, value in zip(sides, values, strict=True)
            )

        lines.append(f"<thead><tr>{cells_of('th', columns)}</tr></thead><tbody>")
        lines += [f"<tr>{cells_of('td', row)}</tr>" for row in texts]
        lines.append("</tbody></table></div>")
        if folded:
            lines.insert(0, f"<details><summary>{html.escape(caption)}</summary>")
            lines.append("</details>")
        self._parts.append("\n".join(lines))

    def figure(self, figure: Figure, *, name: str, caption: str, alt: str) -> None:
        """Add a figure.

        Args:
            figure: A figure of matplotlib.
            name: Of the figure, in the page and among files: small letters,
                digits and dashes, once a page.
            caption: What is seen, and what to think of it.
            alt: What is seen, for who does not see.

        Raises:
            ValueError: If the name is no such name, or there already.

        """
        self._check_name(name)
        self._figures.append(_Figure(name, figure))
        # As an image, its ids are its own: those of two figures in one document
        # would be the same.
        data = base64.b64encode(_svg(figure)).decode()
        self._parts.append(
            f'<figure id="{name}"><img src="data:image/svg+xml;base64,{data}"'
            f' alt="{html.escape(alt)}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        )

    def interactive(self, figure: Any, *, name: str, caption: str) -> None:
        """Add a figure that can be pointed at, zoomed and changed in the browser.

        The script that draws it comes with the page, once, some 5 MB of it.

        Args:
            figure: A figure of plotly, a `plotly.graph_objects.Figure`.
            name: As of `figure`.
            caption: What is seen, and what can be done with it.

        Raises:
            ImportError: If plotly is not installed.
            ValueError: As `figure`.

        """
        from plotly.offline import get_plotlyjs

        self._check_name(name)
        if not self._interactive:
            self._scripts.append(get_plotlyjs())
        self._interactive.append(name)
        data = json.loads(figure.to_json())
        arguments = ", ".join(
            # No text can end the script: it has no "<" in it.
            json.dumps(each, allow_nan=False).replace("<", "\\u003c")
            for each in (name, data["data"], data["layout"], _INTERACTIVE_CONFIG)
        )
        self._scripts.append(f"Plotly.newPlot({arguments});")
        self._parts.append(
            f'<figure><div id="{name}" class="interactive"><noscript>This figure needs'
            f" JavaScript.</noscript></div><figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise ValueError(f"{name!r} is no name of small letters, digits and dashes")
        if name in (*self.figures, *self._interactive):
            raise ValueError(f"there is a figure {name!r} already")

    def _policy(self) -> str:
        if not self._scripts:
            return _POLICY
        hashes = [
            base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            for script in self._scripts
        ]
        return f"{_POLICY}; script-src {' '.join(repr(f'sha256-{each}') for each in hashes)}"

    def to_html(self) -> str:
        """Return the page."""
        title = html.escape(self._title)
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{self._policy()}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title>",
                f"<style>{_STYLE}</style>",
                "</head>",
                "<body>",
                f"<h1>{title}</h1>",
                *self._parts,
                *(f"<script>{script}</script>" for script in self._scripts),
                "</body>",
                "</html>",
                "",
            ]
        )

    def write(self, path: str | os.PathLike[str], *, pngs: bool = False) -> list[Path]:
        """Write the page, whole or not at all.

        Args:
            path: Of the page.
            pngs: Whether to write each figure beside it too, as a PNG whose
                name is that of the page, a dash, and that of the figure.

        Returns:
            What was written, the page first.

        Raises:
            OSError: If it cannot be written.

        """
        page = Path(path)
        written = [page]
        if pngs:
            for each in self._figures:
                target = page.with_name(f"{page.stem}-{each.name}.png")
                with atomic_write(target, "wb") as file:
                    each.figure.savefig(file, format="png", dpi=defaults.PLOT_DPI)
                written.append(target)
        with atomic_write(page) as file:
            file.write(self.to_html())
        return written
