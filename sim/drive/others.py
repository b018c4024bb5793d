"""Ordinary road users of a synthetic town: parked, driving, riding, walking, standing about.

They are put in one after the other on a `Stage`, which refuses whoever would touch somebody that
is already there at any step. Drivers keep their distance from those before them by the
intelligent driver model (Treiber et al. 2000), looked up in a table of when their path is taken.

    >>> populate(stage, np.random.default_rng(7))  # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.geometry import overlap, to_local, wrap
from vla_prune_sim.drive.roads import PARKING_FROM_M, PARKING_M, Town
from vla_prune_sim.drive.scene import EGO_CENTRE, STEP_S
from vla_prune_sim.drive.stage import (
    ACCEL,
    BRAKE,
    STEPS,
    Actor,
    Stage,
    draw_size,
    follow,
    moving,
    standing,
    walk_across,
)
from vla_prune_sim.drive.streets import Path

FEWEST = 18  # on a stage, as far as there is room
LOOK_S, LOOK_M, GRID_M = 0.5, 40.0, 1.5
HARDEST, HEADWAY_S, GAP_M = -4.5, 1.4, 2.0


def plan(
    stage: Stage, path: Path, start: float, size: np.ndarray, wish: float
) -> np.ndarray | None:
    """Arc lengths ``[STEPS]`` of a driver who keeps clear of everybody already there.

    Those who go the same way are followed; those who cross are seen 1.5 s before they come. None
    where it takes an emergency stop.
    """
    ticks = np.arange(0, STEPS, round(LOOK_S / STEP_S))
    at = np.arange(start, start + 1.3 * wish * STEPS * STEP_S + LOOK_M, GRID_M)
    cells = path.pose(at)
    taken, lead = _taken(stage, cells, ticks, size)
    limit = np.interp(at, path.at, path.limit)
    s, v = start, min(wish, limit[0])
    ticked = [(s, v)]
    for tick in range(len(ticks) - 1):
        first = int((s - start) / GRID_M) + 1
        hit = np.flatnonzero(taken[tick, first : first + int(LOOK_M / GRID_M)])
        goal = min(wish, limit[first])
        accel = ACCEL * (1 - (v / max(goal, 0.5)) ** 4)
        if len(hit):
            cell = first + hit[0]
            gap = max(at[cell] - s - size[0] / 2, 0.3)
            closing = v - lead[tick, cell]
            want = GAP_M + max(v * HEADWAY_S + v * closing / (2 * np.sqrt(ACCEL * BRAKE)), 0.0)
            accel -= ACCEL * (want / gap) ** 2
        if accel < HARDEST and v > 1.0:
            return None
        accel = np.clip(accel, HARDEST, ACCEL)
        after = max(v + accel * LOOK_S, 0.0)
        s, v = s + (v + after) / 2 * LOOK_S, after
        ticked.append((s, v))
    ticked = np.array(ticked)
    return _smooth(ticks * STEP_S, ticked)


def _smooth(time: np.ndarray, ticked: np.ndarray) -> np.ndarray:
    """Every step between ticks of (arc length, speed), at constant acceleration."""
    now = np.arange(STEPS) * STEP_S
    i = np.clip(np.searchsorted(time, now + 1e-9) - 1, 0, len(time) - 2)
    part = now - time[i]
    way, v = ticked[i + 1, 0] - ticked[i, 0], ticked[i, 1]
    return ticked[i, 0] + v * part + (way - v * LOOK_S) / LOOK_S**2 * part**2


def _taken(
    stage: Stage, cells: np.ndarray, ticks: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each cell of a path is taken at each tick, and how fast who takes it goes along."""
    taken = np.zeros((len(ticks), len(cells)), bool)
    lead = np.full((len(ticks), len(cells)), 40.0)
    x, y = cells[:, 0], cells[:, 1]
    for other in [*stage.actors, stage.reserved[0]]:
        pose = other.pose[ticks]
        margin = 1.0 if other.category.startswith("human") and other.speed.any() else 0.3
        long, wide = ((other.size[i] + size[1]) / 2 + margin for i in (0, 1))
        if ((pose[:, 0].min() - x.max() > long) | (x.min() - pose[:, 0].max() > long)) or (
            (pose[:, 1].min() - y.max() > long) | (y.min() - pose[:, 1].max() > long)
        ):
            continue
        if other.speed.any():
            here = np.abs(to_local(cells[None, :, :2], pose))
            inside = (here[..., 0] < long) & (here[..., 1] < wide)
            if not inside.any():
                continue
            along = np.cos(wrap(pose[:, None, 2] - cells[:, 2]))
            crossing = inside & (along < 0.7)
            for ahead in (1, 2, 3):
                inside[:-ahead] |= crossing[ahead:]
            speed = np.maximum(along, 0.0) * other.speed[ticks][:, None]
        else:
            here = np.abs(to_local(cells[:, :2], pose[0]))
            inside = np.broadcast_to((here[:, 0] < long) & (here[:, 1] < wide), taken.shape)
            speed = 0.0
        taken |= inside
        lead = np.where(inside, np.minimum(lead, speed), lead)
    return taken, lead


