"""Open-loop scores of policies on any root: plans are made where the log was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from vla_prune_sim import open_loop
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.simulation import PRIMED, Simulation
from vla_prune_sim.drive.write_nuscenes import write_root
from vla_prune_sim.metrics.open_loop import OPEN_LOOP
from vla_prune_sim.rollout import Row, RunConfig

from vla_prune import config
from vla_prune.policy import VLAPolicy

from .small_scene import small_map, small_scene
from .test_drive_env import POLICY

pytest.importorskip("nuscenes")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    ground = small_map()
    out = tmp_path_factory.mktemp("open") / "root"
    scenes = [small_scene("a", ground), small_scene("b", ground)]
    return write_root(scenes, out, image_size=(80, 45), sweeps=False)


def test_reliving_a_log_is_the_log(root) -> None:
    scene = open_world(root).load("a")
    simulation = Simulation(scene, "log")
    simulation.relive(7)
    assert simulation.step_index == PRIMED + 7
    np.testing.assert_array_equal(simulation.body.pose, scene.ego[PRIMED + 7])
    seen = simulation.record.others[-1]
    np.testing.assert_allclose(
        seen.pose[seen.present], scene.tracks.pose[:, PRIMED + 7][seen.present]
    )


def test_every_recipe_is_scored_by_every_convention(root, tmp_path, capsys) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    own = [f"suites.drive.policy={tmp_path}/policy.yaml", f"sim.root={root}", "sim.square=16"]
    own += ["sim.image_size=[64,36]"]
    open_loop.main(["drive_smoke", *(word for o in own for word in ("--set", o))])
    told = json.loads(capsys.readouterr().out)
    assert {"command", "commit", "machine", "seed"} <= set(told)
    assert [row["recipe"] for row in told["rows"]] == ["dense", "dual_level", "blind"]
    for row in told["rows"]:
        assert set(OPEN_LOOP) <= set(row)
        assert row["frames"] == 2  # 41 steps: hand-over at 10, three seconds of future
        assert row["l2_uniad"]["3s"] >= 0.0
        assert row["errors"] == 0


def told(root, folder) -> dict:
    """The dense row of a policy of random weights."""
    (folder / "policy.yaml").write_text(POLICY)
    own = [f"suites.drive.policy={folder}/policy.yaml", f"sim.root={root}", "sim.square=16"]
    run_config = RunConfig(
        **config.load("drive_smoke", [*own, "sim.image_size=[64,36]"], kind="run")
    )
    (row,) = open_loop.measure(replace(run_config, rows=[Row("dense")]))
    return row


def test_a_broken_scene_is_named_and_the_others_are_scored(root, tmp_path) -> None:
    shutil.copytree(root, tmp_path / "root")
    poses = tmp_path / "root" / "v1.0-synthetic" / "ego_pose.json"
    rows = json.loads(poses.read_text())
    rows[-1]["translation"][0] = float("nan")
    poses.write_text(json.dumps(rows))
    row = told(tmp_path / "root", tmp_path)
    assert (row["frames"], row["errors"], row["broken"]) == (1, 1, ["b"])
    assert np.isfinite(row["l2_uniad"]["3s"])


def test_a_plan_that_is_not_finite_is_an_error(root, tmp_path, monkeypatch) -> None:
    act, asked = VLAPolicy.act_one, []

    def once(policy, seen, state):
        asked.append(seen)
        chunk = act(policy, seen, state)
        return replace(chunk, actions=chunk.actions * np.nan) if len(asked) == 1 else chunk

    monkeypatch.setattr(VLAPolicy, "act_one", once)
    row = told(root, tmp_path)
    assert (row["frames"], row["errors"], row["broken"]) == (1, 1, [])


def test_another_world_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        open_loop.main(["libero_smoke"])
    assert "only plans of 'drive'" in capsys.readouterr().err


def test_an_unknown_key_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        open_loop.main(["drive_smoke", "--set", "jobz=2"])
    assert "jobz" in capsys.readouterr().err
