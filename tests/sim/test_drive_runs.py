"""One run config over every kind of root, and what it says where something is wrong."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vla_prune_sim import rollout, table
from vla_prune_sim.drive import make_world
from vla_prune_sim.drive.env import FRONT, DriveEnv
from vla_prune_sim.drive.load import count_scenes
from vla_prune_sim.drive.score import BESIDE, ENDS, PARTS
from vla_prune_sim.drive.vector import vector_env
from vla_prune_sim.drive.world import DriveWorld
from vla_prune_sim.drive.write_nuscenes import write_root

from vla_prune import build, config
from vla_prune.errors import ConfigError, MissingError

from .small_scene import small_map, small_scene
from .test_drive_env import POLICY
from .test_drive_scenarionet import save, scenario

pytest.importorskip("nuscenes")
SMALL = ["sim.image_size=[64,36]", "sim.square=16", "workers=1"]


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Two synthetic scenes, the same as a real root would have them, and one pickle."""
    out = tmp_path_factory.mktemp("roots")
    ground = small_map()
    scenes = [small_scene("a", ground), small_scene("b", ground)]
    write_root(scenes, out / "synthetic", image_size=(80, 45), sweeps=False)
    shutil.copytree(out / "synthetic", out / "real", copy_function=os.link)
    (out / "real" / "v1.0-synthetic").rename(out / "real" / "v1.0-mini")
    (out / "real" / "synthetic.json").unlink()
    (out / "scenarionet").mkdir()
    save(out / "scenarionet", scenario())
    return {path.name: path for path in out.iterdir()}


def smoke(folder: Path, *more: str) -> rollout.RunConfig:
    """The shipped config, with a policy of random weights on small pictures."""
    (folder / "policy.yaml").write_text(POLICY)
    own = [f"suites.drive.policy={folder}/policy.yaml", f"work={folder}/work"]
    own += [f"results={folder}/drive.json", *SMALL, *more]
    return rollout.RunConfig(**config.load("drive_smoke", own, kind="run"))


@pytest.mark.parametrize(
    ("kind", "assets", "scenes"),
    [
        ("synthetic", "v1.0-synthetic-", 2),
        ("real", "v1.0-mini-", 2),
        ("scenarionet", "scenarionet-", 1),
    ],
)
def test_one_config_drives_every_kind_of_root(roots, tmp_path, caplog, kind, assets, scenes):
    run_config = smoke(tmp_path, f"sim.root={roots[kind]}")
    if kind == "synthetic":
        rows = [*run_config.rows, rollout.Row("dense", control="other_images")]
        run_config = replace(run_config, rows=rows)
    results = rollout.run(run_config)
    assert f"has {scenes} scenes; tasks {scenes}," in caplog.text
    document = table.make(run_config, results)
    assert [name.startswith(assets) for name in document["assets"]] == [True]
    assert not any("error" in result for result in results)
    for row in document["rows"]:
        told = {*PARTS, *BESIDE, *ENDS, "keep_ratio", "episodes", "diff", "diff_ci"}
        assert told <= set(row)
        assert row["episodes"] == scenes
        assert all(0.0 <= row[part] <= 1.0 for part in PARTS)
        assert {"tokens", "time_ratio"} <= set(row) or "driver" in row
    by_name = {row.get("recipe") or row["driver"]: row for row in reversed(document["rows"])}
    assert by_name["rule_expert"]["score"] > by_name["stop"]["score"]
    assert (by_name["blind"]["tokens"], by_name["dual_level"]["tokens"]) == (0, 12)
    difference, low, high = by_name["stop"]["parts_diff"]["ep"]
    assert difference == pytest.approx(by_name["stop"]["ep"] - by_name["dense"]["ep"])
    assert low <= difference <= high
    parts = {*PARTS, *ENDS} - {"score"} | (set() if kind == "synthetic" else {"on_lanes"})
    assert set(by_name["stop"]["parts_diff"]) == parts


def test_tasks_that_are_not_there_are_named(roots, tmp_path):
    run_config = smoke(tmp_path, f"sim.root={roots['real']}", "suites.drive.tasks=5-9")
    with pytest.raises(
        ConfigError, match=r"tasks: .*real has 2 scenes and none of 5, 6 \.\.\. 9;"
    ):
        rollout.run(run_config)


