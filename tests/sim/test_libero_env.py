"""The environment's contract: Gymnasium's rules, pictures, errors, and the same seed the same."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from vla_prune_sim.libero.env import CAPS, LiberoEnv, instructions, task_names
from vla_prune_sim.libero.labels import TARGET, patches, pixel
from vla_prune_sim.libero.vector import vector_env

from vla_prune.errors import ConfigError

from . import rolling

pytestmark = pytest.mark.libero

ID = "vla_prune_sim:VlaPrune/Libero-v0"
SMALL = {"image_size": 96, "look": "fast"}


@pytest.mark.parametrize(
    ("suite", "task", "images"), [("libero_spatial", 4, False), ("libero_object", 3, True)]
)
def test_gymnasiums_own_checks_find_nothing(suite, task, images):
    env = gymnasium.make(ID, suite=suite, task=task, images=images, **SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_close_check=not images)  # once is enough
    env.close()
    assert [str(w.message) for w in caught if "WARN" in str(w.message)] == []


def test_render_follows_the_render_mode():
    env = gymnasium.make(ID, suite="libero_object", task=3, render_mode="rgb_array", **SMALL)
    env.reset(seed=0, options={"init": 30})
    picture = env.render()
    upright = env.unwrapped.raw_image("agentview", 96)[::-1]
    env.unwrapped.render_mode = None
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.unwrapped.render() is None
    env.close()
    np.testing.assert_array_equal(picture, upright)
    with pytest.raises(ConfigError, match=r"render_mode 'human' is unknown.*Known: rgb_array"):
        LiberoEnv(render_mode="human")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"suite": "libero_spacial"}, "did you mean 'libero_spatial'"),
        ({"task": 10}, "libero_spatial has no task 10; choose 0 to 9"),
        ({"look": "quick"}, "look 'quick' is unknown.*Known: fast, stock"),
        ({"image_convention": "mirrored"}, "Known: released, upright"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what_is_possible(wrong, message):
    with pytest.raises(ConfigError, match=message):
        LiberoEnv(**wrong)


def test_a_state_that_is_not_shipped_is_an_error(open_env):
    env = open_env("libero_object", 0, images=False)
    with pytest.raises(ConfigError, match=r"init 50 is not a shipped state .*choose 0 to 49"):
        env.reset(options={"init": 50})


def test_every_suite_names_its_tasks_without_building_them():
    assert [len(task_names(suite)) for suite in CAPS] == [10, 10, 10, 10, 90]
    assert instructions("libero_object")[3] == "pick up the bbq sauce and place it in the basket"


def test_an_episode_is_cut_at_the_cap_and_not_terminated(open_env):
    env = open_env("libero_object", 0, images=False, max_steps=3)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_lazy_pictures_change_only_when_asked_for(open_env):
    env = open_env(rolling.SUITE, rolling.TASK, **rolling.OPTIONS)
    first, info = env.reset(seed=0, options={"init": 30})
    assert info["images_fresh"]
    for _ in range(4):
        stale, _, _, _, info = env.step(np.array([1.0, 0, 0, 0, 0, 0, 1]))
    assert not info["images_fresh"]
    fresh = env.observe()
    for view, picture in first["images"].items():
        np.testing.assert_array_equal(stale["images"][view], picture)
        assert (fresh["images"][view] != picture).any()
    np.testing.assert_array_equal(stale["state"], fresh["state"])


def test_a_reset_equals_a_fresh_environment_and_a_new_process(tmp_path):
    out = tmp_path / "there.npz"
    env = LiberoEnv(rolling.SUITE, rolling.TASK, **rolling.OPTIONS)
    wanted = rolling.roll(env)
    rolling.roll(env, seed=rolling.SEED + 1)  # another episode in between
    again = rolling.roll(env)
    other = LiberoEnv(rolling.SUITE, rolling.TASK, **rolling.OPTIONS)
    fresh = rolling.roll(other)  # while the first one lives
    other.close()
    after = env.observe()
    env.close()
    subprocess.run([sys.executable, rolling.__file__, str(out)], check=True, env=dict(os.environ))
    there = dict(np.load(out))
    for name, value in wanted.items():
        for found in (again, fresh, there):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    # The younger environment's end does not spoil the older one's pictures.
    np.testing.assert_array_equal(list(after["images"].values()), wanted["pictures"][-2:])


def test_the_seed_fixes_where_fixtures_stand(open_env):
    env = open_env(rolling.SUITE, rolling.TASK, **rolling.OPTIONS)

    def fixtures(seed: int | None) -> np.ndarray:
        env.reset(seed=seed, options={"init": 0})
        return np.stack([env.scene().position(n) for n in ("wooden_cabinet_1", "flat_stove_1")])

    first = fixtures(3)
    second = fixtures(None)
    assert (np.abs(first - fixtures(4))[:, :2].max(1) > 1e-4).all()
    np.testing.assert_array_equal(fixtures(3), first)
    np.testing.assert_array_equal(fixtures(None), second)  # drawn from the same generator
    assert (first != second).any()


def test_a_reset_leaves_numpys_generator_as_it_was(open_env):
    env = open_env("libero_object", 0, images=False)
    np.random.seed(0)
    env.reset(seed=5)
    drawn = np.random.random(3)
    np.random.seed(0)
    np.testing.assert_array_equal(drawn, np.random.random(3))


def test_released_is_what_released_pipelines_see_the_mirror_image_of_upright(open_env):
    env = open_env(rolling.SUITE, rolling.TASK, **rolling.OPTIONS)
    env.reset(seed=0, options={"init": 30})
    stock = _stock_picture(env)
    released = env.observe()["images"]["agentview"]
    env.image_convention = "upright"
    upright = env.observe()["images"]["agentview"]
    env.image_convention = "released"
    np.testing.assert_array_equal(released, stock[::-1, ::-1])
    np.testing.assert_array_equal(released, upright[:, ::-1])


def _stock_picture(env: LiberoEnv) -> np.ndarray:
    """What LIBERO's own renderer draws of the same instant, in its own row order."""
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    sim = env._inner.sim
    context = MjRenderContextOffscreen(sim, device_id=-1)
    context.vopt.geomgroup[:2] = 0, 1
    context.gl_ctx.make_current()
    picture = sim.render(width=env.image_size, height=env.image_size, camera_name="agentview")
    context.con.free()
    sim._render_context_offscreen = None
    return picture


