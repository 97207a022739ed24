"""Write the reference of parameters and columns into docs/experiments.md.

With --check nothing is written, and the exit status says whether it is up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from youngbit import lab
from youngbit.lab import describe
from youngbit.lab.columns import documented

PAGE = Path(__file__).parent.parent / "docs" / "experiments.md"
MARK = "<!-- What follows is written by tools/reference.py. -->\n"


def parameters(cls: type) -> list[str]:
    """Return the rows of a description's parameters, and then of its tables."""
    hints = describe._hints(cls)
    made = cls()
    rows = ["", "| key | default | unit or values | what |", "|---|---|---|---|"]
    inner: list[tuple[str, type]] = []
    for name in hints:
        kinds, _ = describe._bare(hints[name])
        each = getattr(made, name)
        if each is None:
            default = ""
        elif describe._is_table(each):
            default = "a table" if not isinstance(each, tuple) else "one table"
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            inner += [(name, getattr(kind, "__args__", (kind,))[0]) for kind in kinds]
        else:
            default = f"`{describe._scalar(each, describe.units(cls, name))}`"
        meaning = describe.docs(cls)[name].replace("``", "`")
        rows.append(f"| `{name}` | {default} | {describe.units(cls, name)} | {meaning} |")
    for name, kind in inner:
        about = (kind.__doc__ or "").splitlines()[0]
        tag = getattr(kind, "tag", None)
        rows += ["", f"`{name}`" + (f" of kind `{tag}`" if tag else "") + f": {about}"]
        rows += parameters(kind)
    return rows


def reference() -> str:
    """Return the part of the page that is written."""
    lines = ["", "## Reference: what may be described", ""]
    lines += ["A key without a default may be left out; what then holds is said."]
    for name, kind in lab.KINDS.items():
        lines += ["", f"### `{name}`", "", (kind.type.__doc__ or "").splitlines()[0]]
        lines += parameters(kind.type)
    lines += ["", "## Reference: columns", ""]
    lines += [
        "Every parameter is a column of the table of runs, named by its dotted key. Every counter"
        " of [json.md](json.md)",
        "is a column `counters.NAME` of both tables where the experiment has it; of `reclaim` there"
        " are two, `off.counters.NAME`",
        "and `on.counters.NAME`. Any value may be null: it does not apply, or the run failed.",
    ]
    for table, title in (("runs", "Table of runs"), ("passes", "Table of passes")):
        lines += ["", f"### {title}", "", "| column | type | unit or values | group | what |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.type} | {each.unit} | {each.group} | {each.meaning} |"
            for each in documented(table)
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or check it."""
    own = PAGE.read_text().partition(MARK)[0]
    text = own + MARK + reference()
    if "--check" in sys.argv:
        sys.exit(text != PAGE.read_text())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
