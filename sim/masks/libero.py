"""Masks of LIBERO pictures: one ray through each pixel against what is drawn.

Foreground: the target, the goal and the robot; furniture, table and wall are background. What
other movable objects are can be chosen: a scorer that knows no words cannot tell them from the
target.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from vla_prune_sim.libero.env import VIEWS, LiberoEnv
from vla_prune_sim.libero.expert import GOALS, Expert
from vla_prune_sim.libero.labels import DRAWN, shown_geoms
from vla_prune_sim.libero.layouts import RandomLayout
from vla_prune_sim.libero.scene import Scene
from vla_prune_sim.masks.index import Entry

from vla_prune.errors import did_you_mean

OTHERS = {"background": 0, "foreground": 1, "ignore": 2}
EVERY = 8  # control steps between pictures
STEPS = 64


def segments(scene: Scene, camera: str, size: int) -> np.ndarray:
    """Owner of what each pixel of an upright picture shows: ``[size, size]``, or empty."""
    hit = shown_geoms(scene, camera, size, DRAWN)
    return np.append(scene.geom_owner, "")[hit]


def mask_of(owners: np.ndarray, scene: Scene, target: str, goal: str, others: int) -> np.ndarray:
    """``[H, W]`` uint8 from :func:`segments`."""
    mask = np.zeros(owners.shape, np.uint8)
    mask[np.isin(owners, scene.objects)] = others
    mask[np.isin(owners, [target, goal, "robot"])] = 1
    return mask


def libero_entries(
    suite: str, episodes: int, seed: int = 0, size: int = 144, others: str = "foreground"
) -> Iterator[Entry]:
    """Pictures of the expert's way in random layouts, tasks in turn.

    Args:
        suite: ``libero_spatial`` or ``libero_object``.
        episodes: how many.
        seed: of the first layout.
        size: pixels a side.
        others: what other movable objects are: ``foreground``, ``background`` or ``ignore``.
    """
    if others not in OTHERS:
        raise did_you_mean("masks make", "others", others, OTHERS)
    for number in range(episodes):
        yield from _episode(suite, number % 10, seed + number, size, OTHERS[others])


def _episode(suite: str, task: int, seed: int, size: int, others: int) -> Iterator[Entry]:
    env = LiberoEnv(suite, task, look="fast", images=False, quick_physics=True)
    try:
        layout = RandomLayout(seed)
        env.reset(seed=seed, options={"init": seed % 30, "layout": layout})
        if not layout.intact(env):
            return
        scene, target, goal = env.scene(), env.goal[0][1], GOALS[suite]
        expert = Expert(scene, target, goal)
        for step in range(STEPS):
            action = expert.act().astype(np.float32)
            if step % EVERY == 0:
                for view, camera in VIEWS.items():

                    def make(view: str = view, camera: str = camera):
                        # Both are turned to the released convention, the true view's mirror image.
                        picture = env.raw_image(view, size)[::-1, ::-1].copy()
                        owners = segments(scene, camera, size)[:, ::-1]
                        return picture, mask_of(owners, scene, target, goal, others)

                    group = f"{suite}-{task}-{seed}"
                    key, frame = f"{group}__{view}__{step:03d}", f"{group}__{step:03d}"
                    yield Entry(key, view, group, frame, make)
            if env.step(action)[2]:
                return
    finally:
        env.close()
