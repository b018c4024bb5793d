"""Driving demonstrations: what is written is what the trainer reads, whoever drives."""

from __future__ import annotations

import numpy as np
import pytest

h5py = pytest.importorskip("h5py")

from vla_prune_sim.train import drive_demos  # noqa: E402
from vla_prune_sim.train.frames import FrameSet  # noqa: E402

SEED = 300_000


@pytest.fixture(scope="module")
def blindly(tmp_path_factory):
    """One drive of a policy that goes off the road to the left, in a file."""
    looks = []

    def policy():
        def execute(frame: dict, plan: np.ndarray) -> np.ndarray:
            looks.append((frame, plan))
            return np.cumsum(np.tile([3.0, 3.0], (6, 1)), axis=0)

        return execute

    folder = tmp_path_factory.mktemp("drives")

    def make(seed: int):
        return drive_demos.dagger(seed, [policy], ["crossing_pedestrian", "narrow_passage"])

    count, frames = drive_demos.write_shard(folder / "shard_0000.hdf5", 1, SEED, make)
    return folder, looks, count, frames


def test_every_look_of_a_policy_comes_with_what_the_expert_would_do(blindly) -> None:
    folder, looks, count, frames = blindly
    assert count == 1
    assert frames == len(looks)
    with h5py.File(folder / "shard_0000.hdf5") as file:
        demo = file["data/demo_0"]
        assert demo.attrs["scenario"] == "crossing_pedestrian"
        assert demo.attrs["ended"] in ("off_route", "collision")
        wanted = np.stack([np.diff(plan, axis=0, prepend=0.0) for _, plan in looks])
        np.testing.assert_allclose(demo["chunks"][()], wanted, atol=1e-4)
        assert demo["states8"].shape == (frames, 10)


def test_the_trainer_reads_what_was_driven(blindly) -> None:
    folder, looks, _, frames = blindly
    found = [FrameSet(folder), FrameSet(folder, held_out=True)]
    assert sum(map(len, found)) == frames
    kept = next(f for f in found if len(f))
    assert kept.views == drive_demos.FRONT
    np.testing.assert_array_equal(kept.images[0][1], looks[0][0]["obs/CAM_FRONT_rgb"])


def test_a_policy_that_is_not_there_is_refused_in_a_sentence(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        drive_demos.main(["--out", str(tmp_path), "--policy", "pocket_nowhere"])
    assert stopped.value.code == 2
    assert "pocket_nowhere" in capsys.readouterr().err


def test_a_scenario_that_is_not_there_is_refused_by_name(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        drive_demos.main(["--out", str(tmp_path), "--scenarios", "earthquake"])
    assert stopped.value.code == 2
    assert "crossing_pedestrian" in capsys.readouterr().err
