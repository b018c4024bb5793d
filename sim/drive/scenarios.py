"""What can happen to the ego of a synthetic town: seven scenarios that need eyes.

Each is timed for the nominal drive of a `Stage`: an ego that does not look has an accident, one
that begins to brake at 3 m/s^2 within 0.4 s of the danger showing does not. `play` makes sure of
both. The situations are those of the pre-crash typology behind the CARLA leaderboard's scenarios.

    >>> actors = play("cut_in", stage, np.random.default_rng(7))  # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from vla_prune_sim.drive.geometry import overlap, to_local
from vla_prune_sim.drive.others import parking_spot
from vla_prune_sim.drive.places import (
    EARLY_S,
    find_spot,
    in_time,
    kerb,
    project,
    route_crossings,
)
from vla_prune_sim.drive.roads import PARKING_FROM_M, PARKING_M
from vla_prune_sim.drive.scene import EGO_CENTRE, EGO_LENGTH, STEP_S
from vla_prune_sim.drive.stage import (
    STEPS,
    Actor,
    Stage,
    draw_size,
    follow,
    moving,
    standing,
    walk_across,
)
from vla_prune_sim.drive.streets import GUTTER_M, LANE_M, Path

FRONT_M = EGO_LENGTH / 2  # from the middle of the ego to its bumper
EYE_M = 1.7  # from the rear axle to the front camera
BRAKE_MPS2, REACTION_S = 3.0, 0.4
LONGEST_S = 3.5  # a child that shows longer than this is not hidden


@dataclass(frozen=True)
class Event:
    """A scenario on a stage.

    Attributes:
        actors: who does it.
        seen: step from which the danger shows.
        shade: boxes that ordinary traffic must leave free so that it does show.
    """

    actors: list[Actor]
    seen: int
    shade: tuple[Actor, ...] = ()


def play(name: str, stage: Stage, rng: np.random.Generator) -> list[Actor] | None:
    """Put a scenario on an empty stage.

    Args:
        name: one of `SCENARIOS`.
        stage: gains the actors.
        rng: decides place, side and timing.

    Returns:
        The actors; None where this route has no place for it.
    """
    for _ in range(6):
        event = SCENARIOS[name](stage, rng)
        if event is not None and _needs_eyes(stage, event) and _can_be_solved(stage, event):
            stage.actors += event.actors
            stage.reserved += event.shade
            return event.actors
    return None


def stopped_vehicle(stage: Stage, rng: np.random.Generator) -> Event | None:
    """Somebody stands in the ego's lane, and drives on some time after the ego arrived."""
    spot = find_spot(stage, rng, before=12.0, after=8.0)
    if spot is None:
        return None
    category = str(
        rng.choice(["vehicle.car", "vehicle.car", "vehicle.truck", "vehicle.bus.rigid"])
    )
    size, s = draw_size(category, rng), spot[1]
    arrives = stage.arrival(s)
    wish = np.where(_time() < arrives + rng.uniform(1.5, 8.0), 0.0, rng.uniform(6.0, 9.0))
    pose = stage.path.pose(follow(stage.path, s, wish), rng.uniform(-0.25, 0.25))
    return Event([moving(category, size, pose)], _step(arrives - 4.0))


def lead_braking(stage: Stage, rng: np.random.Generator) -> Event | None:
    """The car in front brakes hard for no reason that the ego sees, stands, and drives on."""
    size = draw_size(str(rng.choice(["vehicle.car", "vehicle.car", "vehicle.truck"])), rng)
    category = "vehicle.truck" if size[0] > 5.5 else "vehicle.car"
    speed = stage.ego_speed[0]
    ahead = stage.ego_s[0] + EGO_CENTRE + FRONT_M + size[0] / 2 + speed * rng.uniform(1.4, 2.2)
    brakes, stands = rng.uniform(EARLY_S, 12.0), rng.uniform(5.0, 7.0)
    wish = np.full(STEPS, stage.ego_speed.max())
    wish[_step(brakes) : _step(brakes + stands)] = 0.0
    s = follow(stage.path, ahead, wish, brake=rng.uniform(3.2, 4.2))
    return Event([moving(category, size, stage.path.pose(s))], _step(brakes))


