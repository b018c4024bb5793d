"""How far from its log a drive may go before logged pictures say nothing true any more.

Measured in pictures that were moved by depth: clean to half a metre, torn edges at one, broken at
two (`reproject`). As in RAD (Gao et al., arXiv 2502.13144), a drive ends where its pictures do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import to_local, wrap
from vla_prune_sim.drive.scene import STEP_S, Scene

LEVELS = TRUSTED, FLAGGED, BEYOND = ("trusted", "flagged", "beyond")
# The most that is trusted, and the most before the drive ends: aside (m), turned (degrees), before
# or past the log's ends (m), ahead of the log (s): there its pictures show what is still to come.
MOST_TRUSTED = np.array([0.5, 5.0, 2.5, 0.5])
MOST = np.array([1.0, 10.0, 5.0, 1.0])
# What a radian and a second weigh, in metres, when the nearest logged place is looked for: a path
# that crosses itself is told apart by its heading, a log that stands still by time.
PER_RAD, PER_S = 5.0, 0.1


@dataclass(frozen=True)
class Stray:
    """How far the ego is from where it was logged.

    Attributes:
        aside_m: to either side.
        turned_deg: of heading.
        past_m: before the log's first place, or past its last one.
        early_s: ahead of the log; 0 for who is late.
        level: ``trusted``, ``flagged`` or ``beyond``.
    """

    aside_m: float
    turned_deg: float
    past_m: float
    early_s: float
    level: str


class Envelope:
    """Measures against a scene's log.

    Args:
        scene: whose log.
    """

    def __init__(self, scene: Scene) -> None:
        self.poses, self.times = scene.ego, STEP_S * np.arange(scene.steps)

    def stray(self, pose: np.ndarray, step: float) -> Stray:
        """Of a pose ``[3]`` of the rear axle at a step."""
        at = nearest(self.poses, self.times, pose, step * STEP_S)
        place, early = self.poses[at], max(0.0, self.times[at] - step * STEP_S)
        x, y = to_local(pose[None, :2], place)[0]
        # Between two places the ego is ahead of one of them; only their ends have nothing beyond.
        values = np.array([abs(y), np.rad2deg(abs(wrap(pose[2] - place[2]))), abs(x), early])
        level = BEYOND
        if (values <= MOST).all():
            level = TRUSTED if (values <= MOST_TRUSTED).all() else FLAGGED
        return Stray(*values.tolist(), level)


def nearest(poses: np.ndarray, times: np.ndarray, pose: np.ndarray, now_s: float | None) -> int:
    """Which of the poses ``[K, 3]``, taken at ``[K]`` seconds, shows best what ``pose`` sees.

    Args:
        poses: logged.
        times: seconds.
        pose: ``[3]``.
        now_s: decides between places that are equally near; None takes the first.
    """
    cost = ((poses[:, :2] - pose[:2]) ** 2).sum(1)
    cost = cost + (PER_RAD * wrap(poses[:, 2] - pose[2])) ** 2
    if now_s is not None:
        cost = cost + (PER_S * (times - now_s)) ** 2
    return int(cost.argmin())
