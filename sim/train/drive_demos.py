"""Demonstrations of the rule-based expert in synthetic towns, written as HDF5.

The same layout as :mod:`vla_prune_sim.train.demos`: ``data/demo_i/obs/CAM_FRONT_rgb`` and so on,
one frame at every plan (2 Hz). ``chunks`` is what the expert would do: the way of the rear axle
in each of the next six half seconds, ``[6, 2]`` metres in the ego's frame. What is executed is
disturbed in bursts (Laskey et al., DART, arXiv 1703.09327), so that the way back is seen. With
``--policy`` that policy drives, and each of its looks comes with what the expert would do from
there. All keys stand in ``sim/drive/README.md``. ::

    python -m vla_prune_sim.train.drive_demos --out runs/demos/drive --scenes 1000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
from vla_prune_sim.drive.drivers import RuleExpert
from vla_prune_sim.drive.env import FRONT, INSTRUCTION, squeeze
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.render import ROAD, Renderer
from vla_prune_sim.drive.scenarios import SCENARIOS
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.simulation import Simulation
from vla_prune_sim.drive.town import make_scene
from vla_prune_sim.drive.world import steps_of
from vla_prune_sim.train.dagger import EXPERT, Look, add_arguments, learners

from vla_prune.errors import VlaPruneError
from vla_prune.types import Observation

# From a frame, as it is recorded, and the expert's plan to the plan that is executed, `[6, 2]`.
Executor = Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]
VIEW, SIZE, PATCHES = (256, 144), 144, 12
CLASSES = ("background", "road", "vehicle", "person", "obstacle")
LEAST = {2: 0.08, 3: 0.04, 4: 0.04}  # share of a patch from which on it shows a class
FORMAT = 1
FAR_M = 30.0
# More room than the reference driver keeps, at no cost to its own score: who learns this errs by
# half a metre, and what is half a metre too late is an accident. Nor do single pictures tell where
# someone on foot will be in two seconds.
TEACHER = {"gap_m": 2.0, "headway_s": 1.3, "person_m": 0.8, "side_m": 0.4}


class Disturbance:
    """Bursts of one to two seconds in which plans are bent and their pace is changed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._left, self._calm = rng, 0, 0

    def __call__(self, frame: dict[str, np.ndarray], plan: np.ndarray) -> np.ndarray:
        """The plan ``[6, 2]`` to execute instead of the expert's."""
        rng = self._rng
        if self._left == 0:
            self._calm += 1
            if self._calm < 4 or rng.random() > 0.25:
                return plan
            self._calm, self._left = 0, int(rng.integers(2, 5))
            self._slope, self._pace = rng.normal(0.0, 0.09), np.exp(rng.normal(0.0, 0.2))
        self._left -= 1
        bent = plan * self._pace
        bent[:, 1] += self._slope * bent[:, 0]
        return bent


def record(seed: int, scenarios: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], dict] | None:
    """One drive through the town of a seed, or None if the expert failed there undisturbed.

    Args:
        seed: of the town.
        scenarios: of which it plays one; none leaves that to the seed.
    """
    rng = np.random.default_rng([seed, 1])
    disturb = Disturbance(rng) if rng.random() < 0.8 else None
    arrays, about = _drive(seed, scenarios, disturb or (lambda _, plan: plan))
    if about["ended"] != "time" and disturb is None:
        return None
    return arrays, about | {"disturbed": disturb is not None}


def dagger(
    seed: int, policies: Sequence[Callable[[], Executor]], scenarios: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict]:
    """One drive of a policy's own, as in DAgger (see `train.dagger`).

    Args:
        seed: of the town.
        policies: of which one drives.
        scenarios: as in `record`.
    """
    rng = np.random.default_rng([seed, 2])
    policy = policies[int(rng.integers(len(policies)))]()

    def execute(frame: dict[str, np.ndarray], plan: np.ndarray) -> np.ndarray:
        own = policy(frame, plan)
        return plan if rng.random() < EXPERT else own

    arrays, about = _drive(seed, scenarios, execute)
    return arrays, about | {"disturbed": False}


def _drive(
    seed: int, scenarios: Sequence[str], execute: Executor
) -> tuple[dict[str, np.ndarray], dict]:
    scene = make_scene(seed, scenarios[seed % len(scenarios)] if scenarios else None)
    simulation, driver = Simulation(scene, "idm"), RuleExpert(**TEACHER)
    renderer = Renderer(scene, VIEW, FRONT)
    kinds = kinds_of(scene)
    rows: dict[str, list] = {}
    while not simulation.over:
        plan = driver.plan(simulation.situation())
        frame = _frame(simulation, renderer, kinds, plan)
        for key, value in frame.items():
            rows.setdefault(key, []).append(value)
        simulation.advance(execute(frame, plan))
    arrays = {key: np.stack(value) for key, value in rows.items()}
    about = {
        "instruction": INSTRUCTION,
        "seed": seed,
        "scenario": scene.scenario,
        "ended": simulation.ended,
    }
    return arrays, about


