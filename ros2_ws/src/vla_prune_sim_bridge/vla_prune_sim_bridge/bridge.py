"""The bridge without ROS: a world of ``vla_prune_sim`` that moves on by itself, and what it shows.

The world makes one own step per ``step_s`` of simulated time with the newest command, however long
the policy takes; its pictures, state and ``/clock`` are messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vla_prune_ros.convert import image_fields
from vla_prune_ros.stamps import seconds, time_fields
from vla_prune_sim.realtime.move import Move

from vla_prune.build import import_object
from vla_prune.types import Observation
from vla_prune_sim_bridge.resets import Peer, Resets

EARLY_S = 1e-6  # of a stamp: rounding


@dataclass(frozen=True)
class Shown:
    """What one step shows.

    Attributes:
        time_s: simulated.
        images: camera -> fields of an ``Image``.
        state: fields of a ``Float64MultiArray``.
        clock: fields of a ``Clock``.
        task: the instruction.
        over: whether the episode ended with this step.
        outcome: of the episode, once it ended.
    """

    time_s: float
    images: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]
    clock: Mapping[str, Any]
    task: str
    over: bool
    outcome: Mapping[str, float]


class Bridge:
    """One world, episode after episode.

    Simulated time goes on from episode to episode and never back. Nodes that remember an episode
    are told to forget it before the next one shows itself: its machine stands elsewhere.

    Args:
        world: ``module:Class`` of a simulator.
        options: its arguments.
        suite: of tasks.
        task: number of the task or scene.
        state: initial state.
        seed: of the first episode.
        driver: a reference driver moves it in the place of commands: a replay.
        start_s: simulated time of the first frame.
        peers: nodes that remember, in the way of the data.
        again: begin the next episode at the end of one.

    Attributes:
        waits_for: the node that has yet to forget before the next episode begins; else empty.
    """

    def __init__(
        self,
        world: str,
        options: Mapping[str, Any],
        suite: str,
        task: int,
        state: int = 0,
        seed: int = 0,
        driver: str = "",
        start_s: float = 1.0,
        peers: Sequence[Peer] = (),
        again: bool = True,
    ) -> None:
        self.episodes = import_object(world)(**options).open(suite, task)
        self.task, self.state, self.seed, self.driver = task, state, seed, driver
        self.time_s = self._began = start_s
        self.resets, self.again = Resets(peers), again
        self.refused = self.waits_for = ""
        self._runs = False
        self._observation: Observation | None = None
        self._action: np.ndarray | None = None
        self._path: tuple[np.ndarray, float] | None = None  # rows, stamp
        self._fresh = False

    @property
    def step_s(self) -> float:
        """Simulated seconds of one step."""
        return float(self.episodes.step_s)

    @property
    def over(self) -> bool:
        """Whether no episode runs."""
        return not self._runs or bool(self.episodes.over)

    def begin(self) -> None:
        """As new: the next turn begins an episode, whatever runs."""
        self._runs = False

    def turn(self, steady_s: float) -> Shown | None:
        """What the world shows next: a step, or the first frame of the next episode.

        None after the last episode, and until all have forgotten the one before.

        Args:
            steady_s: steady time.
        """
        if not self.over:
            return self.step()
        if self._runs and not self.again:
            return None
        self.waits_for = self.resets.waits_for(steady_s)
        return None if self.waits_for else self.start()

    def start(self) -> Shown:
        """Begin the next episode."""
        self.resets.begin()
        if self._observation is not None:
            self.time_s += self.step_s  # or its first frame would have the last one's stamp
        self._observation = self.episodes.start(self.state, self.seed)
        self.seed, self._runs = self.seed + 1, True
        self._action, self._path, self._fresh = None, None, False
        self._began = self.time_s
        return self._shown()

    def put_path(self, message: Any) -> None:
        """A ``nav_msgs/Path``: places in the vehicle's frame at the header's stamp."""
        places = [(p.pose.position.x, p.pose.position.y) for p in message.poses]
        rows = np.diff(np.array(places, np.float32), axis=0, prepend=np.zeros((1, 2), np.float32))
        self._take(rows, seconds(message.header.stamp))

    def put_action(self, message: Any) -> None:
        """An ``ActionChunk`` of one row: the action of now."""
        values, rows = np.asarray(message.values, np.float32), int(message.horizon)
        if rows == 0 or values.size % rows:
            self.refused = f"bridge: {values.size} values came for {rows} rows."
            return
        self._take(values.reshape(rows, -1), seconds(message.header.stamp))

    def step(self) -> Shown:
        """One own step of the world with the newest command, and what is seen then."""
        if self.driver:
            self._observation = self.episodes.guide(self.driver)
        elif self._path is not None:
            rows, stamp = self._path
            elapsed = max(0.0, self.time_s - stamp)
            self.episodes.move(Move(self._action, rows, elapsed, self._fresh))
            self._fresh = False
            self._observation = self.episodes.observe()
        # Before the first command the world waits: there is nothing that it could do.
        self.time_s += self.step_s
        return self._shown()

    def close(self) -> None:
        """Free the simulator."""
        self.episodes.close()

    def _take(self, rows: np.ndarray, stamp_s: float) -> None:
        if rows.ndim != 2 or len(rows) == 0 or not np.isfinite(rows).all():
            self.refused = f"bridge: a command of shape {rows.shape} is empty or not finite."
            return
        if stamp_s < self._began - EARLY_S:
            self.refused = "bridge: a command of the episode before is not taken into this one."
            return
        old = self._path
        self._fresh |= old is None or old[1] != stamp_s or not np.array_equal(old[0], rows)
        self._action, self._path = rows[0], (rows, stamp_s)

    def _shown(self) -> Shown:
        seen = self._observation
        state = [] if seen.state is None else [float(v) for v in seen.state]
        return Shown(
            self.time_s,
            {
                name: image_fields(pixels, self.time_s, name)
                for name, pixels in seen.images.items()
            },
            {"layout": {"dim": [], "data_offset": 0}, "data": state},
            {"clock": time_fields(self.time_s)},
            seen.instruction,
            bool(self.episodes.over),
            dict(self.episodes.outcome) if self.episodes.over else {},
        )
