"""The documentation: it builds without a warning, and what its pages show is so."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import youngbit
from youngbit.commands.main import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("reference/*.md"), ROOT / "README.md"]
)
STATUS = "\x1estatus "


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def pages_with(language: str) -> list:
    return [
        pytest.param(page, id=page.relative_to(ROOT).as_posix())
        for page in PAGES
        if blocks(page, language)
    ]


def steps(block: str) -> list[tuple[str, list[str]]]:
    """Take a console block apart: each command, and the lines it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            assert found, f"output before the first command: {line!r}"
            found[-1][1].append(line.rstrip())
    return found


def pattern(lines: list[str]) -> str:
    """What `docs/howto/docs.md` says: `...` is any text, on a line of its own any lines."""
    parts = []
    for line in lines:
        if line.strip() == "...":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*".join(map(re.escape, line.split("..."))) + r"\n")
    return "".join(parts)


def console(block: str, directory: Path) -> list[tuple[str, list[str], str, int]]:
    """Run a block in one bash; return commands, what is shown, what was printed, status."""
    given = steps(block)
    script = "\n".join(
        f"{command}\nstatus=$?; printf '{STATUS}%d\\n' $status; (exit $status)"
        for command, _ in given
    )
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=directory,
        env={**os.environ, "PATH": binaries},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    outputs = re.split(rf"{STATUS}(\d+)\n", done.stdout)
    assert len(outputs) == 2 * len(given) + 1, done.stdout
    return [
        (command, shown, outputs[2 * i], int(outputs[2 * i + 1]))
        for i, (command, shown) in enumerate(given)
    ]


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_print_what_is_shown(page, tmp_path):
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for block in blocks(page, "console"):
        done = console(block, tmp_path)
        for i, (command, shown, printed, status) in enumerate(done):
            plain = "".join(f"{line.rstrip()}\n" for line in printed.splitlines())
            assert re.fullmatch(pattern(shown), plain), (
                f"{page.name}: $ {command}\nprinted:\n{plain}\nshown:\n" + "\n".join(shown)
            )
            told = i + 1 < len(done) and done[i + 1][0] == "echo $?"
            assert status == 0 or told, f"{page.name}: $ {command}: status {status}\n{plain}"


def test_the_rule_for_what_is_left_out():
    assert re.fullmatch(pattern(["a: ...s", "...", "end"]), "a: 1.5s\nx\ny\nend\n")
    assert re.fullmatch(pattern(["a", "...", "end"]), "a\nend\n")
    assert not re.fullmatch(pattern(["a: ...s"]), "a: 1.5s\nb\n")
    assert not re.fullmatch(pattern(["a: ...s"]), "a: 1.5\n")
    assert not re.fullmatch(pattern(["a+b"]), "aab\n")
    assert not re.fullmatch(pattern(["a", "..."]), "b\nc\n")


def test_console_blocks_are_found_and_can_fail(tmp_path):
    assert sum(len(blocks(page, "console")) for page in PAGES) >= 8
    [(_, shown, printed, status), (_, _, told, _)] = console(
        "$ echo it; false\nis\n$ echo $?\n1\n", tmp_path
    )
    assert (printed, status, told) == ("it\n", 1, "1\n")
    assert not re.fullmatch(pattern(shown), printed)


def of_a_recording(page: Path) -> list[str]:
    """The command of a page that records a program, and those that work on the trace."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    lines += [command for block in blocks(page, "console") for command, _ in steps(block)]
    return [line for line in lines if "mine.npz" in line and "mine.csv" not in line]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "howto" / "first-trace.md"],
                         ids=lambda page: page.name)  # fmt: skip
def test_five_commands_from_a_program_to_a_picture(page, tmp_path):
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed, and records the program")
    commands = of_a_recording(page)
    assert len(commands) == 5
    assert commands[0].startswith("youngbit record -o mine.npz ")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    done = [console(f"$ {command}\n", tmp_path)[0] for command in commands]
    for command, _, printed, status in done:
        assert status == 0, f"$ {command}: status {status}\n{printed}"
        assert printed.replace("\n", "").isprintable(), f"$ {command}: {printed!r}"
    tables = "".join(printed for _, _, printed, _ in done)
    assert "MGLRU without the series" in tables
    if "youngbit policies mine.npz" in map(str.strip, (c.split("#")[0] for c in commands)):
        installed = importlib.util.find_spec("libcachesim") is not None
        assert "\nbelady " in tables
        assert ("\ns3-fifo " in tables) is installed
    pictures = [word for command in commands[1:] for word in re.findall(r"-o (\S+)", command)]
    assert pictures
    assert all((tmp_path / name).stat().st_size > 1000 for name in pictures)


# Tested with what they need: README.md by test_docs.py, the guide to experiments by
# test_lab.py, which makes the results that it loads.
ELSEWHERE = ("README.md", "docs/experiments.md")


@pytest.mark.parametrize(
    "page", [page for page in pages_with("python") if page.id not in ELSEWHERE]
)
def test_python_blocks_run(page, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(blocks(page, "python"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", pages_with("pycon"))
def test_pycon_blocks_show_what_is_so(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    assert len(test.examples) >= 2
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


sphinx = pytest.mark.skipif(sys.version_info < (3, 11), reason="Sphinx needs Python 3.11")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does, notebooks and all."""
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
         "-d", out / "doctrees", DOCS, out / "html"],
        capture_output=True,
        text=True,
        timeout=115,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


def inventory(site: Path) -> set[str]:
    """Names that the reference describes."""
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ")[0] for line in lines if " py:" in line}


def public_names() -> list[str]:
    """Everything that is public, by where it is defined."""
    names = []
    for module in pkgutil.walk_packages(youngbit.__path__, "youngbit."):
        if re.search(r"\.(_|commands)", module.name):
            continue
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            found = getattr(loaded, name)
            if inspect.isclass(found) or inspect.isfunction(found):
                private = "._" in found.__module__
                names.append(f"{module.name if private else found.__module__}.{found.__qualname__}")
            elif not inspect.ismodule(found) and _assigns(loaded, name):
                names.append(f"{module.name}.{name}")
    return sorted(set(names))


def _assigns(module, name: str) -> bool:
    return re.search(rf"^{name}\b[^=\n]*= ", inspect.getsource(module), re.MULTILINE) is not None


@sphinx
def test_everything_public_is_in_the_reference(site):
    described = inventory(site)
    names = public_names()
    assert len(names) > 80
    assert [name for name in names if name not in described] == []
    core = [f"youngbit._core.{name}" for name in youngbit._core.__all__]
    assert [name for name in core if name not in described] == []


@sphinx
def test_every_command_is_in_the_reference(site):
    page = (site / "reference" / "command.html").read_text()
    names = list(cli.commands)
    assert len(names) >= 6
    for name in names:
        assert f'id="youngbit-{name}"' in page, name


@sphinx
def test_nothing_is_loaded_from_the_network(site):
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > 30
    for file in files:
        text = file.read_text()
        loads = re.findall(
            r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//""", text
        )
        loads += re.findall(r"""<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>""", text)
        loads += re.findall(r"""(?:@import|url\()\s*["']?(?:https?:)?//[^)]*""", text)
        assert loads == [], file


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@sphinx
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_were_run_and_show_pictures(path, site):
    page = (site / "notebooks" / f"{path.stem}.html").read_text()
    assert page.count("cell_output") >= 2
    assert "<svg" in page or ".svg" in page
    assert "Traceback" not in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    import json

    cells = json.loads(path.read_text())["cells"]
    assert any(cell["cell_type"] == "code" for cell in cells)
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) >= 3
