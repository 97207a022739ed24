"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_write", "scratch_directory"]


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Return what there is, links followed, or None if there is nothing."""
    try:
        return Path(path).stat().st_mode
    except FileNotFoundError:
        return None


def scratch_directory(path: str | os.PathLike[str]) -> Path | None:
    """Return where files without a name may be while ``path`` is written.

    Beside it, for there is room for as much; None, which is wherever temporary
    files are, if it is a device or a pipe.
    """
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        return None
    return Path(path).resolve().parent


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` and rename it to ``path`` at the end.

    When the body raises, the temporary file goes and ``path`` stays as it was. A
    link is followed, and the rights of a file that is written anew are kept. What
    is there and no file, such as a device or a pipe, cannot be replaced: that is
    written as it is, and a failure leaves what was written before.
    """
    encoding = None if "b" in mode else "utf-8"
    there = _mode(path)
    if there is not None and not stat.S_ISREG(there):
        with Path(path).open(mode, encoding=encoding) as file:
            yield file
        return
    target = Path(path).resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with os.fdopen(descriptor, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if there is None:
            umask = os.umask(0)
            os.umask(umask)
            there = 0o666 & ~umask
        Path(name).chmod(stat.S_IMODE(there))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