@pytest.mark.parametrize("view", ["agentview", "robot0_eye_in_hand"])
def test_labels_point_at_what_the_upright_picture_shows(view, open_env):
    env = open_env("libero_object", 3, **SMALL)
    env.reset(seed=0, options={"init": 30})
    scene = env.scene()
    name = "basket_1" if view == "agentview" else _under_the_hand(env)
    where, inside = pixel(scene, scene.corners(name).mean(0), view)
    labels = patches(scene, name, "plate_1", view)
    key = {"agentview": "agentview", "robot0_eye_in_hand": "wrist"}[view]
    before = env.observe()["images"][key][:, ::-1].astype(int)
    adr = scene.model.joint(f"{name}_joint0").qposadr[0]
    scene.data.qpos[adr] += 5.0
    mujoco.mj_forward(scene.model, scene.data)
    changed = np.abs(env.observe()["images"][key][:, ::-1] - before).max(-1) > 20
    assert inside
    assert changed.sum() > 20
    # What vanished with the object is where its point and its patches say.
    rows, columns = np.nonzero(changed)
    np.testing.assert_allclose([columns.mean() / 96, rows.mean() / 96], where, atol=0.06)
    filled = changed.reshape(12, 8, 12, 8).mean((1, 3))
    assert (filled[labels == TARGET] > 0).mean() > 0.9
    assert (labels == TARGET)[filled > 0.7].mean() > 0.6


def _under_the_hand(env: LiberoEnv) -> str:
    scene = env.scene()
    away = {n: np.linalg.norm((scene.position(n) - scene.hand)[:2]) for n in scene.objects}
    return min(away, key=away.get)


def test_vector_environments_equal_single_ones(open_env):
    tasks, seeds = [0, 3], [7, 8]
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 2, 7)).astype(np.float32)
    envs = vector_env("libero_object", tasks, **SMALL)
    try:
        seen = [envs.reset(seed=seeds, options={"init": 30})[0]]
        seen += [envs.step(action)[0] for action in actions]
    finally:
        envs.close()
    for place, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
        env = open_env("libero_object", task, **SMALL)
        alone = [env.reset(seed=seed, options={"init": 30})[0]]
        alone += [env.step(action[place])[0] for action in actions]
        for one, many in zip(alone, seen, strict=True):
            np.testing.assert_array_equal(many["state"][place], one["state"])
            assert many["instruction"][place] == one["instruction"]
            for view, picture in one["images"].items():
                np.testing.assert_array_equal(many["images"][view][place], picture)


def test_importing_the_package_loads_no_simulator():
    code = "import sys, vla_prune_sim; print({'mujoco', 'libero', 'robosuite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
