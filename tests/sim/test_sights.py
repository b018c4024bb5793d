"""Looks for a tower, and what a tower learns from them."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.town import make_scene
from vla_prune_sim.train import bc, sights, tower


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(400_003, "lead_braking")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sights")
    sights.main(
        ["--out", str(out), "--scenes", "2", "--looks", "5", "--per-shard", "1", "--first", "9"]
    )
    return out


def looks(scene: Scene, count: int) -> list[dict[str, np.ndarray]]:
    maker = sights.Sights(scene, np.random.default_rng(0))
    return [look for look in (maker.look() for _ in range(count)) if look is not None]


def test_what_has_a_place_is_what_is_no_ground(scene: Scene) -> None:
    for look in looks(scene, 12):
        agents = np.isin(look["classes"], sights.AGENTS)
        assert not np.isfinite(look["places"][~agents]).any()
        assert not np.isfinite(look["lanes"][agents]).any()
        assert np.isfinite(look["places"][agents]).sum() > 1.8 * agents.sum() - 1


def test_a_car_straight_ahead_is_as_far_off_as_it_stands(scene: Scene) -> None:
    """In the middle of the front view: whoever is there stands within a lane of straight on."""
    near = [look["places"][1, 6:9, 5:7].reshape(-1, 2) for look in looks(scene, 40)]
    near = np.concatenate(near)
    near = near[np.isfinite(near[:, 0]) & (near[:, 0] < 15.0)]
    assert len(near)
    assert (near[:, 0] > 1.0).all()  # nobody stands in the ego
    assert np.abs(near[:, 1]).max() < 6.0


def test_the_same_seed_gives_the_same_looks(scene: Scene) -> None:
    for one, other in zip(looks(scene, 3), looks(scene, 3), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_tower_learns_resumes_and_begins_a_policy(folder, tmp_path, capsys) -> None:
    assert len(load_file(folder / "shard_0000.safetensors")["images"]) <= 5
    common = ["--sights", str(folder), "--out", str(tmp_path), "--batch", "2", "--layers", "2"]
    common += ["--log-every", "4", "--threads", "1"]
    tower.main([*common, "--steps", "4"])
    tower.main([*common, "--steps", "40", "--lr", "0.003"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert [line["step"] for line in lines[:2]] == [4, 8]
    assert lines[-1]["class"] < lines[0]["class"]
    trained = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith("towers.0.") for name in trained)


def test_heads_alone_leave_the_tower_as_it_was(folder, tmp_path) -> None:
    common = ["--sights", str(folder), "--out", str(tmp_path), "--batch", "2", "--threads", "1"]
    trainer = tower.TowerTrainer(tower.parse([*common, "--heads-first", "3", "--steps", "3"]))
    before = {k: v.clone() for k, v in trainer.modules.state_dict().items()}
    trainer.run()
    after = trainer.modules.state_dict()
    changed = {k.split(".")[0] for k in after if not torch.equal(after[k], before[k])}
    assert changed == {"heads"}


def test_one_shard_is_not_enough(folder, tmp_path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "shard_0000.safetensors").write_bytes(
        (folder / "shard_0000.safetensors").read_bytes()
    )
    with pytest.raises(SystemExit, match="two are needed"):
        tower.main(["--sights", str(tmp_path / "s"), "--out", str(tmp_path / "o")])


def test_the_learning_rate_goes_up_and_down() -> None:
    rates = [bc.warm_cosine(step, 100, 10) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 0.03