def populate(stage: Stage, rng: np.random.Generator, lead: bool = False) -> None:
    """Fill a stage with ordinary traffic.

    Args:
        stage: what stands on it already stays as it is.
        rng: decides everything.
        lead: whether a car may drive ahead of the ego.
    """
    if lead and rng.random() < 0.6:
        _lead(stage, rng)
    near = _roads_by_distance(stage)
    _parked(stage, near, rng)
    _loose(stage, near, rng)
    for _ in range(rng.integers(0, 3)):
        _cross_somewhere(stage, near, rng)
    kinds = ["vehicle.car"] * 8 + ["vehicle.truck", "vehicle.bus.rigid", "vehicle.motorcycle"]
    goal = rng.integers(5, 12)
    drivers = sum(_drive_somewhere(stage, rng.choice(kinds), rng) for _ in range(goal))
    for _ in range(goal - drivers):
        _drive_somewhere(stage, "vehicle.car", rng)
    for _ in range(rng.integers(0, 4)):
        _drive_somewhere(stage, "vehicle.bicycle", rng)
    for _ in range(max(rng.integers(5, 12), FEWEST - len(stage.actors))):
        _walk_somewhere(stage, near, rng)


def random_lanes(
    town: Town, token: str, length: float, rng: np.random.Generator, straight: bool = False
) -> list[str]:
    """Tokens of lanes from ``token`` on, at least ``length`` metres; straight on if asked."""
    lanes, chain, done = town.map.lanes, [token], 0.0
    while done < length:
        lane = lanes[chain[-1]]
        done += town.length[chain[-1]]
        if straight:
            turn = [abs(wrap(lanes[k].centre[-1, 2] - lanes[k].centre[0, 2])) for k in lane.after]
            chain.append(lane.after[int(np.argmin(turn))])
        else:
            chain.append(lane.after[rng.integers(len(lane.after))])
    return chain


def lane_path(town: Town, tokens: list[str]) -> Path:
    """The middle of a chain of lanes."""
    return Path(np.concatenate([town.map.lanes[token].centre for token in tokens]))


def _roads_by_distance(stage: Stage) -> list[int]:
    """Indices of the roads that come within 45 m of the nominal drive, nearest first."""
    driven = stage.ego.pose[::10, :2]
    gaps = [
        np.hypot(*np.moveaxis(road.path.poses[::8, None, :2] - driven, -1, 0)).min()
        for road in stage.town.roads
    ]
    return [int(i) for i in np.argsort(gaps, kind="stable") if gaps[i] < 45.0]


def _lead(stage: Stage, rng: np.random.Generator) -> None:
    """Somebody who drives as the ego does, one and a half to four seconds before it."""
    size = draw_size("vehicle.car", rng)
    ahead = stage.ego_s[0] + EGO_CENTRE + 6.0 + stage.ego_speed[0] * rng.uniform(1.5, 4.0)
    s = follow(stage.path, ahead, stage.ego_speed.max() * rng.uniform(1.0, 1.15))
    actor = moving("vehicle.car", size, stage.path.pose(s))
    if _apart(actor, stage.ego, 3.0):
        stage.actors.append(actor)


def _apart(a: Actor, b: Actor, along: float) -> bool:
    return not overlap(a.boxes(along, 0.2), b.boxes()).any()


def parking_spot(stage: Stage, road: int, side: int, s: float) -> np.ndarray:
    """Pose ``[3]`` in the parking strip on the left (1) or right (-1), headed as its traffic."""
    street = stage.town.roads[road]
    pose = street.path.pose(s, side * (street.half + PARKING_M / 2 - 0.05))
    pose[2] += np.pi * (side > 0)
    return pose


def _parked(stage: Stage, near: list[int], rng: np.random.Generator) -> None:
    spots = []
    for r in near:
        street = stage.town.roads[r]
        for side, allowed in zip((1, -1), street.parking, strict=True):
            if allowed:
                end = street.path.length - PARKING_FROM_M
                spots += [(r, side, s) for s in np.arange(PARKING_FROM_M + 4, end - 4, 7.5)]
    count = min(rng.integers(4, 13), len(spots))
    for i in rng.choice(len(spots), count, replace=False) if count else ():
        r, side, s = spots[i]
        category = str(rng.choice(["vehicle.car"] * 9 + ["vehicle.truck"]))
        size = np.minimum(draw_size(category, rng), [6.4, 2.3, 3.0])
        pose = parking_spot(stage, r, side, s + rng.uniform(-0.4, 0.4))
        pose[2] += rng.normal(0, 0.012)
        stage.add(standing(category, size, pose), 0.4, 0.1)


