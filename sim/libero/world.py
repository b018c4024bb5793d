"""LIBERO for the rollout harness: one task at a time, pictures drawn when the policy is asked.

Knows no policy.

    >>> episodes = LiberoWorld(image_size=144, look="fast").open("libero_object", 3)
    ... # doctest: +SKIP
    >>> observation = episodes.start(state=30, seed=0)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_prune_sim.realtime.move import Move

from vla_prune.errors import ConfigError, did_you_mean
from vla_prune.types import Observation

LAYOUTS_FROM = 1000  # states from here on are random layouts, this number being layout seed 0


class LiberoWorld:
    """Opens tasks.

    Args:
        image_size: pixels a side.
        look: name in `camera.LOOKS`.
        image_convention: `released` or `upright`.
    """

    def __init__(
        self, image_size: int = 224, look: str = "stock", image_convention: str = "released"
    ) -> None:
        self.options: dict[str, Any] = {
            "image_size": image_size,
            "look": look,
            "image_convention": image_convention,
        }

    def open(self, suite: str, task: int) -> LiberoEpisodes:
        """One task, ready for episodes."""
        return LiberoEpisodes(suite, task, self.options)


class LiberoEpisodes:
    """Episodes of one task, one after the other.

    Attributes:
        instructions: of all tasks of the suite, in order.
        assets: hash of the asset tree.
        over: whether the running episode has ended.
        outcome: ``success``, 1.0 if LIBERO's predicates held at its end.
        steps: control steps so far.
        step_s: length of one.
    """

    step_s = 0.05

    def __init__(self, suite: str, task: int, options: dict[str, Any]) -> None:
        from vla_prune_sim.libero.env import LiberoEnv

        self.env = LiberoEnv(suite, task, lazy_images=True, **options)
        self.instructions = instructions(suite)
        self.assets = self.env.about()["assets"]
        self.over, self.outcome, self.steps = True, {"success": 0.0}, 0
        self._expert: Any = None

    def start(self, state: int, seed: int) -> Observation:
        """Begin at a shipped initial state, or from 1000 on at a random layout.

        A layout that topples over is drawn again with the next seed, always the same way.
        """
        from vla_prune_sim.libero.env import as_observation
        from vla_prune_sim.libero.layouts import RandomLayout

        self.over, self.outcome, self.steps = False, {"success": 0.0}, 0
        self._expert = None
        if state < LAYOUTS_FROM:
            obs, _ = self.env.reset(seed=seed, options={"init": state})
            return as_observation(obs)
        number = state - LAYOUTS_FROM
        for attempt in range(20):
            layout = RandomLayout(10_000_000 + 1000 * number + attempt)
            options = {"init": 30 + number % 20, "layout": layout}
            obs, _ = self.env.reset(seed=seed, options=options)
            if layout.intact(self.env):
                break
        return as_observation(obs)

    def advance(self, actions: np.ndarray) -> Observation:
        """Execute ``[n, 7]`` actions, or fewer if the episode ends, and look again."""
        from vla_prune_sim.libero.env import as_observation

        for action in actions:
            obs = self._step(action)
            if self.over:
                return as_observation(obs)
        return self.observe()

    def observe(self) -> Observation:
        """What is seen now."""
        from vla_prune_sim.libero.env import as_observation

        return as_observation(self.env.observe())

    def move(self, move: Move) -> None:
        """One step of 0.05 s with the action of a move; draws nothing."""
        if move.action is None:
            raise ConfigError(
                "LIBERO: the hold rule commands nothing before the first chunk; give it an "
                "action, such as hold: {name: hold, action: [0, 0, 0, 0, 0, 0, -1], keep: [6]}."
            )
        self._step(move.action)

    def _step(self, action: np.ndarray) -> dict[str, Any]:
        obs, _, terminated, truncated, _ = self.env.step(action)
        self.steps += 1
        if terminated or truncated:
            self.over, self.outcome = True, {"success": float(terminated)}
        return obs

    def guide(self, driver: str) -> Observation:
        """One step of the scripted expert, the only driver here."""
        from vla_prune_sim.libero.env import as_observation
        from vla_prune_sim.libero.expert import GOALS, Expert

        if driver != "expert":
            raise did_you_mean("LIBERO", "driver", driver, ("expert",))
        if self._expert is None:
            self._expert = Expert(self.env.scene(), self.env.goal[0][1], GOALS[self.env.suite])
        obs, _, terminated, truncated, _ = self.env.step(self._expert.act())
        self.steps += 1
        self.over, self.outcome = terminated or truncated, {"success": float(terminated)}
        return as_observation(obs)

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def instructions(suite: str) -> tuple[str, ...]:
    """The sentence of every task of a suite, in order, without building anything."""
    from vla_prune_sim.libero.env import task_names

    names = task_names(suite)
    from libero.libero.benchmark import grab_language_from_filename

    return tuple(grab_language_from_filename(f"{name}.bddl") for name in names)
