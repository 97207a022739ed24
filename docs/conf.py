"""How the documentation is built: `make docs`, offline, warnings are errors."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# The extension's stubs carry types and its docstrings are the Rust ones: the
# reference shows both, so autodoc must not read the stubs instead.
os.environ["SPHINX_AUTODOC_IGNORE_NATIVE_MODULE_TYPE_STUBS"] = "1"


import youngbit

project = "youngbit"
author = "the youngbit developers"
project_copyright = "the youngbit developers, MIT OR Apache-2.0"
version = release = youngbit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build", "conf.py", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"youngbit {version}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False

nitpicky = True
#: Other projects, whose documentation is not at hand offline: their names are
#: shown and lead nowhere.
OTHERS = {
    "click", "collections", "concurrent", "contextlib", "dask", "distributed", "matplotlib", "np",
    "npt", "numpy", "os", "pandas", "pathlib", "plotly", "polars", "pyarrow", "rich", "types",
    "typing",
}  # fmt: skip
nitpick_ignore_regex = [
    # Aliases of types, written as text, and what they are made of.
    (r"py:class", r"[^.]*"),
    (r"py:(class|obj)", r"(youngbit\.(_core\..*|.*\.AnExperiment|.*\._\w+)|units\..*)"),
]
# A name in an annotation that several classes have.
suppress_warnings = ["ref.python"]
default_role = "any"

autodoc_default_options = {"members": True, "ignore-module-all": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases: dict[str, str] = {}
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
# Notebooks are committed without outputs: what a page shows is what running it gave.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 60
nb_merge_streams = True

HERE = Path(__file__).parent


def _modules() -> list[str]:
    """Every public module; the command's are in the command's own reference."""
    found = [youngbit.__name__]
    for module in pkgutil.walk_packages(youngbit.__path__, "youngbit."):
        parts = module.name.split(".")
        if not any(part.startswith(("_", "commands")) for part in parts[1:]):
            found.append(module.name)
    return found


def _hide_from_napoleon(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep what documents a value away from napoleon, which takes "a: b" for a type."""
    if what in ("attribute", "data") or (what == "property" and not _has_section(lines)):
        _hidden[name] = lines[:]
        lines.clear()


def _show_again(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:0] = _hidden.pop(name, [])
    if name.startswith("youngbit._core"):
        # Rust's documentation is Markdown: one backtick is code.
        lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def _has_section(lines: list[str]) -> bool:
    return any(re.fullmatch(r"\w+:", line) for line in lines)


_hidden: dict[str, list[str]] = {}


def _of_others(app: object, env: object, node: Any, contnode: Any) -> Any:
    """Leave names of other projects as they are."""
    return contnode if node.get("reftarget", "").split(".")[0] in OTHERS else None


def _escape(app: object, context: object, lines: list[str]) -> None:
    """A command's help is plain text, not reStructuredText."""
    lines[:] = [re.sub(r"([*`|])", r"\\\1", line) for line in lines]


def _write_api(*_: object) -> None:
    """Write a page for each module, and none for modules that have gone."""
    folder = HERE / "reference" / "api"
    folder.mkdir(exist_ok=True)
    pages = {}
    for name in _modules():
        module = importlib.import_module(name)
        body = [f"# `{name}`", "", "```{eval-rst}", f".. automodule:: {name}", ""]
        # What a package has from its private modules is documented as the package's.
        for public in getattr(module, "__all__", ()):
            found = getattr(module, public)
            if "._" in getattr(found, "__module__", "") and not found.__module__.endswith("._core"):
                kind = "class" if inspect.isclass(found) else "function"
                body += [f".. auto{kind}:: {name}.{public}", ""]
        body += ["```", ""]
        if name == "youngbit.defaults":
            # Most need no words but their names; all of them have a value.
            path = "../../../python/youngbit/defaults.py"
            body += ["## All of them", "", f"```{{literalinclude}} {path}", "```", ""]
        pages[f"{name.replace('.', '-')}.md"] = "\n".join(body)
    for old in folder.iterdir():
        if old.name not in pages:
            old.unlink()
    for file, text in pages.items():
        page = folder / file
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _write_api)
    app.connect("autodoc-process-docstring", _hide_from_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _show_again, priority=600)
    app.connect("missing-reference", _of_others)
    app.connect("sphinx-click-process-description", _escape)
