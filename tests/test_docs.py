"""The examples of README and docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import youngbit

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme(number):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[number]],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "print(" in BLOCKS[number]:
        assert "anon" in done.stdout
        assert "aging pass" in done.stdout


def test_readme_has_examples():
    assert len(BLOCKS) >= 3


MODULES = [
    module.name
    for module in pkgutil.walk_packages(youngbit.__path__, "youngbit.")
    if not module.name.endswith(("__main__", "_core"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_some_docstrings_have_examples():
    tried = sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES)
    assert tried >= 5


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_dependency_is_listed():
    listed = (ROOT / "docs" / "dependencies.md").read_text()
    for manifest in ("rust/core/Cargo.toml", "rust/python/Cargo.toml"):
        text = (ROOT / manifest).read_text()
        for section in re.findall(r"dependencies\]\n(.*?)(?=\n\[|\Z)", text, re.DOTALL):
            for name in re.findall(r"^([a-z0-9_-]+) *=", section, re.MULTILINE):
                assert name == "youngbit-core" or name in listed, name


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples(path):
    small = ["16M", "1"] if path.name == "protocols.py" else []
    done = subprocess.run(
        [sys.executable, "-W", "error", path, *small],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
