"""The words that cross every border: observation, policy, state, chunk. Numpy only.

This file knows no torch, no transformers, no gym and no ROS, so a robot-side process can import
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What the robot knows at one instant.

    Attributes:
        images: camera name -> ``[H, W, 3]`` uint8 RGB.
        instruction: what to do, in words.
        state: proprioception, ``[P]`` float32 in physical units, or None.
        stamp_s: capture time of the *oldest* image, seconds.
    """

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None
    stamp_s: float = 0.0


@dataclass(frozen=True)
class ActionChunk:
    """The actions that one policy call produced.

    Attributes:
        actions: ``[H, A]`` float32 in physical units (what ``env.step`` takes).
        dt_s: seconds between two rows of ``actions``.
        stamp_s: stamp of the oldest image behind the chunk.
        kept: site -> grid indices ``[K]`` of the visual tokens that stayed.
        stage_ms: stage -> milliseconds, filled only when stage times were asked for.
        notes: things the caller should be told once, such as a cleared history.
        signals: how sure the scores were (`vla_prune.difficulty`), filled only when asked for.
    """

    actions: np.ndarray
    dt_s: float
    stamp_s: float
    kept: Mapping[str, np.ndarray] = field(default_factory=dict)
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass
class PolicyState:
    """Everything a policy remembers. Plain data that the caller owns; a reset is a new one.

    Attributes:
        tick: policy calls made with this state.
        instruction: the instruction of the last call; a change of it clears ``history``.
        history: signal name -> its past values, newest last. Owned by the policy's pruner; tensors
            stay on the policy's device.
        draw: which sequence of random sets a ``random`` recipe keeps, such as an episode's number;
            with one for all, all episodes keep the same places call by call.
    """

    tick: int = 0
    instruction: str | None = None
    history: dict[str, list[Any]] = field(default_factory=dict)
    draw: int = 0


class Policy(Protocol):
    """Observations to action chunks, for a batch of robots or environments."""

    def new_state(self) -> PolicyState:
        """A state that remembers nothing."""
        ...

    def act(
        self, observations: Sequence[Observation], states: Sequence[PolicyState]
    ) -> list[ActionChunk]:
        """One chunk for each observation; each state is updated in place. Equal lengths."""
        ...
