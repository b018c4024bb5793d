"""Where on a route something can happen to the ego, and how far the kerbs are there.

>>> lane, s = find_spot(stage, rng, before=12.0, after=8.0)  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.roads import PARKING_FROM_M, PARKING_M
from vla_prune_sim.drive.scene import EGO_CENTRE, STEP_S
from vla_prune_sim.drive.stage import STEPS, Stage
from vla_prune_sim.drive.streets import LANE_M, Path

EARLY_S, LATE_S = 3.0, 15.0  # when things may happen


def in_time(stage: Stage, s: float) -> bool:
    """Whether the nominal ego gets there when things may happen."""
    return EARLY_S + 1.5 < stage.arrival(s) < LATE_S


def find_spot(
    stage: Stage, rng: np.random.Generator, before: float, after: float, parking: int = 0
) -> tuple[str, float] | None:
    """A lane of the route and an arc length on it.

    Args:
        stage: whose route.
        rng: chooses.
        before: metres from the beginning of the lane.
        after: metres to its end.
        parking: 1 or -1 asks for parking on the left or on the right.
    """
    times = np.array([EARLY_S + 1.5, LATE_S])
    low, high = np.interp(times, np.arange(STEPS) * STEP_S, stage.ego_s) + EGO_CENTRE
    spots = []
    for token, start, end in stage.spans:
        if token not in stage.town.place:
            continue
        road, forward, number = stage.town.place[token]
        street = stage.town.roads[road]
        if parking and not street.parking[0 if (parking > 0) == forward else 1]:
            continue
        if parking < 0 and number != street.lanes - 1:
            continue
        first, last = max(start + before, low), min(end - after, high)
        if last > first:
            spots.append((token, first, last))
    if not spots:
        return None
    room = np.array([last - first for _, first, last in spots])
    token, first, last = spots[rng.choice(len(spots), p=room / room.sum())]
    return token, float(rng.uniform(first, last))


def project(path: Path, pose: np.ndarray) -> tuple[float, float]:
    """Arc length of the nearest point of a path, and how far it is."""
    away = np.hypot(*(path.poses[:, :2] - pose[:2]).T)
    return float(path.at[away.argmin()]), float(away.min())


def route_crossings(stage: Stage) -> list[tuple[str, float]]:
    """Lane and arc length on the route of each crossing that the route has."""
    found = []
    for token, start, end in stage.spans:
        if token not in stage.town.place:
            continue
        road, forward, _ = stage.town.place[token]
        length = stage.town.roads[road].path.length
        for r, s in stage.town.crossings:
            if r == road:
                part = (s if forward else length - s) / length
                found.append((token, start + part * (end - start)))
    return found


def kerb(stage: Stage, lane: str, side: int, s: float) -> float:
    """From the middle of the lane to the pavement on its left (1) or right (-1), metres."""
    road, forward, number = stage.town.place[lane]
    street = stage.town.roads[road]
    wide = street.half + side * (number + 0.5) * LANE_M
    on_road, _ = project(street.path, stage.path.pose(s))
    strip = PARKING_FROM_M < on_road < street.path.length - PARKING_FROM_M
    return wide + PARKING_M * (strip and street.parking[0 if (side > 0) == forward else 1])
