"""Opens whatever a user points at: a nuScenes root, real or synthetic, or ScenarioNet pickles.

>>> world = open_world("runs/world")  # doctest: +SKIP
>>> world.names[0], world.load(world.names[0]).steps  # doctest: +SKIP
('town-0007-cut_in', 201)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from vla_prune_sim.drive.nuscenes_format import MARKER, TABLES, VERSION
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
    root, version, pickles = find_root(path)
    if not pickles:
        return _nuscenes(root, version)
    from vla_prune_sim.drive.load_scenarionet import load_scenarionet

    def load(name: str) -> Scene:
        if name not in pickles:
            raise did_you_mean(str(root), "scene", name, pickles)
        return load_scenarionet(pickles[name])

    return World("scenarionet", tuple(pickles), lru_cache(KEPT)(load))


def count_scenes(path: str | Path) -> tuple[int, str]:
    """How many scenes `open_world` would find, and what tells these from others.

    Quick: of a root only the table of scenes is read, and the others' sizes; a synthetic one says
    itself what made it.

    Args:
        path: as for `open_world`.

    Returns:
        ``(count, "v1.0-synthetic-1a2b3c4d")``: the label with a hash behind it.
    """
    root, version, pickles = find_root(path)
    if pickles:
        sizes = [f"{name} {file.stat().st_size}" for name, file in pickles.items()]
        return len(pickles), f"scenarionet-{_short_hash(sizes)}"
    from vla_prune_sim.drive.load_nuscenes import find_version, read_table

    version = find_version(root, version)
    files = [root / version / f"{name}.json" for name in TABLES]
    for file in files:
        if not file.is_file():
            raise MissingError(f"{file} is missing; a root of {version} is not whole without it.")
    scenes = read_table(root / version / "scene.json")
    told = [
        *(str(file.stat().st_size) for file in files),
        *(str(row.get("name")) for row in scenes),
    ]
    if (root / MARKER).is_file():
        told.append((root / MARKER).read_text(encoding="utf-8"))
    return len(scenes), f"{version}-{_short_hash(told)}"


def _short_hash(told: list[str]) -> str:
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


def find_root(path: str | Path) -> tuple[Path, str | None, dict[str, Path]]:
    """A root, its version where it is known, and no pickles; or a folder of these."""
    path = Path(path).expanduser().resolve()
    if not path.is_dir():
        raise MissingError(
            f"{path} is no folder; give a nuScenes root or a folder of ScenarioNet pickles, or "
            "make a world with 'vla-prune world make'."
        )
    if path.name.startswith("v1.0-") and (path.parent / "maps").is_dir():
        return path.parent, path.name, {}
    if path.name.startswith("v1.0-") and (path / "scene.json").is_file():
        raise MissingError(f"{path.parent / 'maps'} is missing; unpack the maps beside {path}.")
    if versions := sorted(p.name for p in path.glob("v1.0-*") if p.is_dir()):
        return path, versions[0] if len(versions) == 1 else None, {}
    from vla_prune_sim.drive.load_scenarionet import scene_files

    if files := scene_files(path):
        return path, None, files
    raise MissingError(
        f"{path} has neither a folder such as {VERSION} nor ScenarioNet pickles (*.pkl); give a "
        "nuScenes root or a folder of pickles."
    )


def _nuscenes(root: Path, version: str | None) -> World:
    from vla_prune_sim.drive.load_nuscenes import find_version, load_root, load_scene

    version = find_version(root, version)
    names = tuple(load_root(root, version))
    return World(version, names, lru_cache(KEPT)(partial(load_scene, root, version=version)))
