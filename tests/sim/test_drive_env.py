"""Driving as an environment, as the rollout harness sees it, and the worlds it is given."""

import filecmp
import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import vla_prune_sim
from gymnasium.utils.env_checker import check_env
from vla_prune_sim import rollout, table
from vla_prune_sim.drive import speed
from vla_prune_sim.drive.env import FRONT, DriveEnv
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.make_world import make_root
from vla_prune_sim.drive.world import DriveWorld, steps_of

from tests.models import tiny
from vla_prune.errors import ConfigError, MissingError, ShapeError

pytest.importorskip("nuscenes")

POLICY = (
    tiny.POLICY.replace("[image]", "[CAM_FRONT_LEFT, CAM_FRONT, CAM_FRONT_RIGHT]").replace(
        "chunk: 2\n", "chunk: 6\n  action_dim: 2\n  proprio_dim: 10\n"
    )
    + "dt_s: 0.5\n"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two scenes."""
    return make_root(tmp_path_factory.mktemp("world") / "root", scenes=2, seed=3)


@pytest.fixture
def env(root: Path) -> DriveEnv:
    return DriveEnv(root, image_size=(64, 36))


def plan(speed: float) -> np.ndarray:
    return np.stack([speed * 0.5 * np.arange(1, 7), np.zeros(6)], -1).astype(np.float32)


def test_gymnasium_has_no_complaints(root: Path):
    env = gymnasium.make("vla_prune_sim:VlaPrune/Drive-v0", root=root, image_size=(32, 18))
    assert vla_prune_sim.__all__
    check_env(env.unwrapped, skip_render_check=True)


def test_an_observation_is_what_the_space_says(env: DriveEnv):
    obs, info = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert info["scene"] in env.world.names
    assert set(obs["images"]) == set(FRONT)
    square = DriveEnv(env.world_path, image_size=(64, 36), square=24)
    assert square.reset(seed=0)[0]["images"]["CAM_FRONT"].shape == (24, 24, 3)


def test_a_scene_runs_to_its_end_and_is_cut_there(env: DriveEnv):
    env.reset(options={"scene": env.world.names[0]})
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(plan(0.0))
        total, steps, over = total + reward, steps + 1, terminated or truncated
    # A second is the log's; the rest is driven, half a second at a time.
    assert (steps, terminated, truncated, info["ended"]) == (38, False, True, "time")
    assert 0.0 <= total < 40.0


def test_pictures_wait_until_they_are_asked_for(env: DriveEnv):
    lazy = DriveEnv(env.world_path, image_size=(64, 36), lazy_images=True)
    first = lazy.reset(options={"scene": lazy.world.names[1]})[0]
    later = lazy.step(plan(6.0))[0]
    np.testing.assert_array_equal(first["images"]["CAM_FRONT"], later["images"]["CAM_FRONT"])
    seen = lazy.observe()
    assert (seen["images"]["CAM_FRONT"] != first["images"]["CAM_FRONT"]).any()


def test_the_same_plans_give_the_same_drive(env: DriveEnv):
    def drive() -> list[np.ndarray]:
        obs, _ = env.reset(seed=5)
        seen = [obs]
        for pace in (5.0, 6.0, 3.0):
            seen.append(env.step(plan(pace))[0])
        return [np.append(o["state"], o["images"]["CAM_FRONT"].ravel()) for o in seen]

    np.testing.assert_array_equal(drive(), drive())


def test_mistakes_are_named(root: Path):
    with pytest.raises(ConfigError, match="plan_steps is 9; a plan is followed for 1 to 5"):
        DriveEnv(root, plan_steps=9)
    name = open_world(root).names[0]
    with pytest.raises(ConfigError, match=f"scene '{name}x' is unknown; did you mean '{name}'"):
        DriveEnv(root, scene=name + "x")
    with pytest.raises(MissingError, match="is no folder; give a nuScenes root"):
        DriveEnv(root / "nothing")
    with pytest.raises(ConfigError, match="has 2 scenes, so there is no task 2; choose 0 to 1"):
        DriveWorld(str(root)).open("drive", 2)
    with pytest.raises(ConfigError, match="is not empty; name a new folder"):
        make_root(root, 1, 0)


def test_a_world_that_was_broken_off_goes_on_and_is_the_same(root: Path, tmp_path: Path):
    again = tmp_path / "again"

    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_root(again, scenes=2, seed=3, progress=stop)
    # What is half made has another name, and its pictures are not drawn twice.
    assert not again.exists()
    first = min((tmp_path / "again.part" / "samples" / "CAM_FRONT").iterdir())
    drawn = first.stat().st_mtime_ns
    make_root(again, scenes=2, seed=3)
    assert (again / "samples" / "CAM_FRONT" / first.name).stat().st_mtime_ns == drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == [".again.lock", "again"]
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    _, differ, lost = filecmp.cmpfiles(root, again, files, shallow=False)
    assert (differ, lost) == ([], [])


def test_steps_add_up_to_the_plan():
    wanted = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_allclose(np.cumsum(steps_of(wanted), axis=0), wanted)


def test_a_table_of_drivers_and_recipes(root: Path, tmp_path: Path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    config = rollout.RunConfig(
        world="drive",
        suites={
            "drive": {"policy": str(tmp_path / "policy.yaml"), "tasks": [0, 1], "states": [0]}
        },
        rows=[
            {"recipe": "dense"},
            {"recipe": "dual_level", "keep_ratio": 0.25},
            {"driver": "rule_expert"},
            {"driver": "stop"},
        ],
        results=str(tmp_path / "drive.json"),
        work=str(tmp_path / "work"),
        cut_layer=2,
        execute=6,
        workers=1,
        sim={"root": str(root), "image_size": [64, 36], "square": 16},
    )
    rows = table.make(config, rollout.run(config))["rows"]
    by_name = {row.get("recipe") or row["driver"]: row for row in rows}
    expert, stop = by_name["rule_expert"], by_name["stop"]
    assert list(expert)[4:6] == ["episodes", "score"]
    assert expert["score"] > 0.7 > 0.5 > stop["score"]
    assert expert["ep"] == pytest.approx(1.0, abs=0.05)
    assert by_name["dual_level"]["tokens"] == 12
    assert expert["diff"] == pytest.approx(expert["score"] - by_name["dense"]["score"])


def test_what_a_step_costs_is_told_with_its_machine(root: Path, capsys) -> None:
    speed.main(["--root", str(root), "--scenes", "1", "--plans", "2"])
    told = json.loads(capsys.readouterr().out)
    assert {"command", "commit", "machine", "seed"} <= set(told)
    assert told["steps"] == 10
    assert told["cameras"] == len(FRONT)
    assert 0 < told["traffic_and_metrics_share"] < 1


@pytest.mark.parametrize("shape", [(1, 2), (7, 2), (6, 3), (12,)])
def test_a_plan_of_another_shape_is_refused(root: Path, shape) -> None:
    env = DriveEnv(root, image_size=(64, 36), lazy_images=True)
    with pytest.raises(ShapeError, match=r"call reset\(\) first"):
        env.step(np.zeros((6, 2)))
    env.reset(seed=0)
    with pytest.raises(ShapeError, match=r"it needs \(6, 2\), places in metres"):
        env.step(np.zeros(shape))


@pytest.mark.parametrize("option", [{"image_size": 400}, {"square": 0}, {"square": -3}])
def test_a_size_that_is_none_is_refused(root: Path, option) -> None:
    with pytest.raises(ConfigError, match="8 pixels or more"):
        DriveEnv(root, **option)


@pytest.mark.parametrize("option", ["scene", "render_mode"])
def test_what_a_table_may_not_say_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"option '{option}' is unknown"):
        DriveWorld(**{option: "b"})
