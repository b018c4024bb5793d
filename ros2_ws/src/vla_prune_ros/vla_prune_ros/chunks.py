"""Action chunks as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_prune.errors import ShapeError
from vla_prune.types import ActionChunk
from vla_prune_ros.stamps import seconds
from vla_prune_ros.tokens import Grid, Origin, grid_fields


def pack_chunk(
    chunk: ActionChunk,
    origin: Origin,
    names: Sequence[str],
    grids: Sequence[Grid],
    instruction: str = "",
    policy: str = "",
    recipe: str = "",
    frame_id: str = "",
) -> dict[str, Any]:
    """The fields of an ``ActionChunk`` message."""
    sites = list(chunk.kept)
    total = sum(grid.size for grid in grids)
    last = chunk.kept[sites[-1]] if sites else np.arange(total)
    return {
        **origin.message(frame_id),
        "policy": policy,
        "recipe": recipe,
        "instruction": instruction,
        "names": list(names),
        "horizon": len(chunk.actions),
        "dt": float(chunk.dt_s),
        "values": np.asarray(chunk.actions, np.float32).reshape(-1),
        "sites": sites,
        "kept": np.array([len(chunk.kept[site]) for site in sites], np.uint32),
        "tokens": total,
        "kept_index": np.asarray(last, np.uint32),
        "cameras": grid_fields(grids, last),
        "notes": list(chunk.notes),
    }


def unpack_chunk(message: Any, names: Sequence[str]) -> ActionChunk:
    """A chunk out of an ``ActionChunk`` message; whether it may be played is another matter.

    Raises:
        ShapeError: other dimensions than ``names``, or not as many values as it says.
    """
    if list(message.names) != list(names):
        raise ShapeError(
            f"action chunk: refused: it has {', '.join(message.names) or 'no names'}; "
            f"this node drives {', '.join(names)}."
        )
    values = np.asarray(message.values, np.float32)
    if values.size != message.horizon * len(names) or values.size == 0:
        raise ShapeError(
            f"action chunk: refused: {values.size} values came for {message.horizon} rows of "
            f"{len(names)}."
        )
    actions = values.reshape(int(message.horizon), len(names))
    return ActionChunk(actions, float(message.dt), seconds(message.header.stamp))
