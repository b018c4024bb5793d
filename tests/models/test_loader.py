"""Published names: nothing missing, nothing left over, and the same numbers."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vla_prune.errors import CheckpointError, MissingError
from vla_prune.models import OpenVLA, openvla_7b, openvla_oft_7b
from vla_prune.models.checkpoint import assign
from vla_prune.models.loader import load_published, map_tensors, published_config
from vla_prune.models.names import published

from .reference import published_state
from .tiny import CONFIGS

# Written down from the sources in names.py, independently of its tables.
KNOWN = {
    "vision_backbone.featurizer.cls_token": (1, 1, 1024),
    "vision_backbone.featurizer.reg_token": (1, 4, 1024),
    "vision_backbone.featurizer.pos_embed": (1, 256, 1024),
    "vision_backbone.featurizer.patch_embed.proj.weight": (1024, 3, 14, 14),
    "vision_backbone.featurizer.blocks.23.attn.qkv.weight": (3072, 1024),
    "vision_backbone.featurizer.blocks.0.ls1.scale_factor": (1024,),
    "vision_backbone.featurizer.blocks.22.mlp.fc1.weight": (4096, 1024),
    "vision_backbone.fused_featurizer.pos_embed": (1, 256, 1152),
    "vision_backbone.fused_featurizer.blocks.26.mlp.fc2.weight": (1152, 4304),
    "vision_backbone.fused_featurizer.attn_pool.latent": (1, 1, 1152),
    "vision_backbone.fused_featurizer.attn_pool.kv.weight": (2304, 1152),
    "projector.fc1.weight": (8704, 2176),
    "projector.fc3.bias": (4096,),
    "language_model.model.embed_tokens.weight": (32064, 4096),
    "language_model.model.layers.31.mlp.down_proj.weight": (4096, 11008),
    "language_model.model.norm.weight": (4096,),
    "language_model.lm_head.weight": (32064, 4096),
}
KNOWN_OFT = {
    "action_head.model.layer_norm1.weight": (28672,),
    "action_head.model.fc1.weight": (4096, 28672),
    "action_head.model.mlp_resnet_blocks.1.ffn.1.weight": (4096, 4096),
    "action_head.model.fc2.bias": (7,),
    "proprio_projector.fc1.weight": (4096, 8),
}


def full(config):
    """A published checkpoint of full size, without memory."""
    entries = published(config).values()
    return {entry.name: torch.empty(entry.shape, device="meta") for entry in entries}


def test_list_has_the_published_size():
    state = full(openvla_7b())
    assert len(state) == 982
    # total_size in openvla/openvla-7b's model.safetensors.index.json, bfloat16
    assert sum(2 * math.prod(t.shape) for t in state.values()) == 15_082_474_368
    assert {name: tuple(state[name].shape) for name in KNOWN} == KNOWN


def test_oft_adds_only_head_and_proprio():
    state = full(openvla_oft_7b())
    added = state.keys() - full(openvla_7b()).keys()
    assert {name.split(".")[0] for name in added} == {"action_head", "proprio_projector"}
    assert {name: tuple(state[name].shape) for name in KNOWN_OFT} == KNOWN_OFT


@pytest.mark.parametrize("config", [openvla_7b(), openvla_oft_7b()], ids=["7b", "oft"])
def test_full_size_fits_with_nothing_missing_or_left_over(config):
    with torch.device("meta"):
        model = OpenVLA(config)
    assign(model, map_tensors(config, full(config).items()), "full")


def test_only_towers_last_parts_are_left_out():
    out = {e.name for e in published(openvla_oft_7b()).values() if not e.ours}
    prefixes = (
        "featurizer.blocks.23.",
        "featurizer.norm.",
        "fused_featurizer.blocks.26.",
        "fused_featurizer.norm.",
        "fused_featurizer.attn_pool.",
    )
    assert all(name.removeprefix("vision_backbone.").startswith(prefixes) for name in out)
    assert len(out) == 14 + 2 + 12 + 2 + 13


def write(folder, model, shards=2, pickle_prefix="module."):
    """A published folder with random weights; returns nothing of ours."""
    state = published_state(model)
    folder.mkdir(exist_ok=True)
    for part in ("action_head", "proprio_projector"):
        own = {k: state.pop(k) for k in list(state) if k.startswith(part)}
        if own:
            cut = {pickle_prefix + k.removeprefix(part + "."): v for k, v in own.items()}
            save_file(cut, folder / f"{part}--150000_checkpoint.safetensors")
    names = sorted(state)
    files = {name: f"model-{i % shards + 1:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: state[n] for n in names if files[n] == file}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["autoregressive", "oft"])
def test_sharded_folder_loads_exactly(make, batch, name, tmp_path):
    model = make(name)
    write(tmp_path, model)
    again = load_published(tmp_path, model.config)
    assert not again.training
    assert torch.equal(again(**batch(model)), model(**batch(model)))


def test_single_file_dtype_and_statistics(make, tmp_path):
    model = make("autoregressive")
    save_file(published_state(model), tmp_path / "model.safetensors")
    stats = {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}}}
    (tmp_path / "config.json").write_text(json.dumps({"norm_stats": stats}))
    again = load_published(tmp_path, model.config, dtype=torch.bfloat16)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert again.statistics.datasets == stats
    again.save_pretrained(tmp_path / "ours")
    ours = OpenVLA.from_pretrained(tmp_path / "ours")
    assert ours.statistics == again.statistics


def test_missing_unknown_and_misshapen_tensors_are_named(make):
    model = make("oft")
    state = published_state(model)
    del state["projector.fc2.bias"]
    state["vision_backbone.featurizer.blocks.0.scale.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"missing \(projector.fc2.bias\) and 1 .*scale.wei"):
        map_tensors(model.config, state.items())
    bad = published_state(model) | {"projector.fc2.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"projector.fc2.bias has shape \[3\], .* \[32\]"):
        map_tensors(model.config, bad.items())


def test_pickles_are_refused_with_the_way_out(make, tmp_path):
    (tmp_path / "action_head--150000_checkpoint.pt").touch()
    with pytest.raises(MissingError, match="are pickles, which are not read; convert them"):
        load_published(tmp_path)
    (tmp_path / "action_head--150000_checkpoint.pt").unlink()
    write(tmp_path, make("oft"))
    next(tmp_path.glob("proprio*")).unlink()
    with pytest.raises(MissingError, match=r"no proprio_projector\*.safetensors"):
        load_published(tmp_path, CONFIGS["oft"])
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(MissingError, match=r"no model-00002\.safetensors"):
        load_published(tmp_path, CONFIGS["oft"])


def test_config_follows_the_folder(tmp_path):
    assert published_config(tmp_path) == openvla_7b()
    (tmp_path / "action_head.safetensors").touch()
    assert published_config(tmp_path) == openvla_oft_7b()
    text = {"vocab_size": 32128, "rms_norm_eps": 1e-5, "model_type": "llama"}
    data = {"text_config": text, "pad_to_multiple_of": 128, "n_action_bins": 64}
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = published_config(tmp_path)
    expected = openvla_oft_7b()
    llm = {**expected.llm, "vocab_size": 32128, "rms_norm_eps": 1e-5}
    assert config == replace(expected, llm=llm, action_vocab=32000, n_bins=64)
