"""Thirty steps of LIBERO, written down bit by bit.

In a new process: ``python rolling.py OUT.npz``.
"""

from __future__ import annotations

import sys

import numpy as np
from vla_prune_sim.libero.env import LiberoEnv
from vla_prune_sim.libero.expert import GOALS, Expert

# A stove, a cabinet with an open drawer and a leaning bowl: all that could carry over.
SUITE, TASK, STATE, SEED = "libero_spatial", 4, 31, 11
OPTIONS = {"image_size": 64, "lazy_images": True}


def roll(env: LiberoEnv, seed: int = SEED) -> dict[str, np.ndarray]:
    """What one seed gives: every state, some pictures, and how it ended."""
    obs, _ = env.reset(seed=seed, options={"init": STATE})
    expert = Expert(env.scene(), env.goal[0][1], GOALS[env.suite])
    states, inner, pictures, ends = [obs["state"]], [], list(obs["images"].values()), []
    for _ in range(30):
        obs, reward, success, cut, _ = env.step(expert.act())
        states.append(obs["state"])
        inner.append(np.concatenate([env.scene().data.qpos, env.scene().data.qvel]))
        ends.append([reward, success, cut])
    pictures += env.observe()["images"].values()
    return {
        "states": np.stack(states),
        "inner": np.stack(inner),
        "pictures": np.stack(pictures),
        "ends": np.array(ends),
    }


if __name__ == "__main__":
    np.savez(sys.argv[1], **roll(LiberoEnv(SUITE, TASK, **OPTIONS)))
