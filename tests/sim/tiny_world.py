"""A world without physics: an episode succeeds if its actions say so. Deterministic by seed."""

import numpy as np

from vla_prune.errors import ShapeError
from vla_prune.types import Observation


class TinyWorld:
    """Opens tasks; ``fail_at`` makes one (task, state) raise, ``corrupt`` one break off midway."""

    def __init__(
        self, fail_at: tuple[int, int] | None = None, corrupt: tuple[int, int] | None = None
    ) -> None:
        self.fail_at, self.corrupt = fail_at, corrupt

    def open(self, suite: str, task: int) -> "TinyEpisodes":
        return TinyEpisodes(task, self.fail_at, self.corrupt)


class TinyEpisodes:
    instructions = ("pick up the red cube", "put it down", "open the drawer", "wait")
    assets = "none"

    def __init__(
        self, task: int, fail_at: tuple[int, int] | None, corrupt: tuple[int, int] | None
    ) -> None:
        self.task, self.fail_at, self.corrupt = task, fail_at, corrupt
        self.over, self.outcome, self.steps = True, {}, 0

    def start(self, state: int, seed: int) -> Observation:
        if self.fail_at is not None and (self.task, state) == tuple(self.fail_at):
            raise RuntimeError("the simulator broke")
        self.rng = np.random.default_rng([seed, self.task])
        self.over, self.steps, self.total = False, 0, 0.0
        self.state, self.outcome = state, {"success": 0.0}
        return self._look()

    def advance(self, actions: np.ndarray) -> Observation:
        if self.steps and self.corrupt and (self.task, self.state) == tuple(self.corrupt):
            raise ShapeError("view_3.jpg is no whole picture; get it again.")
        self.total += float(np.abs(actions).sum())
        self.steps += len(actions)
        self.over = self.steps >= 8
        if self.over:
            self.outcome = {"success": float(int(self.total * 1e6) % 2 == 0), "total": self.total}
        return self._look()

    def guide(self, driver: str) -> Observation:
        return self.advance(np.full((2, 7), len(driver)))

    def close(self) -> None:
        pass

    def _look(self) -> Observation:
        image = self.rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        return Observation({"image": image}, self.instructions[self.task])