def cut_in(stage: Stage, rng: np.random.Generator) -> Event | None:
    """Somebody comes into the ego's lane from the next one, or pulls out from the kerb."""
    return (_cut_in_driving if rng.random() < 0.6 else _pull_out)(stage, rng)


def _cut_in_driving(stage: Stage, rng: np.random.Generator) -> Event | None:
    starts = _time()[_step(EARLY_S) : _step(12.0)]
    begins = float(rng.choice(starts))
    size = draw_size("vehicle.car", rng)
    middle, speed = stage.ego_s[_step(begins)] + EGO_CENTRE, stage.ego_speed[_step(begins)]
    slow = speed * rng.uniform(0.5, 0.65)
    s = middle + FRONT_M + size[0] / 2 + rng.uniform(6.0, 11.0)
    takes = slow * rng.uniform(1.8, 2.5)
    span = next((span for span in stage.spans if span[1] < s <= span[2]), None)
    if span is None or span[0] not in stage.town.place:
        return None
    road, _, number = stage.town.place[span[0]]
    if stage.town.roads[road].lanes < 2:
        return None
    if s - slow * begins < span[1] + 3 or s + takes > span[2] or slow < 2.5:
        return None
    side = (-1 if number == 0 else 1) * LANE_M
    along = follow(stage.path, s - slow * begins, slow)
    return Event([_merge(stage, size, along, s, takes, side)], _step(begins + 0.3))


def _pull_out(stage: Stage, rng: np.random.Generator) -> Event | None:
    spot = find_spot(stage, rng, before=PARKING_FROM_M + 4, after=PARKING_FROM_M + 12, parking=-1)
    if spot is None:
        return None
    size, s = draw_size("vehicle.car", rng), spot[1]
    begins = stage.arrival(s) - rng.uniform(2.3, 3.0)
    wish = np.where(_time() < begins, 0.0, rng.uniform(3.5, 6.0))
    side = -(LANE_M / 2 + GUTTER_M + PARKING_M / 2)
    actor = _merge(stage, size, follow(stage.path, s, wish), s, rng.uniform(7.5, 10.0), side)
    return Event([actor], _step(begins + 0.3))


def _merge(
    stage: Stage, size: np.ndarray, along: np.ndarray, s: float, takes: float, side: float
) -> Actor:
    """Somebody who drives ``side`` metres beside the route and comes onto it from ``s`` on."""
    part = np.clip((along - s) / takes, 0.0, 1.0)
    pose = stage.path.pose(along, side * (1 - part**2 * (3 - 2 * part)))
    pose[:, 2] += np.arctan(-side * 6 * part * (1 - part) / takes)
    return moving("vehicle.car", size, pose)


def crossing_pedestrian(stage: Stage, rng: np.random.Generator) -> Event | None:
    """Somebody walks across, at a crossing where the route has one."""
    spots = [(lane, s) for lane, s in route_crossings(stage) if in_time(stage, s)]
    spot = spots[rng.integers(len(spots))] if spots else find_spot(stage, rng, 15.0, 15.0)
    if spot is None:
        return None
    lane, s = spot
    side = int(rng.choice([-1, 1]))
    near, far = kerb(stage, lane, side, s), kerb(stage, lane, -side, s)
    speed, s = rng.uniform(1.0, 1.7), s + rng.uniform(-0.8, 0.8)
    start, end = side * (near + rng.uniform(1.5, 2.5)), -side * (far + 1.5)
    arrives = stage.arrival(s)
    begins = arrives - abs(start - rng.uniform(-0.6, 0.6)) / speed
    if begins < 0.5:
        return None
    category = "human.pedestrian." + ("child" if rng.random() < 0.15 else "adult")
    pose = walk_across(stage.path, s, start, end, speed, begins)
    return Event([moving(category, draw_size(category, rng), pose)], _step(begins + 0.3))


