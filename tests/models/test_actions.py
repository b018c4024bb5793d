"""Bins against numpy's digitize, statistics against OpenVLA's formulas, the gripper's sign."""

import json

import numpy as np
import pytest
import torch

from vla_prune.errors import CheckpointError, ConfigError
from vla_prune.models import ActionTokenizer, Statistics
from vla_prune.models.actions import libero_gripper

ENTRY = {
    "action": {
        "q01": [-2.0, 0.0, 0.0],
        "q99": [2.0, 4.0, 1.0],
        "min": [-4.0, -1.0, 0.0],
        "max": [4.0, 5.0, 1.0],
        "mask": [True, True, False],
    },
    "proprio": {"q01": [0.0, 1.0], "q99": [10.0, 3.0]},
}


def test_encode_is_digitize():
    values = torch.cat([torch.linspace(-1.2, 1.2, 5001), torch.tensor([-1.0, 1.0, 0.0])])
    edges = np.linspace(-1, 1, 256)
    expected = 32000 - np.digitize(np.clip(values.double().numpy(), -1, 1), edges)
    assert ActionTokenizer(32000).encode(values).tolist() == expected.tolist()


def test_round_trip_is_within_half_a_bin():
    tokenizer = ActionTokenizer(32000)
    values = torch.linspace(-1, 1, 999).reshape(3, 333)
    decoded = tokenizer.decode(tokenizer.encode(values))
    assert decoded.shape == values.shape
    assert (decoded - values).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(tokenizer.encode(decoded), tokenizer.encode(values).clamp(min=31745))


def test_ids_at_and_beyond_the_ends():
    decoded = ActionTokenizer(32000).decode(torch.tensor([31999, 31745, 31744, 5, 32005]))
    last = 1 - 1 / 255
    torch.testing.assert_close(decoded, torch.tensor([-last, last, last, last, -last]))


def test_unnormalise_leaves_the_gripper():
    statistics = Statistics({"libero": ENTRY})
    actions = torch.tensor([[-1.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    physical = statistics.unnormalise(None, actions)
    torch.testing.assert_close(physical, torch.tensor([[-2.0, 4.0, 0.3], [0.0, 2.0, 1.0]]))
    torch.testing.assert_close(statistics.normalise("libero", physical), actions)


def test_bounds_may_be_the_extremes():
    physical = Statistics({"aloha": ENTRY}, bounds="minmax").unnormalise(None, torch.ones(3))
    torch.testing.assert_close(physical, torch.tensor([4.0, 5.0, 1.0]))


def test_proprio_is_clipped_and_needs_no_mask():
    scaled = Statistics({"libero": ENTRY}).normalise_proprio(None, torch.tensor([20.0, 2.0]))
    torch.testing.assert_close(scaled, torch.tensor([1.0, 0.0]))


def test_data_set_names():
    two = Statistics({"bridge_orig": ENTRY, "libero": {"action": ENTRY["action"]}})
    with pytest.raises(ConfigError, match="choose one of bridge_orig, libero"):
        two.unnormalise(None, torch.zeros(3))
    with pytest.raises(ConfigError, match="did you mean 'bridge_orig'"):
        two.unnormalise("bridge", torch.zeros(3))
    with pytest.raises(ConfigError, match="have no 'proprio', only action"):
        two.normalise_proprio("libero", torch.zeros(2))


def test_load_both_published_forms(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"libero": ENTRY}))
    (tmp_path / "b.json").write_text(json.dumps({"norm_stats": {"libero": ENTRY}, "x": 1}))
    (tmp_path / "c.json").write_text(json.dumps({"model_type": "openvla"}))
    assert Statistics.load(tmp_path / "a.json") == Statistics.load(tmp_path / "b.json")
    with pytest.raises(CheckpointError, match="no action statistics found"):
        Statistics.load(tmp_path / "c.json")


def test_libero_gripper_closes_on_plus_one():
    actions = torch.tensor([[0.1, 0.9], [0.2, 0.1]])  # open, closed
    assert libero_gripper(actions).tolist() == [
        [pytest.approx(0.1), -1.0],
        [pytest.approx(0.2), 1.0],
    ]