def test_one_drive_does_not_count_twice(roots, tmp_path):
    run_config = smoke(tmp_path, f"sim.root={roots['real']}", "suites.drive.states=0-1")
    with pytest.raises(ConfigError, match=r"states: 0, 1 are the same episode again .* give 1 of"):
        rollout.run(run_config)


def test_a_plan_is_handed_over_whole(roots, tmp_path):
    run_config = smoke(tmp_path, f"sim.root={roots['scenarionet']}", "execute=1")
    with pytest.raises(ConfigError, match=r"got 1 steps of a plan; .* set execute: 6"):
        rollout.run(run_config)


def test_an_unknown_option_is_named_before_a_world_is_made(tmp_path):
    run_config = smoke(tmp_path, f"sim.folder={tmp_path}/worlds", "sim.agnets=log")
    with pytest.raises(ConfigError, match="option 'agnets' is unknown; did you mean 'agents'"):
        rollout.run(run_config)
    assert not (tmp_path / "worlds").exists()


def test_a_scene_that_is_too_short_ends_its_episodes_and_not_the_run(tmp_path):
    whole = scenario()
    for name, steps in (("long", 41), ("short", 5)):
        for track in whole["tracks"].values():
            state = track["state"]
            track["state"] = {key: np.asarray(value)[:steps] for key, value in state.items()}
        whole |= {"id": name, "length": steps}
        whole["metadata"]["ts"] = whole["metadata"]["ts"][:steps]
        save(tmp_path, whole, f"{name}.pkl")
    run_config = smoke(tmp_path, f"sim.root={tmp_path}")
    rows = [rollout.Row("dense"), rollout.Row(driver="stop")]
    run_config = replace(run_config, rows=rows)
    results = rollout.run(run_config)
    broken = [r["outcome"] for r in results if "error" in r]
    assert len(broken) == 2
    assert broken[0] == dict.fromkeys(PARTS, 0.0), "what broke counts 0 in each part"
    said = {r["task"]: r.get("error", "") for r in results if "driver" in r}
    assert said[0] == ""
    assert said[1].startswith("short has 5 steps of 0.1 s; a drive takes over after 10 and needs")


def test_a_pickle_that_is_no_scene_ends_its_episodes_and_not_the_run(tmp_path):
    whole = scenario()
    save(tmp_path, whole, "a.pkl")
    save(tmp_path, {key: whole[key] for key in whole if key != "map_features"}, "b.pkl")
    other = {**whole, "metadata": {**whole["metadata"], "dataset": "waymo"}}
    save(tmp_path, other, "c.pkl")
    other = {**whole, "metadata": {**whole["metadata"], "sdc_id": "me"}}
    save(tmp_path, other, "d.pkl")
    run_config = smoke(tmp_path, f"sim.root={tmp_path}")
    run_config = replace(run_config, rows=[rollout.Row("dense"), rollout.Row(driver="stop")])
    said = {r["task"]: r.get("error", "") for r in rollout.run(run_config) if "driver" in r}
    assert said[0] == ""
    for task, says in (
        (1, "b.pkl lacks map_features"),
        (2, "is of waymo"),
        (3, "no ego track 'me'"),
    ):
        assert says in said[task]


