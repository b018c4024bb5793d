"""Random layouts: seeded, really different, and asking for what they say."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from vla_prune_sim.libero.layouts import BOWLS, PLACES, RandomLayout

from vla_prune.errors import UnsupportedError

pytestmark = pytest.mark.libero

SPATIAL, OBJECT = ("libero_spatial", 2), ("libero_object", 0)


@pytest.fixture
def arrange(open_env):
    """``arrange(SPATIAL, seed)``: environment and layout after a reset."""

    def make(task, seed, **options):
        env, layout = open_env(*task, images=False), RandomLayout(seed, **options)
        obs, _ = env.reset(seed=seed, options={"init": 30, "layout": layout})
        return env, layout, obs

    return make


@pytest.mark.parametrize("task", [SPATIAL, OBJECT])
def test_the_seed_fixes_the_layout(task, arrange):
    found = []
    for seed in (1, 1, 2):
        env, layout, obs = arrange(task, seed)
        found.append((env.scene().data.qpos.copy(), layout.describe(), obs["instruction"]))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    moved = np.abs(found[0][0] - found[2][0])
    assert moved.max() > 0.03
    assert found[0][1] != found[2][1]


def test_the_other_bowl_stands_in_another_of_the_ten_places(arrange):
    others = set()
    for seed in range(6):
        env, layout, obs = arrange(SPATIAL, seed)
        assert layout.places[BOWLS[0]] == PLACES[SPATIAL[1]]
        others.add(layout.places[BOWLS[1]])
        bowls = [env.scene().position(name) for name in BOWLS]
        assert np.linalg.norm(bowls[0] - bowls[1]) > 0.1
        assert obs["instruction"] == env.instruction
        assert env.goal == [["on", BOWLS[0], "plate_1"]]
    assert PLACES[SPATIAL[1]] not in others
    assert len(others) >= 3


def test_a_layout_that_fell_over_is_not_intact(arrange):
    env, layout, _ = next(
        made for seed in range(5) if (made := arrange(SPATIAL, seed))[1].intact(made[0])
    )
    data = env.scene().data
    data.qpos[env.scene().model.joint(f"{BOWLS[0]}_joint0").qposadr[0]] += 0.1
    mujoco.mj_forward(env.scene().model, data)
    assert not layout.intact(env)


def test_any_object_may_be_asked_for_and_only_it_succeeds(arrange):
    for seed in range(3):
        env, layout, obs = arrange(OBJECT, seed, any_target=1.0)
        target = layout.goal[0][1]
        assert obs["instruction"] == (
            f"pick up the {target[:-2].replace('_', ' ')} and place it in the basket"
        )
        assert env.goal == [["in", target, "basket_1_contain_region"]]
    names = set(env.scene().objects) - {"basket_1"}
    wrong = min(names - {target})
    start = env.scene().data.qpos.copy()
    assert not _success_with(env, wrong)
    env.scene().data.qpos[:] = start
    assert _success_with(env, target)
    env.reset(seed=0, options={"init": 30})
    assert env.goal[0][1] == "alphabet_soup_1"  # the task's own again
    asked = set()
    for seed in range(40):
        layout = RandomLayout(seed, any_target=1.0)
        layout.apply(env)
        asked.add(layout.goal[0][1])
    assert asked == names


def _success_with(env, name: str) -> bool:
    """Drop an object into the basket and look."""
    scene = env.scene()
    adr = scene.model.joint(f"{name}_joint0").qposadr[0]
    site = scene.data.site_xpos[scene.model.site("basket_1_contain_region").id]
    scene.data.qpos[adr : adr + 3] = site + np.array([0, 0, 0.03])
    scene.data.qvel[:] = 0
    mujoco.mj_forward(scene.model, scene.data)
    return any(env.step(np.array([0.0] * 6 + [-1.0]))[2] for _ in range(20))


def test_other_suites_are_refused():
    layout = RandomLayout(0)
    env = type("Env", (), {"suite": "libero_goal", "instruction": "", "scene": lambda _: None})()
    with pytest.raises(UnsupportedError, match="cannot arrange libero_goal; it knows"):
        layout.apply(env)
