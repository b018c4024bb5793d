"""Reference drivers: what every table of driving is measured against.

A driver looks at the truth, not at pictures, and gives a plan as a policy would: ``[6, 2]``, where
the rear axle shall be every 0.5 s, metres in the ego's present frame. `rule_expert` also teaches.
It is built like PDM-Closed (Dauner et al., arXiv 2306.07962): follow the route's middle at several
speeds and offsets behind whoever is in the way, score all that, drive the best. Unlike it, it
scores clearance and progress only, knows no map but the route, and is told where the others
want to go instead of guessing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, to_local
from vla_prune_sim.drive.scene import EGO_LENGTH, EGO_WIDTH, Scene, ego_centre
from vla_prune_sim.drive.traffic import Traffic
from vla_prune_sim.drive.vehicle import PLAN_DT_S, PLAN_POINTS, Body

from vla_prune.errors import did_you_mean


@dataclass(frozen=True)
class Situation:
    """All that a privileged driver knows.

    Attributes:
        scene: the scene.
        route: its route by arc length.
        body: the ego.
        traffic: everyone else.
    """

    scene: Scene
    route: Polyline
    body: Body
    traffic: Traffic


class Driver(Protocol):
    """Plans from the truth."""

    def plan(self, now: Situation) -> np.ndarray:
        """``[6, 2]`` metres in the ego's frame, every 0.5 s."""
        ...


PLAN_TIMES = PLAN_DT_S * np.arange(1, PLAN_POINTS + 1)


class LogExpert:
    """What the log did next; beyond its end, on at its last speed."""

    def plan(self, now: Situation) -> np.ndarray:
        """The logged future."""
        scene, last = now.scene, now.scene.steps - 1
        wanted = now.traffic.step_index + np.round(PLAN_TIMES / 0.1).astype(int)
        points = scene.ego[np.minimum(wanted, last), :2]
        end = scene.ego[last]
        over = 0.1 * np.maximum(wanted - last, 0) * scene.ego_speed[last]
        points = points + over[:, None] * [np.cos(end[2]), np.sin(end[2])]
        return to_local(points, now.body.pose)


class ConstantVelocity:
    """Straight on as fast as now."""

    def plan(self, now: Situation) -> np.ndarray:
        """Points straight ahead."""
        return np.stack([now.body.speed * PLAN_TIMES, np.zeros(PLAN_POINTS)], axis=-1)


class Stop:
    """Brakes comfortably and stands."""

    def plan(self, now: Situation) -> np.ndarray:
        """A stop at 2 m/s^2."""
        time = np.minimum(PLAN_TIMES, now.body.speed / 2.0)
        return np.stack([now.body.speed * time - time**2, np.zeros(PLAN_POINTS)], axis=-1)


