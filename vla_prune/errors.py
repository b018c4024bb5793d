"""The errors a user can cause. Numpy-free and torch-free, so that every room may import them.

Each message is one sentence with four parts: where, what was given, what is possible, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VlaPruneError(Exception):
    """Base of every error that is the user's to mend. The command line exits with 2 on it."""


class ConfigError(VlaPruneError):
    """A configuration names something unknown or impossible."""


class UnsupportedError(VlaPruneError):
    """A combination that cannot work, such as a scorer at a site that lacks what it needs."""


class ShapeError(VlaPruneError):
    """An array has the wrong shape, dtype or contents."""


class ActionError(VlaPruneError):
    """What a policy said is no action.

    Attributes:
        rows: which observations of the call it was said to; the others' actions were fine.
    """

    def __init__(self, message: str, rows: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class CheckpointError(VlaPruneError):
    """Weights do not fit the model."""


class MissingError(VlaPruneError):
    """A file, package or asset is not where it was looked for."""


def did_you_mean(where: str, kind: str, given: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name, with the closest known one.

    Args:
        where: file or object in which the name was found.
        kind: what the name stands for, such as ``"recipe"``.
        given: the unknown name.
        known: all names that would work.
    """
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return ConfigError(f"{where}: {kind} {given!r} is unknown{hint} Known: {', '.join(names)}.")


def check_least(where: str, least: float, above: bool = False, **values: float | None) -> None:
    """Refuse numbers that are too small, by name; None is no number and passes.

    Args:
        where: file or object in which they stand.
        least: the smallest that works.
        above: the numbers must be greater than that.
        values: by name.
    """
    for name, value in values.items():
        if value is not None and not (value > least or (value == least and not above)):
            wanted = f"more than {least:g}" if above else f"{least:g} or more"
            raise ConfigError(f"{where}: {name} is {value}; give {wanted}.")
