"""The others on the road: as logged, or with vehicles that keep their distance.

``idm`` moves each vehicle along its own logged path by the intelligent driver model (Treiber et
al. 2000, with nuPlan's parameters), held back by whatever stands in that path, the ego included.
Where nothing does it keeps to its log in time as well, so that it waits where the log waited (at a
light, for a crossing car). People, cyclists and things follow the log in both modes, as in nuPlan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import Polyline
from vla_prune_sim.drive.scene import EGO_LENGTH, EGO_WIDTH, STEP_S, Scene, ego_centre

from vla_prune.errors import did_you_mean

MODES = ("log", "idm")
PER_M, PER_MPS, CATCH_UP = 0.4, 1.3, 2.0  # how a vehicle gets back to its log in time
LOOK_M = 48.0
LOOK_AT = np.arange(2.0, LOOK_M, 2.0)
EXTRA_M = 60.0  # paths go on this far beyond their log
MOVES_M = 2.0  # a vehicle that never gets this far is parked
CIRCLES = np.array([-0.5, 0.0, 0.5])  # a box is three circles in a row
GAP_M, HEADWAY_S, ACCEL, BRAKE = 1.0, 1.5, 1.0, 2.0
HARDEST = -6.0


@dataclass(frozen=True)
class Others:
    """All others at one instant.

    Attributes:
        pose: ``[N, 3]`` centre and heading.
        speed: ``[N]`` m/s.
        present: ``[N]`` bool.
    """

    pose: np.ndarray
    speed: np.ndarray
    present: np.ndarray


class Traffic:
    """Moves the others of a scene step by step.

    Args:
        scene: whose tracks these are.
        mode: ``log`` or ``idm``.
        start: step of the log to begin with.
    """

    def __init__(self, scene: Scene, mode: str = "idm", start: int = 0) -> None:
        if mode not in MODES:
            raise did_you_mean("Traffic", "mode", mode, MODES)
        self.tracks = scene.tracks
        self.step_index = start
        self._driven = np.array(
            [mode == "idm" and self._drives(i) for i in range(len(self.tracks))], bool
        )
        self._index = np.flatnonzero(self._driven)
        self._prepare(start)

    def now(self) -> Others:
        """The present instant."""
        tracks, step = self.tracks, min(self.step_index, self.tracks.pose.shape[1] - 1)
        pose, speed = tracks.pose[:, step].copy(), tracks.speed[:, step].copy()
        present = tracks.valid[:, step] & (self.step_index < tracks.pose.shape[1])
        if len(self._index):
            pose[self._index], speed[self._index] = self._at, self._v
            present[self._index] = self._here
        return Others(pose, speed, present)

    def forecast(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where everyone will be if nobody reacts: poses ``[N, T, 3]`` and presence ``[N, T]``.

        Driven vehicles go on along their paths at their speed, all others as the log has it.

        Args:
            times: ``[T]`` seconds from now.
        """
        tracks, last = self.tracks, self.tracks.pose.shape[1] - 1
        steps = np.minimum(self.step_index + np.round(times / STEP_S).astype(int), last)
        pose, present = tracks.pose[:, steps].copy(), tracks.valid[:, steps].copy()
        if len(self._index):
            s = np.minimum(self._s[:, None] + self._v[:, None] * times, self._length[:, None])
            pose[self._index] = self._poses(s)
            present[self._index] = self._here[:, None]
        return pose, present

    def advance(self, ego: np.ndarray, ego_speed: float) -> Others:
        """One step of ``STEP_S``; ``ego`` is the pose ``[3]`` of its rear axle before the step."""
        if len(self._index):
            self._drive(self.now(), ego_centre(ego), ego_speed)
        self.step_index += 1
        if len(self._index):
            self._appear(ego_centre(ego))
        return self.now()

    def _drives(self, i: int) -> bool:
        tracks = self.tracks
        vehicle = tracks.categories[i].startswith("vehicle.")
        two_wheels = tracks.categories[i] in ("vehicle.bicycle", "vehicle.motorcycle")
        seen = tracks.pose[i, tracks.valid[i], :2]
        moves = len(seen) > 1 and np.linalg.norm(np.ptp(seen, axis=0)) > MOVES_M
        return vehicle and not two_wheels and moves

    def _prepare(self, start: int) -> None:
        """Paths at one metre, the log's place on them, and where everyone begins."""
        tracks, steps = self.tracks, self.tracks.pose.shape[1]
        paths, logs = [], []
        for i in self._index:
            seen = np.flatnonzero(tracks.valid[i])
            pose = tracks.pose[i]
            first, last = pose[seen[0]], pose[seen[-1]]
            on = last[:2] + EXTRA_M * np.array([np.cos(last[2]), np.sin(last[2])])
            back = first[:2] - 5.0 * np.array([np.cos(first[2]), np.sin(first[2])])
            path = Polyline(np.concatenate([back[None], _forward(pose[seen]), on[None]]))
            s = np.maximum.accumulate(path.project(pose[seen, :2])[0])
            # Beyond its log it goes on as fast as it was last.
            log = np.interp(np.arange(steps), seen, s)
            after = np.arange(steps) - seen[-1]
            log += np.maximum(after, 0) * STEP_S * max(0.0, tracks.speed[i, seen[-1]])
            paths.append(path)
            logs.append(log)
        count = len(self._index)
        longest = int(max((path.length for path in paths), default=1.0)) + 2
        self._table = (
            np.stack([path.pose(np.minimum(np.arange(longest), path.length)) for path in paths])
            if count
            else np.zeros((0, 1, 3))
        )
        self._length = np.array([path.length for path in paths])
        self._log = np.stack(logs) if count else np.zeros((0, steps))
        speed = tracks.speed[self._index]
        self._top = 1.3 * np.maximum(
            np.where(tracks.valid[self._index], speed, 0.0).max(-1, initial=0), 3.0
        )
        self._first = np.array([np.flatnonzero(tracks.valid[i])[0] for i in self._index], int)
        self._s = self._log[:, min(start, steps - 1)].copy()
        self._v = np.maximum(speed[:, min(start, steps - 1)], 0.0)
        self._here = tracks.valid[self._index, min(start, steps - 1)].copy()
        last = [np.flatnonzero(tracks.valid[i])[-1] for i in self._index]
        self._gone = np.array(last, int) < start
        self._at = self._poses(self._s)

    def _poses(self, s: np.ndarray) -> np.ndarray:
        """``[M, ..., 3]`` at arc lengths ``[M, ...]`` of each path."""
        low = np.minimum(np.maximum(s.astype(int), 0), self._table.shape[1] - 2)
        rows = np.arange(len(s)).reshape(-1, *[1] * (s.ndim - 1))
        a, b = self._table[rows, low], self._table[rows, low + 1]
        part = np.minimum(np.maximum(s - low, 0.0), 1.0)[..., None]
        # Neighbouring headings of a path differ by little, but may lie on both sides of pi.
        turn = (b[..., 2:] - a[..., 2:] + np.pi) % (2 * np.pi) - np.pi
        return a + part * np.concatenate([b[..., :2] - a[..., :2], turn], axis=-1)

    def _drive(self, others: Others, ego: np.ndarray, ego_speed: float) -> None:
        gap, closing = self._leader(others, ego, ego_speed)
        step = min(self.step_index + 1, self._log.shape[1] - 1)
        late = self._log[:, step] - self._s
        slow = (self._log[:, step] - self._log[:, step - 1]) / STEP_S - self._v
        accel = np.minimum(
            _idm(self._v, self._top, gap, closing),
            np.minimum(PER_M * late + PER_MPS * slow, CATCH_UP),
        )
        speed = np.maximum(0.0, self._v + np.maximum(accel, HARDEST) * STEP_S)
        moved = np.where(self._here, (self._v + speed) / 2 * STEP_S, 0.0)
        self._s = np.minimum(self._s + moved, self._length)
        self._v = np.where(self._here, speed, self._v)
        self._at = self._poses(self._s)

    def _leader(
        self, others: Others, ego: np.ndarray, ego_speed: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Free way ahead of each driven vehicle, metres, and the speed at which it shrinks."""
        size = np.concatenate([self.tracks.size[:, :2], [[EGO_LENGTH, EGO_WIDTH]]])
        pose = np.concatenate([others.pose, ego[None]])
        speed, present = np.append(others.speed, ego_speed), np.append(others.present, True)
        mine, whose = self._in_reach(pose, present)
        # Every place ahead [P, K] against the circles [P, C] of who could be there.
        points = self._poses(self._s[:, None] + LOOK_AT)
        shift = CIRCLES * (size[:, :1] - size[:, 1:])
        cos, sin = np.cos(pose[:, 2:]), np.sin(pose[:, 2:])
        x, y = pose[:, :1] + shift * cos, pose[:, 1:2] + shift * sin
        reach = (self.tracks.size[self._index[mine], 1] + size[whose, 1]) / 2 - 0.1
        px, py, limit = (v.astype(np.float32) for v in (points[..., 0], points[..., 1], reach**2))
        hit = np.zeros((len(mine), len(LOOK_AT)), bool)
        for cx, cy in zip(x.T.astype(np.float32), y.T.astype(np.float32), strict=True):
            dx, dy = px[mine] - cx[whose, None], py[mine] - cy[whose, None]
            hit |= dx * dx + dy * dy < limit[:, None]
        hits = hit.any(-1)
        pair, first = np.flatnonzero(hits), hit[hits].argmax(-1)
        m, who = mine[pair], whose[pair]
        # From bumper to where its circles begin.
        way = LOOK_AT[first] - self.tracks.size[self._index[m], 0] / 2 - size[who, 1] / 2
        along = np.cos(pose[who, 2] - points[m, first, 2]) * speed[who]
        gap, closing = np.full(len(self._index), np.inf), np.zeros(len(self._index))
        # The nearest is written last.
        for i in np.argsort(-way):
            gap[m[i]], closing[m[i]] = max(way[i], 0.05), self._v[m[i]] - along[i]
        return gap, closing

    def _in_reach(self, pose: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a driven vehicle and someone who may be ahead of it."""
        own = pose[self._index]
        dx = pose[None, :, 0] - own[:, 0, None]
        dy = pose[None, :, 1] - own[:, 1, None]
        ahead = dx * np.cos(own[:, 2, None]) + dy * np.sin(own[:, 2, None])
        near = (dx * dx + dy * dy < (LOOK_M + 8.0) ** 2) & (ahead > -8.0) & present
        near[np.arange(len(own)), self._index] = False
        return np.nonzero(near)

    def _appear(self, ego: np.ndarray) -> None:
        """Those whose log begins now, unless the ego stands there; at their path's end they go."""
        free = np.linalg.norm(self._at[:, :2] - ego[:2], axis=-1) > 6.0
        begins = (self.step_index >= self._first) & ~self._here & ~self._gone & free
        self._here |= begins
        ended = self._here & (self._s >= self._length - 0.5)
        self._gone |= ended
        self._here &= ~ended


def _idm(speed: np.ndarray, top: np.ndarray, gap: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Acceleration of the intelligent driver model, m/s^2."""
    wanted = GAP_M + np.maximum(
        0.0, speed * HEADWAY_S + speed * closing / (2 * (ACCEL * BRAKE) ** 0.5)
    )
    return ACCEL * (1.0 - (speed / top) ** 4 - (wanted / np.maximum(gap, 0.05)) ** 2)


def _forward(pose: np.ndarray) -> np.ndarray:
    """Logged positions ``[n, 2]`` without the jitter of standing and backing."""
    kept = [pose[0, :2]]
    for x, y, heading in pose[1:]:
        step = np.array([x, y]) - kept[-1]
        if step @ (np.cos(heading), np.sin(heading)) > 0.5:
            kept.append(np.array([x, y]))
    return np.array(kept)
