"""What a simulated drive is worth: its record, scored by `metrics.closed_loop`."""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.scene import RoadMap
from vla_prune_sim.drive.simulation import PRIMED, Simulation
from vla_prune_sim.metrics import closed_loop
from vla_prune_sim.metrics.ground import Ground

# Factors and terms of the score; what is in metres, seconds and m/s stands beside it.
PARTS = ("score", "gate", "nc", "dac", "ddc", "ttc", "ep", "comfort")
BESIDE = ("progress_m", "off_road_m", "ttc_s", "collision_s", "collision_ego_mps")
# Whether the drive ended before its time; whether for leaving the route, or by a contact that was
# not its fault.
ENDS = ("cut", "off_route", "blameless")


def as_drive(simulation: Simulation, feasible_m: float) -> closed_loop.Drive:
    """The driven part of a simulation: neither the primed second nor the step that strayed."""
    scene, record = simulation.scene, simulation.record
    # A score needs two steps.
    cut = simulation.ended == "envelope" and len(record.bodies) > PRIMED + 2
    kept = slice(PRIMED, -1 if cut else None)
    bodies, others = record.bodies[kept], record.others[kept]
    return closed_loop.Drive(
        ego=np.stack([body.pose for body in bodies]),
        speed=np.array([body.speed for body in bodies]),
        pose=np.stack([other.pose for other in others]),
        size=scene.tracks.size,
        valid=np.stack([other.present for other in others]),
        track_speed=np.stack([other.speed for other in others]),
        categories=scene.tracks.categories,
        road=scene.map,
        route=simulation.route,
        feasible_m=feasible_m,
        ended="" if simulation.ended in ("time", "envelope") else simulation.ended,
    )


def score(simulation: Simulation, feasible_m: float) -> dict[str, float | None]:
    """The PDMS-form score of a drive, first, its parts, and what stands beside them.

    None where there was none: no collision at fault, or no time to one below the bound. `ENDS` are
    0 or 1: a drive that left its route loses progress alone, and one that was run into is measured
    by what could be made until then, so both are told.

    Args:
        simulation: a drive that is over.
        feasible_m: how far along the route a reference driver gets in this scene, metres; where
            the drive strayed from its log or was run into, by then.
    """
    parts = closed_loop.score(as_drive(simulation, feasible_m), _ground(simulation.scene.map))
    parts["cut"] = float(simulation.ended != "time")
    parts["off_route"] = float(simulation.ended == "off_route")
    parts["blameless"] = float(blameless(simulation))
    return {name: parts[name] for name in (*PARTS, *BESIDE, *ENDS)}


def blameless(simulation: Simulation) -> bool:
    """Whether a contact ended the drive that was not the ego's fault."""
    if simulation.ended != "collision":
        return False
    driven = as_drive(simulation, 0.0)
    lane = _ground(simulation.scene.map).in_lane(driven.ego)
    found = closed_loop.hits(driven, lane, closed_loop.first_contacts(driven))
    # Each track counts once: what was touched before and is hit again does not clear the ego.
    fresh = any(hit.step == len(driven.ego) - 1 for hit in found)
    return fresh and not any(hit.at_fault for hit in found)


def feasible_m(expert: Simulation, step: int | None = None) -> float:
    """How far along the route one can get: as far as the expert's drive, metres.

    Where the expert failed, the log's own way counts, or failing early would make all others good.

    Args:
        expert: its drive, over.
        step: by this step of the log; None by the end.
    """
    last = expert.scene.steps - 1 if step is None else step
    ways = expert.record.along
    driven = ways[min(last, len(ways) - 1)] - expert.start_along
    logged = float(expert.route.project(expert.scene.ego[last, :2])[0]) - expert.start_along
    return driven if expert.ended == "time" else max(driven, logged)


_GROUNDS: dict[int, tuple[RoadMap, Ground]] = {}


def _ground(road: RoadMap) -> Ground:
    """Prepared once for each map that is in use."""
    if id(road) not in _GROUNDS:
        if len(_GROUNDS) > 8:
            _GROUNDS.clear()
        _GROUNDS[id(road)] = (road, Ground(road))
    return _GROUNDS[id(road)][1]