def _frame(
    simulation: Simulation, renderer: Renderer, kinds: np.ndarray, plan: np.ndarray
) -> dict[str, np.ndarray]:
    others = simulation.record.others[-1]
    views, masks = renderer.render(simulation.body.pose, others.pose, others.present, masks=True)
    row = {
        "frame_index": np.int32(simulation.step_index),
        "states8": simulation.state(),
        "chunks": steps_of(plan).astype(np.float32),
        "aux/patches": np.stack([patches(masks[name], kinds) for name in FRONT]),
        "aux/offsets": _offsets(simulation),
    }
    for name in FRONT:
        row[f"obs/{name}_rgb"] = squeeze(views[name], SIZE)
    return row


def kinds_of(scene: Scene) -> np.ndarray:
    """Patch class of each track."""
    kinds = []
    for category in scene.tracks.categories:
        two_wheels = category in ("vehicle.bicycle", "vehicle.motorcycle")
        person = category.startswith("human.") or two_wheels
        kinds.append(3 if person else 2 if category.startswith("vehicle.") else 4)
    return np.array(kinds, int)


def patches(ids: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Classes ``[12, 12]`` uint8 of a mask of the renderer: the rarest class that shows enough."""
    pixels = np.where(ids == ROAD, 1, 0)
    agents = ids > 0
    pixels[agents] = kinds[ids[agents] - 1]
    shares = [
        cv2.resize(
            (pixels == kind).astype(np.float32), (PATCHES, PATCHES), interpolation=cv2.INTER_AREA
        )
        for kind in range(len(CLASSES))
    ]
    result = np.where(shares[1] > 0.5, 1, 0).astype(np.uint8)
    for kind in (2, 4, 3):
        result[shares[kind] > LEAST[kind]] = kind
    return result


def _offsets(simulation: Simulation) -> np.ndarray:
    """Metres left of the route, heading off it (in 0.1 rad) and free way ahead (in 10 m), ``[3]``.

    The free way is that along the route to the nearest of the others within 1.6 m of it.
    """
    route, others = simulation.route, simulation.record.others[-1]
    along, left = float(simulation.along), float(simulation.left)
    turn = float(wrap(simulation.body.pose[2] - route.pose(along)[2]))
    ahead, side = route.project(others.pose[:, :2], near=along)
    near = others.present & (np.abs(side) < 1.6) & (ahead > along + 2.0)
    free = float(np.min(ahead[near] - along, initial=FAR_M))
    return np.array([left, 10.0 * turn, min(free, FAR_M) / 10.0], np.float32) / 10.0


def write_shard(
    path: Path,
    scenes: int,
    seed: int,
    make: Callable[[int], tuple[dict[str, np.ndarray], dict] | None] = record,
) -> tuple[int, int]:
    """Make one file; returns how many demonstrations and frames it has."""
    part = path.with_suffix(".part")
    count = frames = 0
    with h5py.File(part, "w") as file:
        data = file.create_group("data")
        for number in range(scenes):
            made = make(seed + number)
            if made is None:
                continue
            arrays, about = made
            demo = data.create_group(f"demo_{count}")
            for key, value in arrays.items():
                packing = {"compression": "gzip", "compression_opts": 1}
                picture = {"chunks": (1, *value.shape[1:]), **packing}
                demo.create_dataset(key, data=value, **(picture if key.endswith("_rgb") else {}))
            demo.attrs.update(about)
            count, frames = count + 1, frames + len(arrays["frame_index"])
        data.attrs.update(
            {
                "world": "synthetic towns",
                "image_size": SIZE,
                "format": FORMAT,
                "chunk": 6,
                "num_demos": count,
                "num_frames": frames,
                "views": json.dumps(list(FRONT)),
                "patch_labels": json.dumps(list(CLASSES)),
            }
        )
    part.replace(path)
    return count, frames


def _executor(begin: Callable[[], Look]) -> Executor:
    """What a policy makes of each frame."""
    look = begin()

    def execute(frame: dict[str, np.ndarray], _: np.ndarray) -> np.ndarray:
        images = {name: frame[f"obs/{name}_rgb"] for name in FRONT}
        return np.cumsum(look(Observation(images, INSTRUCTION, frame["states8"])), axis=0)

    return execute


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demos/drive"))
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--per-shard", type=int, default=20)
    parser.add_argument("--first", type=int, default=100_000, help="seed of the first town")
    parser.add_argument(
        "--scenarios",
        nargs="*",
        default=[],
        choices=["", *sorted(SCENARIOS)],
        help="one a town, in turn; else the seed draws it",
    )
    add_arguments(parser)
    parser.add_argument("--worker", default="0/1", help="i/n: this is worker i of n")
    args = parser.parse_args(argv)
    index, of = (int(part) for part in args.worker.split("/"))
    args.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    try:
        make = partial(record, scenarios=args.scenarios)
        if args.policy:
            policies = [partial(_executor, begin) for begin in learners(args)]
            make = partial(dagger, policies=policies, scenarios=args.scenarios)
    except VlaPruneError as error:
        parser.error(str(error))
    start, seen = time.time(), 0
    for shard in range(-(-args.scenes // args.per_shard)):
        path = args.out / f"shard_{shard:04d}.hdf5"
        if shard % of != index or path.exists():
            continue
        count, frames = write_shard(
            path, args.per_shard, args.first + shard * args.per_shard, make
        )
        seen += frames
        rate = seen / (time.time() - start)
        print(f"{path.name}: {count} drives, {frames} frames; {rate:.1f} frames/s", flush=True)


if __name__ == "__main__":
    main()
