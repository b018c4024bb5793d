"""A scripted pick-and-place expert that reads the simulator's state: a teacher, never a baseline.

Every action follows from the current state, so that the expert can take over anywhere: hand beside
the object, gripper closed on nothing, object dropped. It remembers a few small things only (see
`Expert`).

    >>> expert = Expert(scene, "akita_black_bowl_1", "plate_1")  # doctest: +SKIP
    >>> env.step(expert.act())  # doctest: +SKIP

How often it succeeds, one line of JSON last:

    python -m vla_prune_sim.libero.expert --suite libero_spatial --states 30-31
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from vla_prune_sim.spans import numbers

from vla_prune.errors import VlaPruneError

from .env import LiberoEnv
from .scene import Scene

GOALS = {"libero_spatial": "plate_1", "libero_object": "basket_1"}  # the suites it can solve
REACH_M, TURN_RAD = 0.05, 0.5  # what an action of 1 asks of LIBERO's OSC_POSE controller
GAIN, LEAD = 2.5, 1.5
TIP_M = 0.013  # finger tips reach this far below the grip point
OPEN, CLOSE = -1.0, 1.0
# Finger axis (radians), side of the rim along it, and how far the hand moves inward (metres).
BOWL_GRIPS = (
    (0.0, -1.0, 0.0),
    (0.0, -1.0, 0.02),
    (np.pi / 2, -1.0, 0.0),
    (np.pi / 2, 1.0, 0.0),
    (np.pi / 2, 1.0, 0.02),
    (0.0, 1.0, 0.0),
)
# The hand never turns further than from y to -x: of two opposite finger axes, the one on this
# side.
FINGER_SIDE = np.array([-np.sqrt(0.5), np.sqrt(0.5), 0.0])


class Expert:
    """Brings `target` to `goal`.

    It remembers the last step's opening and hand position (do they still move?), for how many
    steps the grip has been lost or the hand has pressed on something, whether the last try failed,
    and the grip chosen for where the target was last seen.
    """

    def __init__(self, scene: Scene, target: str, goal: str) -> None:
        self.scene, self.target, self.goal = scene, target, goal
        self.inside = "basket" in goal
        self._opening = scene.opening
        self._lost = 99
        self._retry = False
        self._stuck = 0
        self._hand = scene.hand
        self._seen = np.full(3, np.inf)
        names = [n for n in scene.solid_geoms if n not in (target, goal)]
        self._boxes = np.concatenate([scene.solid_geoms[n] for n in names])
        self._half = scene.half_sizes(self._boxes)
        self.holding = False

    def act(self) -> np.ndarray:
        """The next action, ``[7]`` in -1 to 1: translation, rotation, gripper."""
        scene = self.scene
        speed = scene.opening - self._opening
        self._opening = scene.opening
        touching = all(scene.touching(self.target))
        squeezing = touching and abs(speed) < 0.002
        if squeezing:
            self._lost = 0
        else:
            self._lost += 1
        # One step without contact is no lost object: contacts flicker while the arm accelerates.
        self.holding = self._lost < 4 and (touching or self._lost < 3)
        self._velocity = scene.hand - self._hand
        self._hand = scene.hand
        action = self._carry() if self.holding or self._delivered() else self._reach()
        return np.clip(action, -1.0, 1.0)

    def _delivered(self) -> bool:
        """Whether the target is where it belongs and the fingers still let go of it."""
        scene = self.scene
        apart = np.linalg.norm(scene.hand - self.grasp()[0])
        return scene.opening < 0.074 and apart < 0.06 and self._over_goal()

    def _over_goal(self) -> bool:
        """Whether the target would fall where it belongs."""
        corners, goal = self.scene.corners(self.target), self.scene.corners(self.goal)
        gap = (corners.min(0) + corners.max(0) - goal.min(0) - goal.max(0))[:2] / 2
        rest = goal[:, 2].max() - 0.02 if self.inside else goal[:, 2].min() + 0.01
        near = 0.035 if self.inside else 0.02
        return np.hypot(*gap) < near and corners[:, 2].min() < rest + 0.01

    def grasp(self) -> tuple[np.ndarray, float]:
        """Grip point ``[3]`` in metres, and angle of the finger axis in radians."""
        corners = self.scene.corners(self.target)
        low, high = corners.min(0), corners.max(0)
        centre = (low + high) / 2
        if np.linalg.norm(centre - self._seen) > 0.004:
            self._seen = centre
            self._choice = next(
                (c for c in self._grips(corners) if not self._blocked(*c)), self._default
            )
        point, angle = self._choice
        return point + centre - self._seen, angle

    def _grips(self, corners: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Ways to grip the target, the preferred one first."""
        low, high = corners.min(0), corners.max(0)
        centre = (low + high) / 2
        if "bowl" in self.target:
            # The rim nearest to the arm, which then need not stretch to the plate. Moved inward,
            # the outer finger fits in beside a wall.
            radius = (high - low)[:2].sum() / 4 - 0.006
            grips = []
            for turn, side, inward in BOWL_GRIPS:
                away = side * (radius - inward) * np.array([np.cos(turn), np.sin(turn), 0.0])
                grips.append((np.array([*centre[:2], high[2] - 0.014]) + away, turn))
            self._default = grips[0]
            return grips
        angle = _narrow_axis(corners[:, :2])
        point = np.array([*centre[:2], max(high[2] - 0.035, low[2] + 0.014)])
        self._default = (point, angle)
        # Closing fingers turn the object towards them, so a slanted grip works too.
        return [(point, angle + np.radians(d)) for d in (0, 20, -20, 35, -35)]

    def _blocked(self, point: np.ndarray, angle: float) -> bool:
        """Whether the open hand at a grip would stand in something."""
        along = np.array([np.cos(angle), np.sin(angle), 0.0])
        across = np.array([-along[1], along[0], 0.0])
        up = np.array([0.0, 0.0, 1.0])
        palm = [
            a * along + c * across + z * up
            for a in np.linspace(-0.1, 0.1, 11)
            for c in (-0.03, 0.0, 0.03)
            for z in (0.045, 0.07, 0.1)
        ]
        fingers = [
            f * a * along + c * across + z * up
            for f in (-1, 1)
            for a in (0.042, 0.056)
            for c in (-0.01, 0.01)
            for z in (-TIP_M, 0.005, 0.025)
        ]
        points = point + np.array(palm + fingers)
        data, boxes = self.scene.data, self._boxes
        rot = data.geom_xmat[boxes].reshape(-1, 3, 3)
        local = np.einsum("gij,gpi->gpj", rot, points - data.geom_xpos[boxes][:, None])
        inside = np.abs(local) < self._half[:, None] + 0.004
        return bool(inside.all(-1).any())

    def _reach(self) -> np.ndarray:
        scene = self.scene
        point, angle = self.grasp()
        hand = scene.hand
        turn = _turn(scene.hand_rotation, angle)
        gap = point - hand
        flat = float(np.hypot(*gap[:2]))
        wide = scene.opening > 0.06
        if not wide and scene.opening < 0.012 and not any(scene.touching(self.target)):
            self._retry = True
        if wide and hand[2] > point[2] + 0.03:
            self._retry = False
        # Pressing on something instead of sliding past it: up, and once more.
        pressing = gap[2] < -0.014 and flat < 0.03 and abs(self._velocity[2]) < 0.0008
        self._stuck = self._stuck + 1 if pressing else 0
        # A finger on top of the target: up at once. Who learns from pictures sees that finger, but
        # not for how long it has pressed.
        perched = gap[2] < -0.014 and flat > 0.01 and any(scene.touching(self.target))
        if self._stuck >= 4 or perched:
            self._retry = True
        started = scene.opening < 0.074
        limit = 0.02 if started else 0.010
        aligned = flat < limit and abs(gap[2]) < (0.02 if started else 0.012)
        if aligned and np.linalg.norm(turn) < 0.15 and not self._retry:
            return self._command(gap, turn, CLOSE)
        # Come down in a funnel above the grip point; the steeper, the less it sweeps others aside.
        ready = wide and not self._retry and np.linalg.norm(turn) < 0.3
        height = np.clip(2.5 * (flat - 0.008), 0.0 if ready else 0.05, 0.08)
        floor = self._clear(hand, point) + TIP_M + 0.02
        return self._command(self._funnel(gap, max(point[2] + height, floor)), turn, OPEN)

    def _carry(self) -> np.ndarray:
        scene = self.scene
        hand, corners = scene.hand, scene.corners(self.target)
        centre = (corners.min(0) + corners.max(0)) / 2
        bottom = corners[:, 2].min()
        goal = scene.corners(self.goal)
        middle = (goal.min(0) + goal.max(0)) / 2
        gap = np.array([*(middle[:2] - centre[:2]), 0.0])
        flat = float(np.hypot(*gap[:2]))
        if self.inside:
            rest, over = goal[:, 2].max() - 0.025, goal[:, 2].max() + 0.02
        else:
            rest, over = goal[:, 2].min() + 0.006, goal[:, 2].max() + 0.05
        over = max(over, self._clear(centre, middle) + 0.03)
        near = 0.02 if self.inside else 0.012
        wanted = rest + np.clip(2.5 * (flat - near), 0.0, max(over - rest, 0.0))
        gap[2] = wanted - bottom
        # The wrist stays turned as it is, only upright: a turn back would tell the policy nothing.
        turn = _turn(scene.hand_rotation, None)
        if self._over_goal():
            return self._command(gap, turn, OPEN)
        return self._command(self._funnel(gap, hand[2] + gap[2]), turn, CLOSE)

    def _funnel(self, gap: np.ndarray, height: float) -> np.ndarray:
        """The way to go, with sideways motion held back while the hand is below `height`."""
        rise = height - self.scene.hand[2]
        slow = np.clip(1.0 - (rise - 0.015) / 0.04, 0.0, 1.0)
        return np.array([gap[0] * slow, gap[1] * slow, rise])

    def _command(self, gap: np.ndarray, turn: np.ndarray, grip: float) -> np.ndarray:
        # Where the hand will be shortly, so that it does not overshoot.
        ahead = gap - LEAD * self._velocity
        move = GAIN * ahead / REACH_M
        flat = np.hypot(move[0], move[1])
        if flat > 1.0:
            move[:2] /= flat
        return np.concatenate([np.clip(move, -1, 1), 1.5 * turn / TURN_RAD, [grip]])

    def _clear(self, start: np.ndarray, end: np.ndarray) -> float:
        """Highest top of anything in the way from `start` to `end`, metres; -inf if nothing is."""
        data = self.scene.data
        way = np.linalg.norm(end[:2] - start[:2])
        # The last stretch is straight down, between whatever stands close by.
        if way < 0.035:
            return -np.inf
        steps = np.linspace(0.0, 1.0 - 0.035 / way, 10)[:, None]
        path = start[:2] + steps * (end[:2] - start[:2])
        rot = np.abs(data.geom_xmat[self._boxes].reshape(-1, 3, 3))
        half = np.einsum("gij,gj->gi", rot, self._half)
        centre = data.geom_xpos[self._boxes]
        away = np.maximum(np.abs(path[:, None] - centre[None, :, :2]) - half[None, :, :2], 0.0)
        hit = (np.hypot(away[..., 0], away[..., 1]) < 0.055).any(0)
        return float((centre[:, 2] + half[:, 2])[hit].max(initial=-np.inf))