def occluded_child(stage: Stage, rng: np.random.Generator) -> Event | None:
    """A child runs out from behind a parked van."""
    side = int(rng.choice([-1, 1]))
    spot = find_spot(stage, rng, PARKING_FROM_M + 4, PARKING_FROM_M + 10, parking=side)
    if spot is None:
        return None
    lane, s = spot
    size = np.array([rng.uniform(5.2, 6.4), rng.uniform(1.95, 2.15), rng.uniform(2.2, 2.7)]).round(
        2
    )
    child = draw_size("human.pedestrian.child", rng)
    place, path, near = stage.town.place[lane], stage.path, kerb(stage, lane, side, s)
    street = stage.town.roads[place[0]]
    van_s = s - size[0] / 2 - rng.uniform(0.8, 2.2)
    on_road, _ = project(street.path, path.pose(van_s))
    van = parking_spot(stage, place[0], side if place[1] else -side, on_road)
    start = side * (near + rng.uniform(0.5, 1.0))
    end = -side * (kerb(stage, lane, -side, s) + 1.5)
    speed = rng.uniform(1.5, 2.6)
    arrives = stage.arrival(s)
    begins = arrives - abs(start - rng.uniform(-0.5, 0.5)) / speed
    actors = [
        moving("human.pedestrian.child", child, walk_across(path, s, start, end, speed, begins)),
        standing("vehicle.car", size, van),
    ]
    eye = path.pose(stage.ego_s + EYE_M)[:, :2]
    seen = np.flatnonzero(_sees(eye, actors[0].pose[:, :2], actors[1]) & (_time() > begins))
    if not len(seen) or seen[0] * STEP_S < begins + 0.2 or begins < EARLY_S:
        return None
    if arrives - seen[0] * STEP_S > LONGEST_S:
        return None
    # From when the child shows, nobody may drive between it and the ego.
    wide = max(near - LANE_M / 2 - PARKING_M - GUTTER_M, 0.1)
    shade = path.pose(np.full(STEPS, s - 8.0), side * (LANE_M + wide) / 2)
    when = (_time() < seen[0] * STEP_S - 0.5) | (_time() > arrives + 1.0)
    shade[when] += [1e6, 0.0, 0.0]
    cover = Actor("vehicle.car", np.array([24.0, wide, 1.5]), shade, np.zeros(STEPS))
    return Event(actors, int(seen[0]), (cover,))


def narrow_passage(stage: Stage, rng: np.random.Generator) -> Event | None:
    """Something takes half of the ego's lane; cones opposite leave a gap of about three metres."""
    spot = find_spot(stage, rng, before=22.0, after=22.0)
    if spot is None:
        return None
    s, edge, gap = spot[1], rng.uniform(-0.5, -0.15), rng.uniform(2.8, 3.3)
    actors = []
    if rng.random() < 0.6:
        category = str(rng.choice(["vehicle.car", "vehicle.truck"]))
        size = np.minimum(draw_size(category, rng), [7.0, 2.4, 3.2])
        pose = stage.path.pose(s, edge - size[1] / 2)
        actors.append(standing(category, size, pose))
        long = size[0]
    else:
        long = 2.4 * rng.integers(2, 4)
        for along in np.arange(0.0, long + 0.1, 2.4):
            size = draw_size("movable_object.barrier", rng)
            pose = stage.path.pose(s - long / 2 + along, edge - size[1] / 2)
            actors.append(standing("movable_object.barrier", size, pose))
    for along in np.arange(-long / 2, long / 2 + 0.1, 2.5):
        size = draw_size("movable_object.trafficcone", rng)
        pose = stage.path.pose(s + along, edge + gap + size[1] / 2)
        actors.append(standing("movable_object.trafficcone", size, pose))
    return Event(actors, _step(stage.arrival(s) - 4.0))


