"""Opens whatever a user points at: a nuScenes root, real or synthetic, or ScenarioNet pickles.

>>> world = open_world("runs/world")  # doctest: +SKIP
>>> world.names[0], world.load(world.names[0]).steps  # doctest: +SKIP
('town-0007-cut_in', 201)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from vla_prune_sim.drive.nuscenes_format import VERSION
from vla_prune_sim.drive.scene import Scene

from vla_prune.errors import MissingError, did_you_mean

KEPT = 8  # scenes kept in memory


@dataclass(frozen=True)
class World:
    """Scenes on disk, read one at a time.

    Attributes:
        label: what every result says, such as ``v1.0-synthetic`` or ``scenarionet``.
        names: of the scenes.
        load: gives the scene of a name; the same object while it is among the last few.
    """

    label: str
    names: tuple[str, ...]
    load: Callable[[str], Scene]


def open_world(path: str | Path) -> World:
    """The scenes in a folder.

    Args:
        path: a nuScenes root, one of its version folders (where it has several, as in
            ``/data/nuscenes/v1.0-mini``), or a folder of ScenarioNet pickles.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_dir():
        raise MissingError(
            f"{path} is no folder; give a nuScenes root or a folder of ScenarioNet pickles, or "
            "make a world with 'vla-prune world make'."
        )
    if path.name.startswith("v1.0-") and (path.parent / "maps").is_dir():
        return _nuscenes(path.parent, path.name)
    if versions := sorted(p.name for p in path.glob("v1.0-*") if p.is_dir()):
        return _nuscenes(path, versions[0] if len(versions) == 1 else None)
    from vla_prune_sim.drive.load_scenarionet import load_scenarionet, scene_files

    if files := scene_files(path):

        def load(name: str) -> Scene:
            if name not in files:
                raise did_you_mean(str(path), "scene", name, files)
            return load_scenarionet(files[name])

        return World("scenarionet", tuple(files), lru_cache(KEPT)(load))
    raise MissingError(
        f"{path} has neither a folder such as {VERSION} nor ScenarioNet pickles (*.pkl); give a "
        "nuScenes root or a folder of pickles."
    )


def _nuscenes(root: Path, version: str | None) -> World:
    from vla_prune_sim.drive.load_nuscenes import find_version, load_root, load_scene

    version = find_version(root, version)
    names = tuple(load_root(root, version))
    return World(version, names, lru_cache(KEPT)(partial(load_scene, root, version=version)))
