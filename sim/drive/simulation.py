"""A scene driven: the ego's body follows plans, the others move, all of it is written down.

Draws nothing. The first second follows the log, so that speeds and histories are real.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from vla_prune_sim.drive.drivers import Driver, Situation
from vla_prune_sim.drive.envelope import BEYOND, TRUSTED, Envelope, Stray
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, to_local, wrap
from vla_prune_sim.drive.scene import (
    EGO_LENGTH,
    EGO_WHEELBASE,
    EGO_WIDTH,
    PRIMED,
    STEP_S,
    STOPPED_MPS,
    Scene,
    ego_centre,
)
from vla_prune_sim.drive.traffic import Others, Traffic
from vla_prune_sim.drive.vehicle import Body, Limits, Tracker, move

from vla_prune.errors import ShapeError

OFF_ROUTE_M = 8.0
LOOK_M, TURN_RAD = 30.0, 0.35
COMMANDS = ("straight", "left", "right")
STRAIGHT_ON = (0, LOOK_M)
STATE_DIM = 10


@dataclass
class Record:
    """What was driven, every ``STEP_S``, the primed second included.

    Attributes:
        bodies: of the ego.
        others: of everyone else.
        along: of the ego along the route, metres.
    """

    bodies: list[Body] = field(default_factory=list)
    others: list[Others] = field(default_factory=list)
    along: list[float] = field(default_factory=list)


class Simulation:
    """One scene from its first second on.

    Args:
        scene: the scene.
        agents: ``log`` or ``idm``.
        limits: of the ego's actuators.
        envelope: also ends it where it strays too far from its log; None lets it.

    Attributes:
        over: whether it has ended.
        ended: why: ``""``, ``"time"``, ``"collision"``, ``"off_route"`` or ``"envelope"``.
        strays: from the log, at every driven step; none without an envelope.
    """

    def __init__(
        self,
        scene: Scene,
        agents: str = "idm",
        limits: Limits | None = None,
        envelope: Envelope | None = None,
    ) -> None:
        if scene.steps < PRIMED + 2:
            raise ShapeError(
                f"{scene.name} has {scene.steps} steps of {STEP_S} s; a drive takes over after "
                f"{PRIMED} and needs {PRIMED + 2} or more, so leave the scene out."
            )
        self.scene, self.limits, self.envelope = scene, limits or Limits(), envelope
        self.strays: list[Stray] = []
        self.route = Polyline(scene.route)
        self.tracker = Tracker()
        self.over, self.ended = False, ""
        self.record = Record()
        self.traffic = Traffic(scene, agents)
        self.along, _ = self.route.project(scene.ego[0, :2])
        for step in range(PRIMED + 1):
            self.body = _logged(scene, step)
            others = self.traffic.now()
            self._write(others)
            if step < PRIMED:
                self.traffic.advance(self.body.pose, self.body.speed)
        self.start_along = float(self.along)
        # Nobody drove into what is touched when the log hands over.
        self._struck = touching(self.body, self.record.others[-1], scene.tracks.size)

    @property
    def step_index(self) -> int:
        """Steps of the log so far."""
        return self.traffic.step_index

    @property
    def inside(self) -> float:
        """Share of the driven steps that were trusted; 1 before the first.

        Where straying ended the drive, the steps that are lost count as not trusted.
        """
        steps = len(self.strays)
        if self.ended == "envelope":
            steps += self.scene.steps - 1 - self.step_index
        return sum(stray.level == TRUSTED for stray in self.strays) / steps if steps else 1.0

    def advance(self, plan: np.ndarray | None, steps: int = 5, ago: int = 0) -> None:
        """Follow ``plan`` ``[6, 2]`` (see `Tracker`) for some steps, or until it is over.

        Args:
            plan: None goes on with the last one.
            steps: how many.
            ago: how many steps ago the plan was made.
        """
        if plan is not None:
            self.tracker.take(plan, self.record.bodies[-1 - ago], ago * STEP_S)
        for _ in range(steps):
            if self.over:
                return
            before = self.body
            self.body = move(before, *self.tracker.command(before), self.limits)
            others = self.traffic.advance(before.pose, before.speed)
            self._write(others)
            self._judge(others)

    def relive(self, steps: int) -> None:
        """Some steps of 0.1 s as the log had them, whatever was planned."""
        for _ in range(steps):
            before = self.body
            others = self.traffic.advance(before.pose, before.speed)
            self.body = _logged(self.scene, self.traffic.step_index)
            self._write(others)

    def situation(self) -> Situation:
        """The truth, for drivers that may see it."""
        return Situation(self.scene, self.route, self.body, self.traffic)

    def state(self) -> np.ndarray:
        """What the ego knows of itself, ``[10]`` float32.

        Speed (m/s), acceleration (m/s^2), yaw rate (rad/s), wheel angle (rad), where it was a
        second ago (x, y in metres, its present frame), and the next turn of the route: one of
        straight, left, right, and how far off it is (in units of `LOOK_M`). Nothing of its future.
        """
        body = self.body
        past = self.record.bodies[max(0, len(self.record.bodies) - 11)].pose
        x, y = to_local(past[None, :2], body.pose)[0]
        # Where the route is the log's own path, its turns are the log's future.
        known = self.scene.on_lanes
        turn, off = command(self.route, float(self.along)) if known else STRAIGHT_ON
        way = [float(turn == i) for i in range(len(COMMANDS))]
        own = [body.speed, body.accel, body.yaw_rate, body.steer, x, y]
        return np.array([*own, *way, off / LOOK_M], np.float32)

    def _write(self, others: Others) -> None:
        self.record.bodies.append(self.body)
        self.record.others.append(others)
        self.along, self.left = self.route.project(self.body.pose[:2], float(self.along))
        self.record.along.append(float(self.along))

    def _judge(self, others: Others) -> None:
        hit = touching(self.body, others, self.scene.tracks.size)
        if self.envelope is not None:
            self.strays.append(self.envelope.stray(self.body.pose, self.step_index))
        # Being run into from behind or while we stand ends nothing, also not while whoever did it
        # goes on through us.
        behind = to_local(others.pose[:, :2], self.body.pose)[:, 0] < 0.0
        standing = abs(self.body.speed) <= STOPPED_MPS
        self._struck = hit & (behind | standing | self._struck)
        if (hit & ~self._struck).any():
            self.over, self.ended = True, "collision"
        elif abs(self.left) > OFF_ROUTE_M:
            self.over, self.ended = True, "off_route"
        elif self.strays and self.strays[-1].level == BEYOND:
            self.over, self.ended = True, "envelope"
        elif self.step_index >= self.scene.steps - 1:
            self.over, self.ended = True, "time"


def touching(body: Body, others: Others, size: np.ndarray) -> np.ndarray:
    """Which of the others the ego's box overlaps, ``[N]`` bool; ``size`` is ``[N, 3]``."""
    ours = corners(ego_centre(body.pose), EGO_LENGTH, EGO_WIDTH)
    return others.present & overlap(ours, corners(others.pose, size[:, 0], size[:, 1]))