def _narrow_axis(points: np.ndarray) -> float:
    """Angle of the narrowest side of a set of points ``[N, 2]``, radians in (0, pi]."""
    angles = np.linspace(0.0, np.pi, 36, endpoint=False)
    width = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    # Round and square things need no turn: finger axis y is how the hand starts.
    good = angles[width < max(1.08 * width.min(), width.min() + 0.004)]
    return float(good[np.argmin(np.abs(good - np.pi / 2))])


def _turn(rotation: np.ndarray, angle: float | None) -> np.ndarray:
    """Rotation vector ``[3]`` that points the hand down, with its finger axis at `angle`."""
    axis = rotation[:, 0]
    if angle is None:
        wanted = np.array([axis[0], axis[1], 0.0]) / np.hypot(axis[0], axis[1])
    else:
        wanted = np.array([np.cos(angle), np.sin(angle), 0.0])
        if wanted @ FINGER_SIDE < 0:
            wanted = -wanted
    down = np.array([0.0, 0.0, -1.0])
    goal = np.stack([wanted, np.cross(down, wanted), down], axis=1)
    delta = goal @ rotation.T
    vector = (
        np.array([delta[2, 1] - delta[1, 2], delta[0, 2] - delta[2, 0], delta[1, 0] - delta[0, 1]])
        / 2
    )
    sine = np.linalg.norm(vector)
    if sine < 1e-6:
        return np.zeros(3)
    return vector / sine * np.arctan2(sine, (np.trace(delta) - 1) / 2)


