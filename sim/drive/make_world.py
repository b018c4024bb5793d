"""A synthetic nuScenes root from seeds: towns, an expert's drive through each, pictures, tables.

>>> make_root(Path("runs/world"), scenes=4, seed=7)  # doctest: +SKIP
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from vla_prune_sim.drive.drivers import RuleExpert
from vla_prune_sim.drive.geometry import wrap
from vla_prune_sim.drive.nuscenes_format import MARKER
from vla_prune_sim.drive.render import Renderer
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.simulation import Simulation, drive
from vla_prune_sim.drive.town import make_scene
from vla_prune_sim.drive.write_nuscenes import write_root
from vla_prune_sim.survey import sources

from vla_prune.errors import ConfigError

HERE = Path(__file__).parent
SEEDS = 10_000  # towns of one world; worlds of different seeds share none
IMAGE_SIZE = (400, 225)


def logged_scenes(count: int, seed: int) -> Iterator[Scene]:
    """Scenes whose log is the rule-based expert's drive, and what the others did meanwhile.

    Towns in which the expert does not get through are left out.

    Args:
        count: how many.
        seed: of the world.
    """
    number = seed * SEEDS
    while count:
        scene = make_scene(number)
        number += 1
        simulation = drive(scene, RuleExpert())
        if simulation.ended == "time":
            count -= 1
            yield with_log(scene, simulation)


def with_log(scene: Scene, simulation: Simulation) -> Scene:
    """The scene as it was driven: the ego's log and all tracks are replaced."""
    bodies, others = simulation.record.bodies, simulation.record.others
    tracks = replace(
        scene.tracks,
        pose=np.stack([other.pose for other in others], axis=1),
        speed=np.stack([other.speed for other in others], axis=1),
        valid=np.stack([other.present for other in others], axis=1),
    )
    seen = tracks.valid.any(axis=1)
    rows = np.flatnonzero(seen)
    tracks = replace(
        tracks,
        tokens=tuple(tracks.tokens[i] for i in rows),
        categories=tuple(tracks.categories[i] for i in rows),
        **{name: getattr(tracks, name)[rows] for name in ("size", "pose", "z", "speed", "valid")},
    )
    return replace(
        scene,
        ego=np.stack([body.pose for body in bodies]),
        ego_speed=np.array([body.speed for body in bodies]),
        tracks=tracks,
    )


class Painter:
    """Draws the pictures of scenes for `write_root`: one scene after the other.

    Args:
        size: width and height of the pictures, pixels.
    """

    def __init__(self, size: tuple[int, int] = IMAGE_SIZE) -> None:
        self.size = size
        self._scene: Scene | None = None

    def __call__(self, scene: Scene, step: float) -> dict[str, np.ndarray]:
        """All six views of a step, which sweeps take between two."""
        if self._scene is not scene:
            self._scene, self._renderer = scene, Renderer(scene, self.size)
        tracks, last = scene.tracks, scene.steps - 1
        first = min(int(step), last)
        second, share = min(first + 1, last), step - first
        ego = between(scene.ego[first], scene.ego[second], share)
        others = between(tracks.pose[:, first], tracks.pose[:, second], share)
        there = tracks.valid[:, first if share < 0.5 else second]
        return self._renderer.render(ego, others, there)


def between(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """Poses ``[..., 3]`` on the way from ``a`` to ``b``; headings turn the short way."""
    if not share:
        return a
    way = b - a
    way[..., 2] = wrap(way[..., 2])
    return a + share * way


def make_root(
    out: Path,
    scenes: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    sweeps: bool = False,
) -> Path:
    """Write a root; the same arguments give the same files.

    It appears under its name when it is whole. Until then it grows beside it, in ``.part``; a
    making that was broken off goes on there and does not draw its pictures again.

    Args:
        out: folder to make; it must not exist or be empty.
        scenes: how many.
        seed: of the world.
        progress: called with the number of scenes begun.
        sweeps: draw the pictures between keyframes, too; the tables name them in any case.
    """
    if scenes < 1:
        raise ConfigError(f"world make: {scenes} scenes; ask for one or more.")
    with _locked(out):
        if out.exists() and any(out.iterdir()):
            raise ConfigError(
                f"world make: {out} is not empty; name a new folder, or remove it first."
            )
        return _make(out, scenes, seed, progress, sweeps)


def ensure_root(
    folder: Path, scenes: int, seed: int, progress: Callable[[int], None] | None = None
) -> Path:
    """The root of these scenes below ``folder``, made at the first call by whoever comes first.

    Its name holds a hash of the code that makes it: another code may make another world.
    """
    if scenes < 1:
        raise ConfigError(f"run: sim.scenes is {scenes}; a world has one scene or more.")
    out = folder / f"seed{seed}_scenes{scenes}_{sources(HERE)}"
    with _locked(out):
        return out if (out / MARKER).exists() else _make(out, scenes, seed, progress)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Wait until nobody else makes this root."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(
    out: Path,
    scenes: int,
    seed: int,
    progress: Callable[[int], None] | None,
    sweeps: bool = False,
) -> Path:
    def counted() -> Iterator[Scene]:
        for number, scene in enumerate(logged_scenes(scenes, seed), start=1):
            if progress:
                progress(number)
            yield scene

    cv2.setNumThreads(1)
    part, note = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    asked = {"scenes": scenes, "seed": seed, "code": sources(HERE)}
    order = json.dumps(asked | ({"sweeps": True} if sweeps else {}))
    if not (note.exists() and note.read_text() == order):
        shutil.rmtree(part, ignore_errors=True)
        note.write_text(order)
    write_root(counted(), part, Painter(), IMAGE_SIZE, sweep_pictures=sweeps, go_on=True)
    with (part / MARKER).open("a", encoding="utf-8") as marker:
        marker.write(f"Made by sim/drive {sources(HERE)}, seed {seed}, {scenes} scenes.\n")
    part.replace(out)
    note.unlink()
    return out
