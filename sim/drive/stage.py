"""Who is where on a synthetic town's streets at which step, and that nobody touches anybody.

>>> stage = Stage(town, path, spans, ego_s)  # doctest: +SKIP
>>> stage.add(standing("vehicle.car", np.array([4.5, 1.8, 1.6]), pose))  # doctest: +SKIP
True
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import corners, overlap
from vla_prune_sim.drive.roads import Town
from vla_prune_sim.drive.scene import EGO_CENTRE, EGO_HEIGHT, EGO_LENGTH, EGO_WIDTH, STEP_S
from vla_prune_sim.drive.streets import Path

STEPS = 201
ACCEL, BRAKE = 1.5, 2.0
# Category -> lowest and highest length, width, height in metres, as annotated in nuScenes.
SIZES = {
    "vehicle.car": ((4.1, 1.75, 1.45), (4.95, 1.95, 1.80)),
    "vehicle.truck": ((6.2, 2.25, 2.60), (8.0, 2.50, 3.30)),
    "vehicle.bus.rigid": ((10.0, 2.60, 3.10), (11.5, 2.85, 3.50)),
    "vehicle.bicycle": ((1.6, 0.55, 1.50), (1.85, 0.70, 1.80)),
    "vehicle.motorcycle": ((2.0, 0.70, 1.45), (2.3, 0.85, 1.70)),
    "human.pedestrian.adult": ((0.5, 0.55, 1.58), (0.8, 0.75, 1.92)),
    "human.pedestrian.child": ((0.4, 0.40, 1.00), (0.5, 0.48, 1.35)),
    "movable_object.trafficcone": ((0.36, 0.36, 0.70), (0.46, 0.46, 1.05)),
    "movable_object.barrier": ((0.45, 1.90, 0.95), (0.60, 2.40, 1.10)),
}
# Traffic also keeps clear of where a late ego would be, so that braking is not punished at once.
LATE_S = (0.0, 1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Actor:
    """One road user or thing.

    Attributes:
        category: of nuScenes.
        size: ``[3]`` length, width, height in metres.
        pose: ``[STEPS, 3]`` of its centre.
        speed: ``[STEPS]`` m/s.
    """

    category: str
    size: np.ndarray
    pose: np.ndarray
    speed: np.ndarray

    def boxes(self, along: float = 0.0, aside: float = 0.0) -> np.ndarray:
        """Corners ``[STEPS, 4, 2]``, with a margin at each end and each side, metres."""
        return corners(self.pose, self.size[0] + 2 * along, self.size[1] + 2 * aside)


def moving(category: str, size: np.ndarray, pose: np.ndarray) -> Actor:
    """An actor whose speed is that of its poses."""
    step = np.diff(pose[:, :2], axis=0, append=2 * pose[-1:, :2] - pose[-2:-1, :2])
    return Actor(category, size, pose, np.hypot(*step.T) / STEP_S)


def standing(category: str, size: np.ndarray, pose: np.ndarray) -> Actor:
    """An actor that stays at pose ``[3]``."""
    return Actor(category, size, np.tile(pose, (STEPS, 1)), np.zeros(STEPS))


def draw_size(category: str, rng: np.random.Generator) -> np.ndarray:
    """Length, width, height ``[3]`` of somebody of that category."""
    return rng.uniform(*SIZES[category]).round(2)


def follow(
    path: Path,
    start: float,
    wish: np.ndarray | float,
    speed: float | None = None,
    brake: float = BRAKE,
    steps: int = STEPS,
) -> np.ndarray:
    """Arc lengths ``[steps]`` of somebody who drives a path alone.

    Args:
        path: what to drive.
        start: arc length at step 0.
        wish: ``[steps]`` or one speed to aim at, m/s; bends allow less.
        speed: at step 0; the speed aimed at where not given.
        brake: hardest, m/s^2.
        steps: how many.
    """
    wish = np.broadcast_to(wish, steps)
    speed = wish[0] if speed is None else speed
    far = np.arange(0.0, steps * STEP_S * max(wish.max(), speed) + 1.0, 0.25)
    limit = np.interp(start + far, path.at, path.limit)
    s = np.empty(steps)
    s[0], v = start, min(speed, limit[0])
    for t in range(1, steps):
        goal = min(wish[t], limit[int((s[t - 1] - start) * 4)])
        change = min(max(goal - v, -brake * STEP_S), ACCEL * STEP_S)
        s[t] = s[t - 1] + (v + change / 2) * STEP_S
        v += change
    return s


def walk_across(
    path: Path, s: float, start: float, end: float, speed: float, begin_s: float
) -> np.ndarray:
    """Poses ``[STEPS, 3]`` of somebody who walks from one offset to the other and stands there."""
    way = np.sign(end - start)
    time = np.arange(STEPS) * STEP_S
    left = start + way * np.clip((time - begin_s) * speed, 0.0, abs(end - start))
    pose = path.pose(np.full(STEPS, s), left)
    pose[:, 2] += way * np.pi / 2
    return pose


class Stage:
    """A town, the ego's nominal drive through it, and everybody put in so far.

    Args:
        town: the streets.
        path: the route; the ego's rear axle is at arc length ``ego_s`` of it.
        spans: (token, first, last arc length) of each lane on the route.
        ego_s: ``[STEPS]`` metres.

    Attributes:
        actors: everybody put in, in order.
        ego: the nominal ego as an actor.
        ego_speed: ``[STEPS]`` m/s.
    """

    def __init__(
        self, town: Town, path: Path, spans: list[tuple[str, float, float]], ego_s: np.ndarray
    ) -> None:
        self.town, self.path, self.spans, self.ego_s = town, path, spans, ego_s
        size = np.array([EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT])
        pose = path.pose(ego_s)
        pose[:, :2] += EGO_CENTRE * np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], -1)
        self.ego = moving("vehicle.car", size, pose)
        self.ego_speed = np.gradient(ego_s, STEP_S)
        self.actors: list[Actor] = []
        self.reserved: list[Actor] = []
        for late in LATE_S:
            at = np.maximum(np.arange(STEPS) - round(late / STEP_S), 0)
            self.reserved.append(Actor("vehicle.car", size, pose[at], self.ego_speed[at]))

    def arrival(self, s: float) -> float:
        """Seconds until the middle of the nominal ego is at arc length ``s``."""
        return float(np.interp(s - EGO_CENTRE, self.ego_s, np.arange(STEPS) * STEP_S))

    def free(self, actor: Actor, along: float = 0.6, aside: float = 0.2) -> bool:
        """Whether nobody, and no ego up to four seconds late, comes within these margins."""
        others = self.actors + self.reserved
        pose = np.stack([other.pose for other in others])
        size = np.stack([other.size for other in others])
        reach = (
            np.hypot(size[:, 0], size[:, 1]) / 2 + np.hypot(*actor.size[:2]) / 2 + along + aside
        )
        away = np.hypot(*np.moveaxis(pose[..., :2] - actor.pose[:, :2], -1, 0))
        who, when = np.nonzero(away < reach[:, None])
        if not len(who):
            return True
        boxes = corners(pose[who, when], size[who, 0], size[who, 1])
        return not overlap(actor.boxes(along, aside)[when], boxes).any()

    def add(self, actor: Actor, along: float = 0.6, aside: float = 0.2) -> bool:
        """Put somebody in if there is room; whether there was."""
        if room := self.free(actor, along, aside):
            self.actors.append(actor)
        return room
