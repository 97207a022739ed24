"""The examples of README and docstrings run as they stand."""

from __future__ import annotations

import doctest
import fnmatch
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


def known_checks() -> tuple[set[str], set[str]]:
    """Return names of tests, mutants and test files; and of recordings."""
    rust = [*(ROOT / "rust" / "core").rglob("*.rs")]
    text = "\n".join(path.read_text() for path in rust)
    names = set(re.findall(r"\bfn (\w+)", text))
    names |= set(re.findall(r"""=> "([a-z-]+)\"""", (ROOT / "rust/core/src/mutant.rs").read_text()))
    for path in [*rust, *(ROOT / "tests").glob("*.py")]:
        names |= {path.stem, "/".join(path.parts[-2:])}
        names |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
        names.add(f"{path.stem}::tests")
    data = ROOT / "tests" / "data" / "conformance"
    recordings = {
        name
        for path in data.rglob("*.jsonl")
        for stem in [path.name.removesuffix(".jsonl")]
        for name in (stem, f"{path.parent.name}/{stem}", re.sub(r"^k[a-z]_|\.\w+$", "", stem))
    }
    recordings |= {name.rsplit(".", 1)[0] for name in recordings}
    return names, recordings


def test_every_test_and_recording_that_fidelity_names_exists():
    names, recordings = known_checks()
    operations = {
        line.split()[0]
        for path in (ROOT / "tests" / "data").rglob("*.scn")
        for line in path.read_text().splitlines()
        if line and line[0].isalpha()
    }
    checked = 0
    for number, line in enumerate((ROOT / "docs" / "fidelity.md").read_text().splitlines(), 1):
        if not line.startswith("|"):
            continue
        for quoted in re.findall(r"`([^`]+)`", line.split("|")[-2]):
            last = quoted.rsplit("::", 1)[-1]
            pattern = last.replace("...", "*")
            found = (
                quoted in names
                or (quoted.endswith("::tests") and quoted in names)
                or bool(fnmatch.filter(names, pattern))
                or bool(fnmatch.filter(recordings, pattern))
                or quoted.split()[0] in operations
                or (ROOT / "rust" / "core" / "src" / quoted).exists()
            )
            assert found, f"docs/fidelity.md:{number}: nothing is called {quoted}"
            checked += 1
    assert checked > 150


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