def junction_priority(stage: Stage, rng: np.random.Generator) -> Event | None:
    """Somebody crosses the ego's way at a junction and does not give way."""
    town, lanes = stage.town, stage.town.map.lanes
    choices = []
    for token, start, end in stage.spans:
        if token not in town.junction or not in_time(stage, (start + end) / 2):
            continue
        mine = lanes[token].centre
        from_here = {town.place[t][0] for t in town.before[token]}
        for other, junction in town.junction.items():
            come = town.before[other][0]
            if junction != town.junction[token] or town.place[come][0] in from_here:
                continue
            away = np.hypot(*np.moveaxis(mine[:, None, :2] - lanes[other].centre[:, :2], -1, 0))
            i, j = np.unravel_index(away.argmin(), away.shape)
            if away[i, j] < 0.6:
                choices.append(
                    (
                        other,
                        j * town.length[other] / (len(lanes[other].centre) - 1),
                        start + i * (end - start) / (len(mine) - 1),
                    )
                )
    if not choices:
        return None
    other, inside, s = choices[rng.integers(len(choices))]
    arrives, wish = stage.arrival(s), rng.uniform(6.5, 10.0)
    chain, run_up = [other], inside
    while run_up < wish * arrives + 5:
        before = town.before[chain[0]]
        chain.insert(0, before[rng.integers(len(before))])
        run_up += town.length[chain[0]]
    goes_on = 0.0
    while goes_on < wish * 20:
        chain.append(lanes[chain[-1]].after[0])
        goes_on += town.length[chain[-1]]
    path = Path(np.concatenate([lanes[token].centre for token in chain]))
    # The limits do not depend on time: drive the whole way once, then shift the clock.
    whole = follow(path, 0.0, wish, steps=3 * STEPS)
    meets = np.interp(run_up, whole, np.arange(len(whole)) * STEP_S) + rng.uniform(-0.3, 0.3)
    if meets < arrives or meets + 20 - arrives > len(whole) * STEP_S:
        return None
    now = _time() + meets - arrives
    along = np.interp(now, np.arange(len(whole)) * STEP_S, whole)
    category = str(
        rng.choice(["vehicle.car", "vehicle.car", "vehicle.truck", "vehicle.motorcycle"])
    )
    return Event(
        [moving(category, draw_size(category, rng), path.pose(along))], _step(arrives - 3)
    )


SCENARIOS = {
    "cut_in": cut_in,
    "crossing_pedestrian": crossing_pedestrian,
    "stopped_vehicle": stopped_vehicle,
    "lead_braking": lead_braking,
    "junction_priority": junction_priority,
    "occluded_child": occluded_child,
    "narrow_passage": narrow_passage,
}


def _time() -> np.ndarray:
    return np.arange(STEPS) * STEP_S


def _step(seconds: float) -> int:
    return int(np.clip(round(seconds / STEP_S), 0, STEPS - 1))


def _sees(eye: np.ndarray, target: np.ndarray, cover: Actor) -> np.ndarray:
    """``[STEPS]`` whether nothing of ``cover`` is between the points ``[STEPS, 2]``."""
    part = np.linspace(0.0, 1.0, 61)[:, None, None]
    line = np.moveaxis(eye + part * (target - eye), 0, 1)
    here = np.abs(to_local(line, cover.pose))
    return ~((here[..., 0] < cover.size[0] / 2) & (here[..., 1] < cover.size[1] / 2)).any(-1)


def first_hit(ego: Actor, actors: list[Actor], aside: float = 0.0) -> int | None:
    """First step at which the ego's box, widened by ``aside``, touches one of the actors."""
    mine = ego.boxes(0.0, aside)
    hit = np.array([overlap(mine, actor.boxes()) for actor in actors]).any(0)
    return int(hit.argmax()) if hit.any() else None


def braked(stage: Stage, step: int) -> Actor:
    """The ego when it leaves its nominal drive at a step, brakes at 3 m/s^2 and stands."""
    time = np.maximum(_time() - step * STEP_S, 0.0)
    speed = stage.ego_speed[step]
    time = np.minimum(time, speed / BRAKE_MPS2)
    s = np.where(
        np.arange(STEPS) <= step,
        stage.ego_s,
        stage.ego_s[step] + speed * time - BRAKE_MPS2 * time**2 / 2,
    )
    pose = stage.path.pose(s)
    pose[:, :2] += EGO_CENTRE * np.stack([np.cos(pose[:, 2]), np.sin(pose[:, 2])], -1)
    return moving("vehicle.car", stage.ego.size, pose)


def _needs_eyes(stage: Stage, event: Event) -> bool:
    hit = first_hit(stage.ego, event.actors)
    return hit is not None and hit > EARLY_S / STEP_S and hit >= event.seen


def _can_be_solved(stage: Stage, event: Event) -> bool:
    ego = braked(stage, min(event.seen + round(REACTION_S / STEP_S), STEPS - 1))
    return first_hit(ego, event.actors, 0.1) is None