def command(route: Polyline, along: float) -> tuple[int, float]:
    """Which way the route goes next, and how far off that turn is, metres (at most `LOOK_M`).

    From the route alone, as a navigator would say it, never from where the log went.
    """
    reach = np.arange(0.0, LOOK_M + 1.0, 2.0)
    heading = route.pose(along + reach)[:, 2]
    turn = np.cumsum(np.append(0.0, wrap(np.diff(heading))))
    bent = np.abs(turn) > TURN_RAD
    if not bent.any():
        return STRAIGHT_ON
    first = int(bent.argmax())
    return (1 if turn[first] > 0 else 2), float(reach[first])


def drive(scene: Scene, driver: Driver, agents: str = "idm", steps: int = 5) -> Simulation:
    """A whole scene by a privileged driver, who plans every ``steps`` steps."""
    simulation = Simulation(scene, agents)
    while not simulation.over:
        simulation.advance(driver.plan(simulation.situation()), steps)
    return simulation


def _logged(scene: Scene, step: int) -> Body:
    """The ego's body as the log has it; from the second step on, of nothing that came later.

    Its motion is that of the parabola through the last half second.
    """
    if step == 0:
        return Body(scene.ego[0].copy(), float(scene.ego_speed[0]), 0.0, 0.0)
    poses = scene.ego[max(0, step - 5) : step + 1]
    moved, heading = np.diff(poses[:, :2], axis=0), np.unwrap(poses[:, 2])
    middle = (heading[1:] + heading[:-1]) / 2
    way = np.append(0.0, np.cumsum(moved[:, 0] * np.cos(middle) + moved[:, 1] * np.sin(middle)))
    times = STEP_S * np.arange(1 - len(poses), 1)
    degree = min(2, len(poses) - 1)
    fit = np.polynomial.polynomial.polyfit(times, np.stack([way, heading], -1), degree)
    (speed, yaw_rate), accel = fit[1], 2.0 * fit[2, 0] if degree == 2 else 0.0
    steer = np.arctan(yaw_rate * EGO_WHEELBASE / speed) if speed > 0.5 else 0.0
    return Body(poses[-1].copy(), float(speed), float(accel), float(steer))
