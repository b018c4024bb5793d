"""Single looks into synthetic towns with everything known about each patch: food for a tower.

Nobody drives: the ego stands at a random instant of a scene somewhere near its nominal way, so
that a scene gives many looks that differ, and what is near is often near. Each patch of each view
knows its class, how far off the thing is that it shows, and how the route bends away from the
ground there. Beside demonstrations, whose frames follow one another and mostly show an empty
road, this is a cheap way to teach an image tower what a driver must see. ::

    python -m vla_prune_sim.train.sights --out runs/sights/drive --scenes 600 --worker 0/2
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file
from vla_prune_sim.drive.env import FRONT, squeeze
from vla_prune_sim.drive.geometry import Polyline, corners, overlap, to_local, to_world
from vla_prune_sim.drive.render import Renderer, sight_lines
from vla_prune_sim.drive.scene import (
    EGO_LENGTH,
    EGO_WIDTH,
    PRIMED,
    Camera,
    Scene,
    ego_centre,
)
from vla_prune_sim.drive.town import make_scene
from vla_prune_sim.train.drive_demos import PATCHES, SIZE, VIEW, kinds_of, patches

AGENTS = (2, 3, 4)  # classes of `drive_demos.CLASSES` that have a place
GROUND_M = 35.0  # ground farther away says nothing
SAMPLES = 6  # a patch is looked at in that many rows and columns
LATE = 40  # steps by which the ego may be ahead of its log, or behind


class Sights:
    """Looks into one scene.

    Args:
        scene: a synthetic one.
        rng: draws instants and places.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.renderer = Renderer(scene, VIEW, FRONT)
        self.route = Polyline(scene.route)
        self.kinds = kinds_of(scene)
        self.ground = np.stack([_ground(scene.cameras[name].scaled(*VIEW)) for name in FRONT])

    def look(self) -> dict[str, np.ndarray] | None:
        """One look, or None where somebody stands in the ego's place.

        ``images`` ``[V, S, S, 3]`` uint8; ``classes`` ``[V, 12, 12]`` uint8; ``places``
        ``[V, 12, 12, 2]`` float32, metres ahead to the near end of what stands there and left to
        its middle; ``lanes`` ``[V, 12, 12]`` float32, metres by which the ground there is farther
        left of the route than it is of the ego. NaN where a patch has none.
        """
        scene, rng = self.scene, self.rng
        step = int(rng.integers(PRIMED, scene.steps))
        at = int(np.clip(step + rng.integers(-LATE, LATE + 1), 0, scene.steps - 1))
        ego = scene.ego[at].copy()
        ego[:2] = to_world(np.array([0.0, rng.normal(0.0, 0.6)]), ego)
        ego[2] += rng.normal(0.0, 0.06)
        pose, present = scene.tracks.pose[:, step], scene.tracks.valid[:, step]
        boxes = corners(pose, *scene.tracks.size[:, :2].T)
        if (present & overlap(corners(ego_centre(ego), EGO_LENGTH, EGO_WIDTH), boxes)).any():
            return None
        views, masks = self.renderer.render(ego, pose, present, masks=True)
        classes = np.stack([patches(masks[name], self.kinds) for name in FRONT])
        ends = to_local(boxes.reshape(-1, 2), ego).reshape(boxes.shape)
        places = np.stack([ends[..., 0].min(-1), ends[..., 1].mean(-1)], -1).astype(np.float32)
        along, _ = self.route.project(ego[:2])
        lanes = self.route.project(to_world(self.ground, ego), near=float(along))[1]
        lanes = lanes - self.ground[..., 1]
        return {
            "images": np.stack([squeeze(views[name], SIZE) for name in FRONT]),
            "classes": classes,
            "places": np.stack(
                [
                    _places(masks[name], shown, self.kinds, places)
                    for name, shown in zip(FRONT, classes, strict=True)
                ]
            ),
            "lanes": np.where(np.isin(classes, AGENTS), np.nan, lanes).astype(np.float32),
        }


def _middles(count: int, side: int) -> np.ndarray:
    """Pixels in the middle of so many equal parts of a side, ``[count]``."""
    return ((np.arange(count) + 0.5) * side / count).astype(int)


def _ground(camera: Camera) -> np.ndarray:
    """Where the middle of each patch meets the ground, ``[12, 12, 2]``; NaN where it is far."""
    sight = sight_lines(camera)
    sight = sight[np.ix_(_middles(PATCHES, camera.height), _middles(PATCHES, camera.width))]
    depth = camera.translation[2] / np.maximum(-sight[..., 2], 1e-3)
    points = camera.translation[:2] + depth[..., None] * sight[..., :2]
    return np.where(np.hypot(*points.T).T[..., None] < GROUND_M, points, np.nan)


def _places(
    ids: np.ndarray, classes: np.ndarray, kinds: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Of the nearest thing of a patch's class that it shows, ``[12, 12, 2]``."""
    seen = ids[np.ix_(*(_middles(PATCHES * SAMPLES, side) for side in ids.shape))]
    seen = seen.reshape(PATCHES, SAMPLES, PATCHES, SAMPLES).transpose(0, 2, 1, 3)
    seen = seen.reshape(PATCHES, PATCHES, -1)
    agent = np.maximum(seen - 1, 0)
    fits = (seen > 0) & (kinds[agent] == classes[..., None])
    away = np.where(fits, places[agent, 0], np.inf)
    best = np.take_along_axis(agent, away.argmin(-1)[..., None], -1)[..., 0]
    return np.where(fits.any(-1)[..., None], places[best], np.nan).astype(np.float32)


def write_shard(path: Path, seed: int, scenes: int, each: int) -> int:
    """Looks into ``scenes`` towns, about ``each`` of them, as safetensors; returns how many."""
    rows: list[dict[str, np.ndarray]] = []
    for number in range(scenes):
        sights = Sights(make_scene(seed + number), np.random.default_rng([seed + number, 3]))
        looks = (sights.look() for _ in range(each))
        rows += [row for row in looks if row is not None]
    part = path.with_suffix(".part")
    save_file({key: np.stack([row[key] for row in rows]) for key in rows[0]}, part)
    part.replace(path)
    return len(rows)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/sights/drive"))
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--looks", type=int, default=30, help="into each scene")
    parser.add_argument("--per-shard", type=int, default=20)
    parser.add_argument("--first", type=int, default=400_000, help="seed of the first town")
    parser.add_argument("--worker", default="0/1", help="i/n: this is worker i of n")
    args = parser.parse_args(argv)
    index, of = (int(part) for part in args.worker.split("/"))
    args.out.mkdir(parents=True, exist_ok=True)
    cv2.setNumThreads(1)
    start, seen = time.time(), 0
    for shard in range(-(-args.scenes // args.per_shard)):
        path = args.out / f"shard_{shard:04d}.safetensors"
        if shard % of != index or path.exists():
            continue
        seed = args.first + shard * args.per_shard
        seen += write_shard(path, seed, args.per_shard, args.looks)
        print(f"{path.name}: {seen / (time.time() - start):.1f} looks/s", flush=True)


if __name__ == "__main__":
    main()