def test_a_root_that_is_incomplete_is_refused_by_the_run(roots, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(roots["synthetic"], root, copy_function=os.link)
    for lost in ("samples/CAM_BACK/a__CAM_BACK__1530000001000000.jpg", "v1.0-synthetic/log.json"):
        (root / lost).unlink()
        with pytest.raises(MissingError, match=lost):
            rollout.run(smoke(tmp_path, f"sim.root={root}"))


def test_logged_pictures_are_asked_of_roots_that_have_some(roots, tmp_path):
    more = ["sim.observation=reproject", "sim.agents=log"]
    with pytest.raises(ConfigError, match="scene-0042 has no logged pictures"):
        rollout.run(smoke(tmp_path, f"sim.root={roots['scenarionet']}", *more))


def test_weights_are_missed_before_a_world_is_made(tmp_path):
    run_config = smoke(tmp_path, f"sim.folder={tmp_path}/worlds")
    (tmp_path / "policy.yaml").write_text("adapter: openvla\nweights: pocket_drives\n")
    with pytest.raises(MissingError, match="weights 'pocket_drives'"):
        rollout.run(run_config)
    assert not (tmp_path / "worlds").exists()


def test_a_world_is_made_once_and_found_again(tmp_path, monkeypatch):
    made = []

    def scenes(count: int, seed: int):
        made.append(seed)
        return iter([small_scene("a"), small_scene("b")][:count])

    monkeypatch.setattr(make_world, "logged_scenes", scenes)
    options = {"scenes": 1, "seed": 4, "folder": str(tmp_path / "worlds")}
    found = DriveWorld.survey(**options)
    assert DriveWorld(**options).root == found.options["root"] == found.place
    assert (found.tasks, made) == (1, [4])
    assert DriveWorld.survey(**options | {"seed": 5}).place != found.place
    assert made == [4, 5]


def test_two_roots_are_told_apart_without_reading_them(roots, tmp_path):
    assert count_scenes(roots["synthetic"])[0] == count_scenes(roots["real"])[0] == 2
    assert count_scenes(roots["synthetic"]) == count_scenes(roots["synthetic"])
    write_root([small_scene("c")], tmp_path / "root", image_size=(80, 45), sweeps=False)
    assert count_scenes(tmp_path / "root")[1] != count_scenes(roots["synthetic"])[1]
    with pytest.raises(MissingError, match="neither a folder such as"):
        count_scenes(tmp_path)


def test_vector_environments_equal_single_ones(roots):
    options = {"image_size": (32, 18), "cameras": FRONT[1:2]}
    plan = np.stack([4.0 * np.arange(1, 7), np.zeros(6)], -1).astype(np.float32)
    seeds = [0, 1]
    envs = vector_env(roots["synthetic"], len(seeds), **options)
    try:
        first, infos = envs.reset(seed=seeds)
        assert set(infos["scene"]) == {"a", "b"}, "seeds draw scenes, each its own"
        later, reward, *_ = envs.step(np.stack([plan] * len(seeds)))
    finally:
        envs.close()
    single = DriveEnv(roots["synthetic"], **options)
    for i, seed in enumerate(seeds):
        obs, info = single.reset(seed=seed)
        assert info["scene"] == infos["scene"][i]
        for got, wanted in ((first, obs), (later, None)):
            if wanted is None:
                wanted, gained, *_ = single.step(plan)
                assert gained == reward[i]
            np.testing.assert_array_equal(got["state"][i], wanted["state"])
            assert got["instruction"][i] == wanted["instruction"]
            image = got["images"]["CAM_FRONT"][i]
            np.testing.assert_array_equal(image, wanted["images"]["CAM_FRONT"])


def test_the_table_is_what_it_says():
    run_config = rollout.RunConfig(**config.load("drive_table", kind="run"))
    assert len(run_config.suites["drive"].tasks) == run_config.sim["scenes"] == 100
    made = rollout.RunConfig(**config.load("drive_smoke", kind="run"))
    same = ("agents", "image_size", "square")
    assert {k: made.sim[k] for k in same} == {k: run_config.sim[k] for k in same}
    assert made.sim["seed"] != run_config.sim["seed"]
    # Demonstrations begin at town 100000.
    assert max(made.sim["seed"], run_config.sim["seed"]) * make_world.SEEDS < 100_000
    keeps = {row.keep_ratio for row in run_config.rows if row.recipe == "dual_level"}
    assert keeps == {0.5, 0.25, 0.125}


def test_the_driving_policy_fits_its_world():
    try:
        config.resolve_weights("pocket_drive")
    except MissingError as error:
        pytest.skip(str(error))
    policy = build.build_adapter("pocket_drive")
    side = config.load("drive_smoke", kind="run")["sim"]["square"]
    assert tuple(view.name for view in policy.layout.views) == FRONT
    assert (policy.model.config.chunk, policy.model.config.action_dim) == (6, 2)
    assert policy.model.config.towers[0].image_size == side == 144
    assert policy.dt_s == 0.5


def test_the_speed_of_the_environment_is_told(roots, capsys):
    from vla_prune_sim.drive import speed

    speed.main(["--root", str(roots["synthetic"]), "--scenes", "1", "--plans", "2"])
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["cameras"], found["scenes"]) == (10, 3, ["a"])
    assert found["steps_per_s"] > 0
    assert 0 < found["traffic_share"] < found["traffic_and_metrics_share"] < 1