class RuleExpert:
    """Follows the route behind whoever is in the way, around what stands at its side.

    Args:
        top_mps: cruising speed where the road is straight and free.
        gap_m: kept in front and behind besides 0.3 m; who learns from pictures errs by more.
        headway_s: of the road ahead that belongs to it as well.
        person_m: kept on all sides of people besides 0.3 m; who drives knows where they will walk,
            who learns from single pictures does not.
        side_m: kept from everything where it costs little, so that it passes in the middle.
    """

    TIMES = 0.25 * np.arange(1, 21)  # seconds, looked ahead
    # Shares of the top speed to go for, and how hard to brake for them, m/s^2.
    SPEEDS = np.array([0.0, 0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0])
    BRAKES = np.array([-6.0, -2.2, -2.2, -2.2, -2.2, -2.2, -2.2, -2.2])
    OFFSETS = np.array([0.0, 0.7, -0.7, 1.4, -1.4])
    LATERAL = 2.0  # m/s^2 in curves
    ACCEL = 1.5

    def __init__(
        self,
        top_mps: float = 10.0,
        gap_m: float = 0.0,
        headway_s: float = 0.9,
        person_m: float = 0.0,
        side_m: float = 0.0,
    ) -> None:
        self.top_mps, self.gap_m, self.headway_s = top_mps, gap_m, headway_s
        self.person_m, self.side_m = person_m, side_m
        self._near: float | None = None

    def plan(self, now: Situation) -> np.ndarray:
        """The best of all proposals."""
        along, left = now.route.project(now.body.pose[:2], self._near)
        self._near = float(along)
        way = self._ways(now, float(along))  # [S, T]
        poses = self._poses(now, float(along), float(left), way)  # [O, S, T, 3]
        hurt = self._clearance(now, poses, way)  # [O, S]
        uneasy = 0.35 * np.abs(self.OFFSETS)[:, None] + 3.0 * (self.BRAKES < -3.0)
        cost = hurt + uneasy - 0.1 * way[:, -1]
        best = np.unravel_index(cost.argmin(), cost.shape)
        chosen = poses[best][:, :2]
        points = np.stack(
            [
                np.interp(PLAN_TIMES, np.append(0.0, self.TIMES), np.append(p, c))
                for p, c in zip(now.body.pose[:2], chosen.T, strict=True)
            ],
            axis=-1,
        )
        return to_local(points, now.body.pose)

    def _ways(self, now: Situation, along: float) -> np.ndarray:
        """Distances driven at each of ``TIMES`` for every target speed, slowed before curves."""
        reach = np.arange(0.0, 80.0, 2.0)
        bend = np.abs(now.route.curvature(along + reach, 6.0))
        fast = np.minimum(self.top_mps, np.sqrt(self.LATERAL / np.maximum(bend, 1e-3)))
        # What braking early for each bend ahead allows here.
        gap = reach[None] - reach[:, None]
        early = np.sqrt(fast[None] ** 2 + 2 * 1.5 * np.maximum(gap, 0.0))
        allowed = np.where(gap >= 0, early, np.inf).min(-1)
        speed, way = np.full(len(self.SPEEDS), now.body.speed), np.zeros(len(self.SPEEDS))
        rows, dt = [], self.TIMES[0]
        for _ in self.TIMES:
            target = np.minimum(self.SPEEDS * self.top_mps, np.interp(way, reach, allowed))
            change = np.clip((target - speed) / 0.8, self.BRAKES, self.ACCEL)
            new = np.maximum(0.0, speed + change * dt)
            way = way + (speed + new) / 2 * dt
            speed = new
            rows.append(way)
        return np.stack(rows, axis=-1)

    def _poses(self, now: Situation, along: float, left: float, way: np.ndarray) -> np.ndarray:
        """Rear axle poses ``[O, S, T, 3]``: on the route, sliding over to each offset."""
        middle = now.route.pose(along + way)  # [S, T, 3]
        slide = np.clip(way / 14.0, 0.0, 1.0)
        slide = slide * slide * (3 - 2 * slide)
        side = left + (self.OFFSETS[:, None, None] - left) * slide  # [O, S, T]
        normal = np.stack([-np.sin(middle[..., 2]), np.cos(middle[..., 2])], -1)
        xy = middle[..., :2] + side[..., None] * normal
        heading = np.broadcast_to(middle[..., 2:], (*side.shape, 1))
        return np.concatenate([xy, heading], axis=-1)

    def _clearance(self, now: Situation, poses: np.ndarray, way: np.ndarray) -> np.ndarray:
        """Cost ``[O, S]`` of what a proposal would touch, and of what it would follow too closely.

        A late collision may still go away; an early one is what must not happen.
        """
        pose, present = now.traffic.forecast(self.TIMES)
        near = present.any(1) & (
            np.linalg.norm(pose[:, 0, :2] - now.body.pose[:2], axis=-1) < 60.0
        )
        # Who runs into our back while we go straight on is not ours to avoid.
        near &= to_local(now.traffic.now().pose[:, :2], now.body.pose)[:, 0] > -1.0
        if not near.any():
            return np.zeros(poses.shape[:2])
        then, there = pose[near], present[near]
        meets = partial(_meets, then=then, there=there)
        size = now.scene.tracks.size[near] + 0.2
        speed = np.diff(way, axis=-1, prepend=0.0) / self.TIMES[0]  # [S, T]
        centre = ego_centre(poses)
        length = np.full_like(speed, EGO_LENGTH + 0.6)
        touched = meets(centre, length, size=size)
        if self.gap_m or self.person_m or self.side_m:
            people = np.array([c.startswith("human.") for c in now.scene.tracks.categories])
            large = size + 2.0 * self.person_m * people[near, None]
            near_by = meets(centre, length + 2.0 * self.gap_m, size=large)
            beside = meets(centre, length, size=size + 2.0 * self.side_m)
            # Who is nearer than the margins allow must still know the lesser evil.
            hurt = _soon(touched, 20.0, 60.0) + 10.0 * (touched * speed).max(-1)
            hurt += _soon(near_by, 8.0, 60.0) + _early(beside, 0.5, 3.0)
        else:
            hurt = _early(touched, 8.0, 60.0)
        # The road that is driven in the next moment belongs to the box as well.
        ahead = self.headway_s * speed
        moved = centre.copy()
        moved[..., 0] += np.cos(centre[..., 2]) * ahead / 2
        moved[..., 1] += np.sin(centre[..., 2]) * ahead / 2
        return hurt + _early(meets(moved, length + ahead, size=size), 0.3, 5.0)


def _meets(
    centre: np.ndarray, length: np.ndarray, then: np.ndarray, there: np.ndarray, size: np.ndarray
) -> np.ndarray:
    """Whether the ego's box ``[O, S, T]`` overlaps any of the others at that time.

    Args:
        centre: ``[O, S, T, 3]``.
        length: ``[S, T]`` of the ego's box.
        then: ``[N, T, 3]`` the others.
        there: ``[N, T]`` whether they are.
        size: ``[N, 3]``.
    """
    away = centre[..., None, :, :2] - then[:, :, :2]  # [O, S, N, T, 2]
    reach = (size[:, :1] + length[:, None]) / 2 + 2.0  # [S, N, T]
    o, s, n, t = np.nonzero(((away**2).sum(-1) < reach**2) & there)
    hit = np.zeros((*centre.shape[:2], *then.shape[:2]), bool)
    ours = corners(centre[o, s, t], length[s, t], EGO_WIDTH + 0.3)
    theirs = corners(then[n, t], size[n, 0], size[n, 1])
    hit[o, s, n, t] = overlap(ours, theirs)
    return hit.any(2)


def _early(touched: np.ndarray, least: float, most: float) -> np.ndarray:
    """Cost ``[O, S]`` of the contacts in ``[O, S, T]``: the earlier and longer, the more."""
    first = 1.0 - touched.argmax(-1) / touched.shape[-1]
    share = (first + touched.mean(-1)) / 2
    return np.where(touched.any(-1), least + most * share, 0.0)


def _soon(touched: np.ndarray, least: float, most: float) -> np.ndarray:
    """As `_early`, but however long they last: who is in one already may as well stand still."""
    first = 1.0 - touched.argmax(-1) / touched.shape[-1]
    return np.where(touched.any(-1), least + most * first, 0.0)


DRIVERS = {
    "log_expert": LogExpert,
    "rule_expert": RuleExpert,
    "constant_velocity": ConstantVelocity,
    "stop": Stop,
}


def make(name: str) -> Driver:
    """A driver by name."""
    if name not in DRIVERS:
        raise did_you_mean("drivers", "driver", name, DRIVERS)
    return DRIVERS[name]()
