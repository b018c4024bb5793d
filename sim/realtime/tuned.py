"""Rows of a table that take their budget and ladder from what ``vla-prune tune`` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vla_prune import config
from vla_prune.errors import ConfigError, MissingError, did_you_mean


@dataclass(frozen=True)
class Tuned:
    """What is read of a ``tuned.yaml``.

    Attributes:
        recipe: by the name that its profile has.
        keep_ratio: the recommended budget.
        ladder: of the controller: that budget and its fallbacks.
        cut_layer: where the recipe was cut; None for its own layer.
    """

    recipe: str
    keep_ratio: float
    ladder: Sequence[float]
    cut_layer: int | None


def resolved(row: Any, suite: str, cut_layer: int | None) -> Any:
    """A row of the table as it is played in a suite: what its tuned file says, spelt out.

    Raises:
        MissingError: no such file.
        ConfigError: none is given for this suite, it is none, or the table cuts elsewhere.
    """
    if not row.tuned:
        return row
    file = row.tuned
    if isinstance(file, Mapping):
        if suite not in file:
            raise did_you_mean("run: rows: tuned", "suite", suite, file)
        file = file[suite]
    try:
        data = config.load(file)
    except MissingError as error:
        raise MissingError(
            f"run: rows: tuned: {file} is not there; 'vla-prune tune' writes such a file, "
            "tuned.yaml in its --out."
        ) from error
    known = [f.name for f in fields(Tuned)]
    found = {name: value for name, value in data.items() if name in known}
    config.check_keys(str(file), Tuned, found)
    tuned = Tuned(**found)
    if tuned.cut_layer != cut_layer:
        raise ConfigError(
            f"{file}: it was tuned with cut layer {tuned.cut_layer}, and the table has "
            f"{cut_layer}; give the table that cut_layer, or tune again."
        )
    ladder = tuple(tuned.ladder) if row.controller else None
    keep = 1.0 if row.controller else tuned.keep_ratio
    return replace(row, recipe=tuned.recipe, keep_ratio=keep, ladder=ladder, tuned=str(file))
