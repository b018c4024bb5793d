"""A world without physics that never waits. What counts is how fresh its commands are."""

from __future__ import annotations

import numpy as np
from vla_prune_sim.realtime.move import Move

from vla_prune.types import Observation

STEPS = 24


class MovingWorld:
    """Opens tasks."""

    def open(self, suite: str, task: int) -> MovingEpisodes:
        return MovingEpisodes(task)


class MovingEpisodes:
    """Episodes of 2.4 s; ``fresh`` is the share of steps with an action, weighted by its age."""

    instructions = ("follow the line", "follow the road")
    assets = "none"
    step_s = 0.1

    def __init__(self, task: int) -> None:
        self.task = task
        self.over, self.outcome, self.steps = True, {"fresh": 0.0}, 0

    def start(self, state: int, seed: int) -> Observation:
        self.rng = np.random.default_rng([seed, self.task])
        self.over, self.outcome, self.steps, self.total = False, {"fresh": 0.0}, 0, 0.0
        return self.observe()

    def observe(self) -> Observation:
        image = self.rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Observation({"image": image}, self.instructions[self.task])

    def move(self, move: Move) -> None:
        held = move.action is None or not np.asarray(move.action).any()
        self.total += 0.0 if held else float(np.exp(-move.elapsed_s))
        self._count(1)

    def advance(self, actions: np.ndarray) -> Observation:
        self.total += float(np.exp(-0.1 * np.arange(len(actions))).sum())
        self._count(len(actions))
        return self.observe()

    def guide(self, driver: str) -> Observation:
        return self.advance(np.ones((2, 7)))

    def close(self) -> None:
        pass

    def _count(self, steps: int) -> None:
        self.steps += steps
        self.over = self.steps >= STEPS
        if self.over:
            self.outcome = {"fresh": self.total / STEPS}