def _loose(stage: Stage, near: list[int], rng: np.random.Generator) -> None:
    """Works beside the road: a few cones and barriers along the kerb."""
    if rng.random() < 0.45:
        return
    street = stage.town.roads[near[rng.integers(min(len(near), 3))]]
    side = int(rng.choice([-1, 1]))
    s = rng.uniform(16, street.path.length - 16)
    off = street.half + PARKING_M * street.parking[0 if side > 0 else 1] + 0.5
    kind = str(rng.choice(["movable_object.trafficcone", "movable_object.barrier"]))
    for i in range(rng.integers(2, 6)):
        pose = street.path.pose(s + 3.0 * i, side * off)
        pose[2] += np.pi / 2
        stage.add(standing(kind, draw_size(kind, rng), pose), 0.1, 0.1)


def _drive_somewhere(stage: Stage, category: str, rng: np.random.Generator) -> bool:
    """One more driver or rider, where there is room; whether there was."""
    town, size = stage.town, draw_size(category, rng)
    slow, rides = category == "vehicle.bicycle", category == "vehicle.bicycle"
    driven = stage.ego.pose[::20, :2]
    for _ in range(3):
        token = str(rng.choice(sorted(town.place)))
        road, _, number = town.place[token]
        if rides and number != town.roads[road].lanes - 1:
            continue
        lane = town.map.lanes[token]
        start = rng.uniform(2.0, town.length[token] - 4.0)
        here = lane.centre[min(int(start / 0.5), len(lane.centre) - 1), :2]
        if np.hypot(*(driven - here).T).min() > 75:
            continue
        wish = rng.uniform(3.0, 5.5) if slow else min(lane.speed_mps, rng.uniform(6.5, 12.0))
        heavy = size[0] > 6.0
        tokens = random_lanes(town, token, start + 26 * wish + LOOK_M, rng, straight=heavy)
        path = lane_path(town, tokens)
        if rides:
            path = Path(path.pose(path.at, -1.0))
        s = plan(stage, path, start, size, wish)
        if s is not None and stage.add(moving(category, size, path.pose(s)), 1.0, 0.15):
            return True
    return False


def _kerb_walk(stage: Stage, road: int, side: int) -> tuple[float, float, float]:
    """Offset of the pavement's middle, and from where to where along the road it is there."""
    street = stage.town.roads[road]
    if street.parking[0 if side > 0 else 1]:
        return (
            street.half + PARKING_M + 1.5,
            PARKING_FROM_M + 2,
            street.path.length - PARKING_FROM_M - 2,
        )
    return street.half + 1.5, 3.0, street.path.length - 3.0


def _walk_somewhere(stage: Stage, near: list[int], rng: np.random.Generator) -> None:
    """Somebody on a pavement; one in five stands."""
    road, side = near[rng.integers(len(near))], int(rng.choice([-1, 1]))
    off, low, high = _kerb_walk(stage, road, side)
    off = side * (off + rng.uniform(-0.8, 0.9))
    way, speed = int(rng.choice([-1, 1])), rng.uniform(0.8, 1.6) * (rng.random() > 0.2)
    child = rng.random() < 0.12
    category = "human.pedestrian." + ("child" if child else "adult")
    size = draw_size(category, rng)
    path = stage.town.roads[road].path
    s = rng.uniform(low, high)
    s = np.clip(s + way * speed * STEP_S * np.arange(STEPS), low, high)
    pose = path.pose(s, off)
    pose[:, 2] += np.pi * (way < 0)
    stage.add(moving(category, size, pose), 0.2, 0.2)


def _cross_somewhere(stage: Stage, near: list[int], rng: np.random.Generator) -> None:
    """Somebody on a crossing, at a time when nobody comes."""
    spots = [spot for spot in stage.town.crossings if spot[0] in near]
    if not spots:
        return
    size = draw_size("human.pedestrian.adult", rng)
    for _ in range(3):
        road, s = spots[rng.integers(len(spots))]
        street, side = stage.town.roads[road], int(rng.choice([-1, 1]))
        reach = side * (street.half + rng.uniform(0.6, 1.8))
        pose = walk_across(
            street.path,
            s + rng.uniform(-1.0, 1.0),
            reach,
            -reach,
            rng.uniform(1.0, 1.6),
            rng.uniform(-4, 12),
        )
        if stage.add(moving("human.pedestrian.adult", size, pose), 0.8, 0.8):
            return
