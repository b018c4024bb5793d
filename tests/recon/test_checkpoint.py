"""Weights belong to one encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vla_prune.adapters.encoder import EncoderSpec, fingerprint
from vla_prune.errors import CheckpointError, ConfigError, MissingError
from vla_prune.recon.checkpoint import find_reconstructor, load_reconstructor, save_reconstructor
from vla_prune.recon.model import ReconConfig, ReconPruner, grid_places

ENCODER = EncoderSpec(32, 3, 4, 8, "0123456789abcdef")
CONFIG = ReconConfig(hidden=32, ffn=48, heads=2, kv_heads=1)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, ReconPruner]:
    pruner = ReconPruner(CONFIG)
    save_reconstructor(tmp_path / "recon", pruner, ENCODER, {"steps": 3})
    return tmp_path / "recon", pruner


def test_what_is_read_scores_like_what_was_written(saved):
    folder, pruner = saved
    again = load_reconstructor(folder, ENCODER)
    tokens, places = torch.randn(1, 12, 32), grid_places(1, 3, 4)
    assert torch.equal(again(tokens, places), pruner(tokens, places))
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_reconstructor(folder, ENCODER, torch.bfloat16).query.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 64), ("rows", 4), ("cols", 3), ("patch", 14), ("fingerprint", "f" * 16)],
)
def test_another_encoder_is_refused(saved, field: str, value):
    with pytest.raises(CheckpointError, match=f"with {field} .*, the policy's has {value}"):
        load_reconstructor(saved[0], replace(ENCODER, **{field: value}))


def test_folders_of_something_else_are_refused(saved, tmp_path: Path):
    folder, _ = saved
    with pytest.raises(MissingError, match=r"no config\.json"):
        load_reconstructor(tmp_path, ENCODER)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | {"model": {}}))
    with pytest.raises(ConfigError, match="field 'hidden' is missing"):
        load_reconstructor(folder, ENCODER)
    del document["model"]
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="'model' is missing"):
        load_reconstructor(folder, ENCODER)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_reconstructor(folder, ENCODER)
    (folder / "config.json").write_text(json.dumps({"model_type": "vla_prune_openvla"}))
    with pytest.raises(CheckpointError, match="no reconstructor of ours"):
        load_reconstructor(folder, ENCODER)


def test_weights_are_found_by_folder_or_not_at_all(saved):
    assert find_reconstructor(str(saved[0]), ENCODER) == saved[0]
    with pytest.raises(MissingError, match="weights 'nowhere' are no folder here"):
        find_reconstructor("nowhere", ENCODER)
    with pytest.raises(MissingError, match="no shipped reconstructor was trained on this"):
        find_reconstructor(None, ENCODER)


def test_the_fingerprint_knows_values_and_not_the_dtype():
    half = {"a": torch.randn(3, 4).half(), "b": torch.randn(2).half()}
    same = {name: tensor.float() for name, tensor in reversed(half.items())}
    assert fingerprint(half.items()) == fingerprint(same.items())
    assert fingerprint(half.items()) == fingerprint((n, t.bfloat16()) for n, t in half.items())
    same["a"][0, 0] += 1.0
    assert fingerprint(half.items()) != fingerprint(same.items())
