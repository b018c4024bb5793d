"""The ego as a body: a kinematic bicycle with actuators that have limits, and a tracker of plans.

The bicycle is the usual one with the rear axle as its reference (nuPlan, NeuroNCAP); where those
track with an LQR, this tracks by pure pursuit (Coulter 1992) and by the acceleration that puts the
car where the plan wants it a moment later. Knows no scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import Polyline, to_local, to_world
from vla_prune_sim.drive.scene import EGO_WHEELBASE, STEP_S

PLAN_DT_S = 0.5
PLAN_POINTS = 6


@dataclass(frozen=True)
class Limits:
    """What the car can do.

    Attributes:
        accel: hardest braking and acceleration, m/s^2.
        steer: largest angle of the front wheels, radians.
        steer_rate: radians/s.
        accel_lag_s: time constant of the pedals.
    """

    accel: tuple[float, float] = (-6.0, 3.0)
    steer: float = 0.6
    steer_rate: float = 0.9
    accel_lag_s: float = 0.2


@dataclass(frozen=True)
class Body:
    """One instant of the car.

    Attributes:
        pose: ``[3]`` of the rear axle.
        speed: m/s, never negative.
        accel: m/s^2.
        steer: angle of the front wheels, radians, left positive.
    """

    pose: np.ndarray
    speed: float = 0.0
    accel: float = 0.0
    steer: float = 0.0

    @property
    def yaw_rate(self) -> float:
        """Radians a second."""
        return self.speed * np.tan(self.steer) / EGO_WHEELBASE


def move(body: Body, accel: float, steer: float, limits: Limits) -> Body:
    """One step of ``STEP_S`` towards a commanded acceleration and wheel angle, within limits."""
    accel = float(np.clip(accel, *limits.accel))
    accel = body.accel + (accel - body.accel) * STEP_S / (limits.accel_lag_s + STEP_S)
    most = limits.steer_rate * STEP_S
    steer = float(np.clip(steer, body.steer - most, body.steer + most))
    steer = float(np.clip(steer, -limits.steer, limits.steer))
    speed = max(0.0, body.speed + accel * STEP_S)
    accel = (speed - body.speed) / STEP_S
    way = (body.speed + speed) / 2 * STEP_S
    turn = way * np.tan(steer) / EGO_WHEELBASE
    x, y, heading = body.pose
    middle = heading + turn / 2
    pose = np.array([x + way * np.cos(middle), y + way * np.sin(middle), heading + turn])
    return Body(pose, speed, accel, steer)


class Tracker:
    """Follows the last plan that it was given.

    A plan is ``[6, 2]``: where the rear axle shall be every 0.5 s, metres in the frame of the pose
    at which the plan was made (x forward, y left).
    """

    HORIZON_S = 0.8  # when the car shall be where the plan is then
    AHEAD_S, AHEAD_M = 0.7, (3.0, 14.0)  # the point that is steered at
    # How fast the pedals move, down and up, m/s^3: gently, unless a plan itself brakes hard. To
    # catch up with the pedals' own lag is no such plan.
    JERK, HARD_JERK, HARD_MPS2 = (-4.0, 3.0), (-20.0, 20.0), -2.8

    def __init__(self) -> None:
        self._path: Polyline | None = None
        self._time, self._hard = 0.0, False

    def take(self, plan: np.ndarray, body: Body, age_s: float = 0.0) -> None:
        """Follow ``plan``, made at ``body`` that long ago, from now on."""
        points = np.concatenate([np.zeros((1, 2)), np.asarray(plan, float)])
        points = to_world(points, body.pose)
        step = np.linalg.norm(np.diff(points, axis=0), axis=1)
        self._way = np.concatenate([[0.0], np.cumsum(step)])
        self._time = age_s
        self._hard = self._needed(body, self._wanted(age_s), age_s) < self.HARD_MPS2
        # A plan to stand still has no direction.
        self._path = Polyline(points) if self._way[-1] > 0.3 else None

    def command(self, body: Body) -> tuple[float, float]:
        """Acceleration and wheel angle for the next step."""
        now, self._time = self._time, self._time + STEP_S
        if self._path is None:
            return self._gently(-2.0 * body.speed - 0.5, body), body.steer
        along, _ = self._path.project(body.pose[:2])
        accel = self._needed(body, float(along), now)
        ahead = float(np.clip(body.speed * self.AHEAD_S, *self.AHEAD_M))
        target = self._path.pose(along + ahead)[:2]
        x, y = to_local(target[None], body.pose)[0]
        steer = float(np.arctan(2.0 * EGO_WHEELBASE * y / max(x * x + y * y, 1.0)))
        return self._gently(accel, body), steer

    def _needed(self, body: Body, along: float, now: float) -> float:
        """The acceleration that brings the car where the plan is `HORIZON_S` later."""
        span = self.HORIZON_S
        return 2.0 * (self._wanted(now + span) - along - body.speed * span) / span**2

    def _gently(self, accel: float, body: Body) -> float:
        """The acceleration as far as the pedals get in a step, through their lag."""
        most = 2 * STEP_S * np.array(self.HARD_JERK if self._hard else self.JERK)
        return float(np.clip(accel, *(body.accel + most)))

    def _wanted(self, time: float) -> float:
        """Way along the plan at a time; at its last speed beyond its end."""
        times = PLAN_DT_S * np.arange(len(self._way))
        if time <= times[-1]:
            return float(np.interp(time, times, self._way))
        return float(
            self._way[-1] + (time - times[-1]) * (self._way[-1] - self._way[-2]) / PLAN_DT_S
        )
