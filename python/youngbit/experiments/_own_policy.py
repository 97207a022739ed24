"""A policy of the user's own that a description names, and what it does wrong."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType

from ..errors import PolicyError
from ..policy import Policy

__all__ = ["OwnPolicy"]

#: Where no policy of a user's own is.
_PACKAGE = f"{Path(__file__).parent.parent}/"
#: How the core begins what it says about an answer that is none.
_ANSWERS = tuple(f"{decision}() returned " for decision in Policy.DECISIONS)


class OwnPolicy:
    """A policy by its name.

    Args:
        name: ``FILE.py:NAME`` or ``MODULE:NAME``.
        base: Where names of files start.

    Raises:
        ValueError: If there is none of that name.
        PolicyError: If its module or its constructor raises, or a decision of it
            cannot be called.

    """

    def __init__(self, name: str, base: Path | None) -> None:
        self._name = name
        where, _, what = name.rpartition(":")
        with self._blamed(self._anywhere):
            module = _module(where, base)
        if module is None:
            kind = "file" if where.endswith(".py") else "module"
            raise ValueError(f"policy: there is no {kind} {where}")
        found = getattr(module, what, None)
        if not (inspect.isclass(found) and issubclass(found, Policy)):
            raise ValueError(
                f"policy: {where} has no subclass of youngbit.policy.Policy named {what}"
            )
        own = found.__mro__[: found.__mro__.index(Policy)]
        #: The files that its decisions are in.
        self._files = {getattr(sys.modules.get(each.__module__), "__file__", None) for each in own}
        with self._blamed(self._anywhere):
            self.policy: Policy = found()
            self.policy.check_decisions()

    def blamed(self) -> AbstractContextManager[None]:
        """Raise what a decision raised, or answered wrongly, as `PolicyError`.

        Ctrl-C is nobody's fault, and what was raised elsewhere stays what it is.
        """
        return self._blamed(self._in_a_decision)

    @contextmanager
    def _blamed(self, place_of: Callable[[BaseException], str | None]) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # SystemExit too: a policy does not end its caller without a word.
            place = place_of(error)
            if place is None:
                raise
            # Of a SyntaxError the place is said, and its own text has it once more.
            said = error.msg if isinstance(error, SyntaxError) else str(error)
            kind = type(error).__name__
            raise PolicyError(self._name, place, f"{kind}: {said}" if said else kind) from error

    def _anywhere(self, error: BaseException) -> str:
        """Return where something was raised while the policy was made."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{Path(error.filename).name}, line {error.lineno}"
        return _last(error, lambda file: not file.startswith((_PACKAGE, "<frozen importlib")))

    def _in_a_decision(self, error: BaseException) -> str | None:
        """Return where in the policy something was raised; None if not in it."""
        is_answer = isinstance(error, TypeError) and str(error).startswith(_ANSWERS)
        return _last(error, self._files.__contains__) or ("" if is_answer else None)


def _last(error: BaseException, is_wanted: Callable[[str], bool]) -> str:
    """Return the innermost place of an exception in a file that is wanted, if any."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if is_wanted(frame.filename):
            return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return ""


def _module(where: str, base: Path | None) -> ModuleType | None:
    """Return a module by its file or its name; None if there is none."""
    if not where.endswith(".py"):
        try:
            found = importlib.util.find_spec(where)
        except ModuleNotFoundError as error:
            # A package around it may be there, and import what is not.
            if not f"{where}.".startswith(f"{error.name}."):
                raise
            return None
        return importlib.import_module(where) if found else None
    path = ((base or Path()) / where).resolve()
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"_youngbit_policy_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
