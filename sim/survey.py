"""What a table is about to run on: the world's tasks, the policies' weights, and a mark of both.

The mark goes with every finished episode, so that a run which resumes counts only episodes of the
same world, settings and weights as done.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_prune import config as configs
from vla_prune.errors import ConfigError

if TYPE_CHECKING:
    from vla_prune_sim.rollout import Episode, RunConfig

HASHED_BYTES = 64 << 20  # of larger weights the size alone is looked at


@dataclass(frozen=True)
class Survey:
    """What a world class with a method ``survey(**options)`` tells before any task is opened.

    Attributes:
        tasks: how many it has, from 0 on.
        options: with which every worker gets the same ones.
        place: where they are, for messages.
        assets: a hash of them.
        starts: how many states of a task begin differently; 0 for all of them.
        code: a hash of the sources that say what happens in it and what that is worth.
    """

    tasks: int
    options: Mapping[str, Any]
    place: str
    assets: str
    starts: int = 0
    code: str = ""


def survey(world: str, options: Mapping[str, Any]) -> Survey | None:
    """What a world tells; None where it tells nothing.

    Args:
        world: ``module:Class``.
        options: its arguments.
    """
    from vla_prune.build import import_object  # loads torch, which a simulator does not need

    found = getattr(import_object(world), "survey", None)
    return None if found is None else found(**options)


def sources(*folders: Path) -> str:
    """A hash of the modules in some folders."""
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def tasks_there(suite: str, wanted: list[int], found: Survey) -> tuple[list[int], list[int]]:
    """Which tasks of a suite are there, and which are not.

    Raises:
        ConfigError: none is.
    """
    there = [task for task in wanted if 0 <= task < found.tasks]
    if not there:
        raise ConfigError(
            f"run: suites.{suite}.tasks: {found.place} has {found.tasks} scenes and none of "
            f"{spoken(wanted)}; choose from 0 to {found.tasks - 1}."
        )
    return there, [task for task in wanted if task not in there]


def spoken(tasks: list[int]) -> str:
    """Numbers in a sentence: all of them, or the first and the last of many."""
    if len(tasks) <= 4:
        return ", ".join(map(str, tasks))
    return f"{tasks[0]}, {tasks[1]} ... {tasks[-1]}"


def marks(config: RunConfig, found: Survey | None, episodes: Sequence[Episode]) -> dict[str, str]:
    """Key of an episode -> hash of all that it hangs on beside its key.

    Raises:
        MissingError: weights, a recipe or a profile are not there.
    """
    shared = {
        "world": config.world,
        "code": found and found.code,
        "sim": dict(config.sim),
        "assets": found and found.assets,
        "seed": config.seed,
        "execute": config.execute,
        "cut_layer": config.cut_layer,
    }
    policies = {suite: _policy(entry.policy) for suite, entry in config.suites.items()}
    made: dict[tuple, str] = {}
    told = {}
    for episode in episodes:
        same = (episode.suite, episode.row.name, episode.row.budget, episode.setting)
        if same not in made:
            made[same] = _hash(
                {
                    **shared,
                    "policy": policies[episode.suite],
                    "recipe": _recipe(episode.row.recipe) if episode.row.recipe else None,
                    "keep_ratio": episode.row.keep_ratio,
                    "realtime": config.realtime and config.realtime.mark(episode),
                }
            )
        told[episode.key] = made[same]
    return told


def _recipe(name: str) -> list[Any]:
    """A recipe's contents, and sums of the reconstructors' weights that it may load."""
    data = configs.load(name, kind="recipe")
    if "foreground" not in json.dumps(data):
        return [data]
    from vla_prune.recon.checkpoint import shipped  # loads torch

    own = [folder for name in _named(data, "weights") if (folder := Path(str(name))).is_dir()]
    return [data, *map(_weights, own or shipped())]


def _named(data: Any, key: str) -> list[Any]:
    """All values of a key, however deep."""
    if isinstance(data, Mapping):
        own = [data[key]] if key in data else []
        return own + [found for value in data.values() for found in _named(value, key)]
    return [f for item in data for f in _named(item, key)] if isinstance(data, list) else []


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _policy(name: str) -> dict[str, Any]:
    """A policy's config, and sums of its weights.

    Raises:
        MissingError: the weights are not there.
    """
    data = configs.load(name, kind="policy")
    weights = str(data.get("weights", "random"))
    if weights == "random":
        return data
    return {**data, "weights": _weights(configs.resolve_weights(weights))}


def _weights(folder: Path) -> list[Any]:
    """Sizes and sums of a folder's weights."""
    files = sorted(folder.glob("*.safetensors"))
    sizes = {file.name: file.stat().st_size for file in files}
    return [sizes, [zlib.crc32(f.read_bytes()) for f in files if sizes[f.name] <= HASHED_BYTES]]
