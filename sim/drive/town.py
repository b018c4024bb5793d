"""Synthetic driving scenes: a seeded town, a route through it, and others on the road.

The same seed gives the same scene bit for bit. Scenes of one seed that differ in their scenario
alone mostly share their town. The ego of a scene is a nominal drive that keeps to the route at a
steady speed, slows for bends and looks at nobody; `Scene.tracks` are what the others do then.

    >>> scene = make_scene(7, "cut_in")
    >>> scene.steps, scene.scenario
    (201, 'cut_in')
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from vla_prune_sim.drive.cameras import nuscenes_cameras
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.others import lane_path, populate
from vla_prune_sim.drive.roads import Town, build_town
from vla_prune_sim.drive.scenarios import SCENARIOS, play
from vla_prune_sim.drive.scene import Scene, Tracks
from vla_prune_sim.drive.scenery import build_scenery
from vla_prune_sim.drive.stage import STEPS, Actor, Stage, follow
from vla_prune_sim.drive.streets import Path

from vla_prune.errors import ConfigError, did_you_mean

BEHIND_M, BEYOND_M = 30.0, 340.0
KEYFRAME_STEPS = 5
ORDINARY = 0.15  # share of scenes in which nothing special happens
ROUTES = 12  # tried in one town before another is built
TOWNS = 20
# Streams of random numbers, so that a change of one leaves the others alone.
TOWN, ROUTE, KIND, ACTORS, SCENERY = range(5)
START_US, APART_US = 1_530_000_000_000_000, 60_000_000


def make_scene(seed: int, scenario: str | None = None) -> Scene:
    """One synthetic scene of 20 s at 10 Hz.

    Args:
        seed: not negative; decides everything.
        scenario: one of `SCENARIOS`, or "" for ordinary traffic; None draws one by the seed.
    """
    if seed < 0:
        raise ConfigError(f"make_scene: seed is {seed}; give a whole number from 0 on.")
    if scenario is None:
        draw = np.random.default_rng([seed, KIND])
        scenario = "" if draw.random() < ORDINARY else str(draw.choice(sorted(SCENARIOS)))
    if scenario and scenario not in SCENARIOS:
        raise did_you_mean("make_scene", "scenario", scenario, SCENARIOS)
    for attempt in range(TOWNS):
        town = build_town(np.random.default_rng([seed, TOWN, attempt]))
        route = np.random.default_rng([seed, ROUTE, attempt])
        actors = np.random.default_rng([seed, ACTORS, attempt])
        for _ in range(ROUTES):
            stage = _stage(town, route)
            if stage is None:
                continue
            special = play(scenario, stage, actors) if scenario else []
            if special is not None:
                populate(stage, actors, lead=not scenario)
                return _scene(seed, scenario, stage, len(special))
    raise RuntimeError(f"seed {seed} found no place for {scenario!r} in {TOWNS} towns.")


def _stage(town: Town, rng: np.random.Generator) -> Stage | None:
    """A route and the nominal drive along it; None where the streets run out."""
    tokens = _route(town, rng)
    if tokens is None:
        return None
    ends = np.cumsum([town.length[token] for token in tokens])
    first = rng.uniform(0.0, max(ends[0] - BEHIND_M - 40.0, 0.1))
    whole = lane_path(town, tokens)
    path = Path(whole.even(first))
    spans = [
        (token, end - town.length[token] - first, end - first)
        for token, end in zip(tokens, ends, strict=True)
    ]
    return Stage(town, path, spans, follow(path, BEHIND_M, rng.uniform(7.5, 11.5)))


def _route(town: Town, rng: np.random.Generator) -> list[str] | None:
    """Tokens of a chain of lanes that comes to no junction twice."""
    starts = sorted(t for t in town.place if town.length[t] > BEHIND_M + 45.0)
    if not starts:
        return None
    tokens = [str(rng.choice(starts))]
    length, been = 0.0, set()
    while length < town.length[tokens[0]] + BEYOND_M:
        after = [t for t in town.map.lanes[tokens[-1]].after if town.junction.get(t) not in been]
        if not after:
            return None
        tokens.append(after[rng.integers(len(after))])
        length += town.length[tokens[-1]]
        if tokens[-1] in town.junction:
            been.add(town.junction[tokens[-1]])
    return tokens


def _scene(seed: int, scenario: str, stage: Stage, special: int) -> Scene:
    scenery, light = build_scenery(
        stage.town, stage.path.poses, np.random.default_rng([seed, SCENERY])
    )
    ego = stage.path.pose(stage.ego_s)
    ego[:, 2] = wrap(ego[:, 2])
    what = scenario.replace("_", " ") if scenario else "ordinary traffic"
    return Scene(
        name=f"town-{seed:04d}" + (f"-{scenario}" if scenario else ""),
        source="synthetic",
        version="v1.0-synthetic",
        description=f"Synthetic town {seed}: {what}, {light}.",
        map=stage.town.map,
        ego=ego,
        ego_speed=stage.ego_speed,
        tracks=_tracks(stage.actors, scenario, special),
        cameras=nuscenes_cameras(),
        route=stage.path.poses[:, :2].copy(),
        scenery=scenery,
        keyframes=np.arange(0, STEPS, KEYFRAME_STEPS),
        start_us=START_US + seed * APART_US,
        seed=seed,
        scenario=scenario,
    )


def _tracks(actors: list[Actor], scenario: str, special: int) -> Tracks:
    """The actors, those of the scenario first and named after it."""
    count, tokens = Counter(), []
    for i, actor in enumerate(actors):
        kind = scenario if i < special else actor.category.split(".")[-1]
        tokens.append(f"{kind}-{count[kind]}")
        count[kind] += 1
    pose = np.stack([actor.pose for actor in actors])
    pose[..., 2] = wrap(pose[..., 2])
    size = np.stack([actor.size for actor in actors])
    return Tracks(
        tokens=tuple(tokens),
        categories=tuple(actor.category for actor in actors),
        size=size,
        pose=pose,
        z=size[:, 2] / 2,
        speed=np.stack([actor.speed for actor in actors]),
        valid=np.ones(pose.shape[:2], bool),
    )