def solve(env: LiberoEnv, state: int, seed: int = 0) -> tuple[bool, int]:
    """Play one episode from a shipped initial state: whether it succeeds, and its steps."""
    env.reset(seed=seed, options={"init": state})
    expert = Expert(env.scene(), env.goal[0][1], GOALS[env.suite])
    for steps in count(1):
        _, _, success, cut, _ = env.step(expert.act())
        if success or cut:
            return success, steps


def measure(
    suite: str, tasks: Sequence[int], states: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Success of the expert, without pictures: what `main` prints."""
    rows = []
    for task in tasks:
        env = LiberoEnv(suite, task, images=False)
        try:
            played = [solve(env, state, seed) for state in states]
            about = env.about()
        finally:
            env.close()
        won = sum(success for success, _ in played)
        rows.append({"task": task, "success": won, "steps": [steps for _, steps in played]})
        print(f"{suite} task {task}: {won} of {len(played)}", file=sys.stderr, flush=True)
    return {
        "suite": suite,
        "states": list(states),
        "seed": seed,
        "assets": about["assets"],
        "success": sum(row["success"] for row in rows),
        "episodes": len(rows) * len(states),
        "tasks": rows,
    }


def _numbers(text: str) -> list[int]:
    return numbers(text, "expert")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=sorted(GOALS), required=True)
    parser.add_argument("--states", type=_numbers, default=[30], help="such as 30-31,41")
    parser.add_argument("--tasks", type=_numbers, default=list(range(10)), help="default: all ten")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        result = measure(args.suite, args.tasks, args.states, args.seed)
    except VlaPruneError as error:
        parser.error(str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
