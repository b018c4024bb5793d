"""What a world is told for one of its own steps. Numpy only.

A world can be played in real time if its episodes have ``step_s`` (length of one of its own
steps), ``observe()`` (draw what is seen now) and ``move(move)`` (one own step, nothing drawn).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_prune.types import Observation


@dataclass(frozen=True)
class Move:
    """The command of one step: worlds of actions read ``action``, worlds of plans ``path``.

    Attributes:
        action: ``[A]`` the row of now; None if there is neither a chunk nor a hold action.
        path: ``[n, A]`` all rows of what is played now, from its row 0 on; before the first chunk
            the hold action alone.
        elapsed_s: since that row began: the path starts from where the machine was then.
        fresh: whether the path is another one than in the step before.
    """

    action: np.ndarray | None
    path: np.ndarray | None
    elapsed_s: float
    fresh: bool


class Moving(Protocol):
    """Episodes of one task in a world that moves on by itself.

    Attributes:
        step_s: seconds of one own step.
        over: whether the running episode has ended.
    """

    step_s: float
    over: bool

    def observe(self) -> Observation:
        """What is seen now."""
        ...

    def move(self, move: Move) -> None:
        """One own step."""
        ...
