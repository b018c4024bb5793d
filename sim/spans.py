"""Lists of numbers as people write them."""

from __future__ import annotations

from collections.abc import Sequence

from vla_prune.errors import ConfigError


def numbers(given: str | int | Sequence[int], where: str) -> list[int]:
    """``"30-31,41"`` as ``[30, 31, 41]``; a list as it is."""
    if not isinstance(given, str):
        many = given if isinstance(given, list | tuple) else [given]
        if not all(isinstance(number, int) for number in many):
            raise ConfigError(f"{where}: {given!r} is no list of numbers; write them like 0-9,12.")
        return list(many)
    try:
        spans = [[int(end) for end in part.split("-")] for part in given.split(",")]
    except ValueError:
        raise ConfigError(
            f"{where}: {given!r} is no list of numbers; write them like 0-9,12."
        ) from None
    return [number for span in spans for number in range(span[0], span[-1] + 1)]
