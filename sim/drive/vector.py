"""Several drives at once, each in a process of its own. Knows no policy.

Processes are spawned, so a script that calls this needs the usual ``if __name__ == "__main__"``.

    >>> envs = vector_env("runs/world", 3, image_size=(256, 144))  # doctest: +SKIP
    >>> obs, info = envs.reset(seed=[0, 1, 2])  # doctest: +SKIP
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from gymnasium.vector import AsyncVectorEnv
from vla_prune_sim.drive.env import DriveEnv


def vector_env(root: str | Path, count: int, **options: Any) -> AsyncVectorEnv:
    """Environments over one root; each draws its scenes from its own seed.

    Args:
        root: a nuScenes root, real or synthetic, or a folder of ScenarioNet pickles.
        count: how many.
        options: further arguments of `DriveEnv`, the same for all.
    """
    makers = [partial(DriveEnv, root, **options) for _ in range(count)]
    # Through shared memory, Gymnasium 1.4 would hand out the text of before the first reset.
    return AsyncVectorEnv(makers, context="spawn", shared_memory=False)
