"""One demonstration, written and read again."""

from __future__ import annotations

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from vla_prune_sim.libero.env import LiberoEnv  # noqa: E402
from vla_prune_sim.libero.expert import Expert  # noqa: E402
from vla_prune_sim.train import demos  # noqa: E402
from vla_prune_sim.train.frames import FrameSet  # noqa: E402

ROW = {
    "frame_index": ((), np.int32),
    "states8": ((8,), np.float32),
    "obs/agentview_rgb": ((144, 144, 3), np.uint8),
    "obs/eye_in_hand_rgb": ((144, 144, 3), np.uint8),
    "obs/ee_pos": ((3,), np.float32),
    "obs/ee_ori": ((3,), np.float32),
    "obs/gripper_states": ((2,), np.float32),
    "aux/holding": ((), np.bool_),
    "aux/patches": ((2, 12, 12), np.uint8),
    "aux/target_pos": ((3,), np.float32),
    "aux/target_uv": ((2, 2), np.float32),
    "aux/target_in_view": ((2,), np.bool_),
    "aux/goal_pos": ((3,), np.float32),
    "aux/goal_uv": ((2, 2), np.float32),
    "aux/goal_in_view": ((2,), np.bool_),
}
STEP = {"actions": ((7,), np.float32), "executed": ((7,), np.float32)}
ONE = ["--suite", "libero_object", "--episodes", "10", "--per-shard", "1", "--worker", "0/10"]


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The one file that worker 0 of 10 makes: a single episode."""
    out = tmp_path_factory.mktemp("demos")
    demos.main([*ONE, "--out", str(out)])
    return out / "libero_object" / "task_00_shard_0000.hdf5"


@pytest.fixture
def demo(shard):
    with h5py.File(shard) as file:
        yield file["data/demo_0"]


@pytest.mark.libero
def test_the_file_has_the_documented_keys_shapes_and_types(demo):
    keys = []
    demo.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
    assert sorted(keys) == sorted(ROW | STEP)
    for rows, table in ((len(demo["frame_index"]), ROW), (len(demo["actions"]), STEP)):
        for key, (shape, kind) in table.items():
            assert demo[key].shape == (rows, *shape), key
            assert demo[key].dtype == kind, key
    about = dict(demo.parent.attrs)
    assert (about["num_demos"], about["num_frames"]) == (1, len(demo["frame_index"]))
    assert (about["format"], about["chunk"], about["image_convention"]) == (1, 8, "released")
    assert {"suite", "task", "assets", "look", "image_size", "tries"} <= set(about)
    assert {"instruction", "init", "seed", "layout", "target", "goal", "steps", "success"} <= set(
        demo.attrs
    )


@pytest.mark.libero
def test_every_frame_has_a_whole_chunk_that_nothing_disturbed(demo):
    where, actions, done = demo["frame_index"][()], demo["actions"][()], demo["executed"][()]
    assert (np.diff(where) > 0).all()
    assert where[-1] + demos.CHUNK <= len(actions)
    for first in where:
        span = slice(first, first + demos.CHUNK)
        np.testing.assert_array_equal(actions[span], done[span])
    assert np.abs(actions).max() <= 1


@pytest.mark.libero
def test_labels_agree_with_each_other(demo):
    patches, points = demo["aux/patches"][()], demo["aux/target_uv"][()]
    assert set(np.unique(patches)) <= set(range(5))
    seen = demo["aux/target_in_view"][:, 0]
    assert seen.mean() > 0.9
    # The point is in, or next to, a patch of the target, unless the hand hides it.
    near = []
    for labels, (u, v) in zip(patches[seen, 0], points[seen, 0], strict=True):
        row, column = int(v * 12), int(u * 12)
        near.append(
            (labels[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] == 1).any()
        )
    assert np.mean(near) > 0.7
    np.testing.assert_array_equal(demo["states8"][:, :3], demo["obs/ee_pos"][()])
    assert not demo["aux/holding"][0]
    assert demo["aux/holding"][()].any()


@pytest.mark.libero
def test_a_finished_file_is_left_alone(shard, monkeypatch):
    assert list(shard.parent.iterdir()) == [shard]  # no .part
    before = shard.stat().st_mtime_ns
    monkeypatch.setattr(demos, "write_shard", None)
    demos.main([*ONE, "--out", str(shard.parents[1])])
    assert shard.stat().st_mtime_ns == before


@pytest.mark.libero
def test_the_trainer_reads_it(shard):
    frames = FrameSet(shard.parent)
    batch = frames.batch(np.arange(4))
    assert batch.images.shape == (4, 2, 3, 144, 144)
    assert batch.actions.shape == (4, 8, 7)


class _Env:
    suite, task = "libero_object", 0

    def __init__(self, *_args, **_kwargs) -> None:
        pass

    def about(self) -> dict:
        return {}

    def close(self) -> None:
        pass


def test_an_expert_that_always_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "LiberoEnv", _Env)
    broken = lambda env, seed: []  # noqa: E731
    with pytest.raises(RuntimeError, match="the expert failed 11 times out of 11"):
        demos.write_shard(tmp_path / "a.hdf5", "libero_object", 0, 1, 0, broken)
    assert list(tmp_path.iterdir()) == []


def test_workers_share_the_files_and_skip_finished_ones(tmp_path):
    def left(worker):
        return [p.name for p, _, _ in demos.shards(tmp_path, "s", 80, 4, 0, worker)]

    every = left((0, 1))
    assert len(every) == len(set(every)) == 20
    assert sorted(left((0, 2)) + left((1, 2))) == sorted(every)
    some = [task for _, task, _ in demos.shards(tmp_path, "s", 24, 4, 0, (0, 1), (1, 5))]
    assert some == [1, 5, 1, 5, 1, 5]
    seeds = [seed for _, _, seed in demos.shards(tmp_path, "s", 80, 4, 1, (0, 1))]
    assert len(set(seeds)) == 20
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / every[5]).touch()
    assert left((0, 1)) == every[:5] + every[6:]


def test_a_disturbance_is_announced_a_chunk_ahead():
    rng = np.random.default_rng(0)
    disturb = demos.Disturbance(rng, most=50)
    clean = np.zeros(7, np.float32)
    quiet, changed = [], []
    for step in range(400):
        action = disturb(step, clean, near=True)
        quiet.append(disturb.quiet(step))
        changed.append((action != clean).any())
    assert 20 < sum(changed) < 380
    for step in np.flatnonzero(quiet):
        assert not any(changed[step : step + demos.CHUNK])


@pytest.mark.libero
def test_glances_ask_for_one_thing_after_the_other():
    env = demos.LiberoEnv("libero_object", 0, look="fast", images=False, quick_physics=True)
    try:
        made = next(filter(None, (demos.glances(env, seed, targets=2) for seed in range(5))))
    finally:
        env.close()
    assert len({about["target"] for _, about in made}) == 2
    for arrays, about in made:
        assert about["target"].removesuffix("_1").replace("_", " ") in about["instruction"]
        assert arrays["frame_index"].tolist() == [0, demos.CHUNK]
        assert arrays["actions"].shape == (2 * demos.CHUNK, 7)
    # The second way starts where the first one ended, and leads elsewhere.
    assert not np.allclose(made[0][0]["actions"][0, :3], made[1][0]["actions"][0, :3], atol=0.1)


@pytest.mark.libero
def test_the_expert_is_asked_ahead_and_the_world_stays_as_it_is():
    env = LiberoEnv("libero_object", 5, look="fast", images=False, quick_physics=True)
    env.reset(seed=1, options={"init": 2})
    expert = Expert(env.scene(), env.goal[0][1], "basket_1")
    for _ in range(45):  # to the grasp and into it
        before, memory = env._inner.sim.get_state().flatten(), vars(expert).copy()
        action = expert.act().astype(np.float32)
        vars(expert).update(memory)
        chunk = demos.ahead(env, expert)
        np.testing.assert_array_equal(chunk[0], action)
        np.testing.assert_array_equal(env._inner.sim.get_state().flatten(), before)
        assert all(vars(expert)[key] is value for key, value in memory.items())
        expert.act()
        env.step(action)
    start, hands = env.scene().hand, []
    chunk = demos.ahead(env, expert)
    for row in chunk:
        np.testing.assert_allclose(expert.act(), row, atol=0.1)  # poses lag a physics step
        env.step(row)
        hands.append(env.scene().hand)
    assert np.linalg.norm(hands[-1] - start) > 0.005
    env.close()


@pytest.mark.libero
def test_a_policy_drives_and_the_expert_says_at_each_look_what_it_would_do():
    env = LiberoEnv("libero_object", 5, look="fast", images=False, max_steps=30)
    looks = []

    def driver(env, instruction):
        def drive():
            looks.append(env.scene().hand)
            return np.tile(np.float32([0, 0, 0.5, 0, 0, 0, -1]), (8, 1))

        return drive

    made = []
    for seed in range(3):
        made += demos.dagger(env, seed, [driver])
    env.close()
    arrays, about = made[0]
    frames = len(arrays["frame_index"])
    assert arrays["frame_index"].tolist() == list(range(0, 30, 4))
    assert arrays["chunks"].shape == (frames, 8, 7)
    assert (len(arrays["actions"]), about["steps"], about["success"]) == (30, 30, False)
    assert 0 < len(looks) < sum(len(a["frame_index"]) for a, _ in made)
    # The policy goes up and away; whoever is asked wants down to the thing.
    by_policy = np.isclose(arrays["executed"][::4, 2], 0.5)
    assert by_policy.any()
    assert arrays["chunks"][by_policy, 0, 2].mean() < 0.2
