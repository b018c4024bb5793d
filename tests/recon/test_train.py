"""Training: resumes to the bit, stops on NaN, says what it did, and finds the foreground."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate")
pytest.importorskip("pytorch_msssim")

from accelerate.state import AcceleratorState

from vla_prune.errors import CheckpointError, ConfigError, ShapeError, UnsupportedError
from vla_prune.recon import ship
from vla_prune.recon.cache import Cached
from vla_prune.recon.checkpoint import load_reconstructor
from vla_prune.recon.frames import DataConfig
from vla_prune.recon.train import Trainer, train

from .conftest import tiny_adapter, write_demos


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Its precision is a setting of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "resume.safetensors")


def test_a_resumed_training_equals_one_in_one_go(settings, adapter, tmp_path: Path):
    whole = settings(tmp_path / "whole")
    told = train(whole, adapter)
    parts = settings(tmp_path / "parts")
    stopped = Trainer(parts, adapter, lambda *_: None)
    for _ in range(3):
        stopped._step()
        stopped.step += 1
    stopped._save(stopped.validate())
    del stopped
    again = train(parts, adapter)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert told == again
    # Nothing is left to do.
    assert train(parts, adapter) == again


def test_it_tells_and_writes_what_was_asked_for(settings, adapter, tmp_path: Path):
    seen = []
    config = settings(tmp_path, choose="last")
    told = train(config, adapter, lambda what, *_: seen.append(what))
    assert {"foreground_ratio", "token_ap", "psnr_fore", "ssim_back"} <= told.keys()
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["held_out_token_ap"] == told["token_ap"]
    assert "training" in seen
    pruner = load_reconstructor(tmp_path / "reconstructor", adapter.encoder())
    about = json.loads((tmp_path / "reconstructor" / "config.json").read_text())
    assert about["about"]["steps"] == 6
    names = {name for name, _ in pruner.named_parameters()}
    assert not any("decoder" in name for name in names)


def test_a_killed_training_logs_no_step_twice(settings, adapter, tmp_path: Path):
    """Logged to step 5, saved at step 3, killed in the midst of a line."""
    train(settings(tmp_path, steps=3, log_every=1), adapter)
    with (tmp_path / "curve.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 1}\n{"step": 5, "loss": 1}\n{"step": 6, "lo')
    train(settings(tmp_path, steps=6, log_every=1), adapter)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_bright_patches_are_found(settings, adapter, tmp_path: Path):
    """The shortest training that tells anything: the foreground is what is bright."""
    changes = {"steps": 80, "batch": 16, "save_every": 80, "log_every": 80}
    told = train(settings(tmp_path, loss={"objective": "mask_head"}, **changes), adapter)
    assert told["token_ap"] > 0.9


@pytest.mark.parametrize(("choose", "steps"), [("best", 80), ("last", 81)])
def test_weights_for_use_are_those_that_found_most(
    settings, adapter, tmp_path: Path, choose: str, steps: int
):
    changes = {"batch": 16, "save_every": 80, "log_every": 80, "choose": choose}
    config = settings(tmp_path, steps=80, loss={"objective": "mask_head"}, **changes)
    train(config, adapter)
    again = Trainer(replace(config, steps=81), adapter, lambda *_: None)
    assert again.trained_ap() > 0.9
    with torch.no_grad():
        again.plain.pruner.scorer.weight.neg_()
    again.run()
    assert again.trained_ap() < 0.5
    about = json.loads((tmp_path / "reconstructor" / "config.json").read_text())["about"]
    assert about["steps"] == steps


def test_the_pruner_learns_at_its_own_pace(settings, adapter, tmp_path: Path):
    def moved(pace: float) -> tuple[float, float]:
        trainer = Trainer(settings(tmp_path / f"{pace}", pace=pace), adapter, lambda *_: None)
        parts = trainer.plain.pruner.scorer.weight, trainer.plain.decoders[0].head.weight
        before = [part.detach().clone() for part in parts]
        trainer._step()
        first, second = (
            float((part.detach() - old).abs().max())
            for part, old in zip(parts, before, strict=True)
        )
        return first, second

    (slow, decoder), (fast, same) = moved(0.1), moved(1.0)
    assert slow == pytest.approx(0.1 * fast, rel=0.01)
    assert decoder == same


def test_the_redrawn_pictures_get_better(settings, adapter, tmp_path: Path):
    changes = {"steps": 80, "batch": 16, "save_every": 80, "log_every": 80}
    before = Trainer(settings(tmp_path / "a"), adapter, lambda *_: None).validate()
    told = train(settings(tmp_path / "b", **changes), adapter)
    assert told["loss"] < 0.6 * before["loss"]
    assert told["psnr_back"] > before["psnr_back"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    settings, adapter, tmp_path: Path
):
    config = settings(tmp_path, steps=3)
    train(config, adapter)
    before = weights(tmp_path)
    trainer = Trainer(replace(config, steps=9), adapter, lambda *_: None)
    broken = trainer.frames.batch

    def batch(index):
        tokens, *rest = broken(index)
        return (tokens * float("nan") if trainer.step == 4 else tokens, *rest)

    trainer.frames.batch = batch
    with pytest.raises(ShapeError, match=r"not finite at step 4 .* of step 3, is kept"):
        trainer.run()
    after = weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())


def test_bfloat16_trains_and_keeps_float32_weights(settings, adapter, tmp_path: Path):
    told = train(settings(tmp_path, bf16=True, steps=2), adapter)
    assert told["loss"] > 0
    network = [v for k, v in weights(tmp_path).items() if k.startswith("network.")]
    assert {tensor.dtype for tensor in network} == {torch.float32}


def test_other_settings_in_the_same_folder_are_refused(settings, adapter, tmp_path: Path):
    train(settings(tmp_path), adapter)
    with pytest.raises(CheckpointError, match=r"training with lr 0\.01, this one has 0\.1"):
        train(settings(tmp_path, lr=0.1), adapter)


def test_a_cache_of_another_encoder_is_refused(settings, adapter, tmp_path: Path):
    train(settings(tmp_path), adapter)
    with pytest.raises(CheckpointError, match=r"encoder\.fingerprint .* name another 'cache'"):
        train(settings(tmp_path / "b"), tiny_adapter(seed=1))


def test_a_cache_of_other_frames_is_refused(settings, adapter, tmp_path: Path):
    """Demonstrations that came later are not mixed with, nor hidden by, those of before."""
    demos = write_demos(tmp_path / "demos")
    data = {"source": str(demos), "foreground": ["thing"], "ignore": ["other"]}
    changes = {"data": data, "cache": str(tmp_path / "cache")}
    train(settings(tmp_path / "a", steps=1, **changes), adapter)
    copy(demos / "shard.hdf5", demos / "shard_b.hdf5")
    with pytest.raises(CheckpointError, match=r"of frames\.train .* name another 'cache'"):
        train(settings(tmp_path / "b", **changes), adapter)
    changes["cache"] = str(tmp_path / "cache_b")
    with pytest.raises(CheckpointError, match=r"a training with frames .* name another 'out'"):
        train(settings(tmp_path / "a", steps=2, **changes), adapter)


def test_only_the_shards_of_the_chosen_frames_are_read(settings, adapter, tmp_path: Path):
    changes = {"cache": str(tmp_path / "cache")}
    trainer = Trainer(settings(tmp_path / "a", **changes), adapter, lambda *_: None)
    shard = tmp_path / "cache" / "train" / "00000.safetensors"
    copy(shard, shard.with_name("00001.safetensors"))
    assert len(Cached(tmp_path / "cache", "train")) == len(trainer.frames) == 24


@pytest.mark.parametrize("name", ["a/resume.safetensors", "cache/train/00000.safetensors"])
def test_torn_files_are_named(settings, adapter, tmp_path: Path, name: str):
    config = settings(tmp_path / "a", steps=1, cache=str(tmp_path / "cache"))
    train(config, adapter)
    torn = tmp_path / name
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{torn.name} is no whole safetensors file"):
        train(config, adapter)


def test_the_hosts_layer_is_copied_where_it_fits(settings, adapter, tmp_path: Path):
    config = settings(tmp_path, init="host")
    with pytest.raises(ConfigError, match="init 'host' needs a decoder layer"):
        Trainer(config, adapter, lambda *_: None)
    host = adapter.hooks.decoder.layers[0]
    sizes = {"hidden_size": 16, "intermediate_size": 24}

    class Host:
        name, hooks = "host", type("Hooks", (), {})()

    from transformers import LlamaConfig, LlamaModel

    llama = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, vocab_size=8)
    Host.hooks.decoder = LlamaModel(replace_layers(llama))
    Host.encoder, Host.encode = adapter.encoder, adapter.encode
    trainer = Trainer(config, Host, lambda *_: None)
    copied = trainer.plain.pruner.layer.layer
    host = Host.hooks.decoder.layers[0]
    assert torch.equal(copied.self_attn.q_proj.weight, host.self_attn.q_proj.weight)
    assert torch.equal(copied.mlp.down_proj.weight, host.mlp.down_proj.weight)


def replace_layers(config):
    config.num_hidden_layers = 1
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": "copy"}, "init 'copy' is unknown"),
        ({"choose": "worst"}, "choose 'worst'"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"batch": "many"}, "batch is 'many'; it takes a whole number"),
        ({"lr": "fast"}, "lr is 'fast'; it takes a number"),
        ({"lr": -1}, "lr is -1; give more than 0"),
        ({"clip": 0.0}, "clip is 0.0; give more than 0"),
        ({"warmup": -3}, "warmup is -3; give 0 or more"),
        ({"model": {"fnn": 3}}, "did you mean 'ffn'"),
        ({"model": "big"}, "'big' is no mapping"),
        ({"model": {"heads": 0}}, "recon model: heads is 0; give 1 or more"),
        ({"model": {"positions": None}}, "positions is None; it takes a text"),
        ({"model": {"hidden": 32}}, "hidden is 32, but follows the policy's encoder"),
        ({"decoder": {"layers": -1}}, "recon decoder: layers is -1; give 1 or more"),
        ({"loss": {"mean": [0, 0]}}, r"mean is \(0, 0\); give three numbers"),
        ({"loss": {"std": [0.5, 0.5, 0]}}, "std is 0; give more than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, tmp_path: Path, changes, said: str):
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": -1}, "frames is -1; give 1 or more"),
        ({"held_out": -1}, "held_out is -1; give 0 or more"),
        ({"least_share": 7}, r"least_share is 7; it is a share, in \(0, 1\]"),
    ],
)
def test_choices_of_frames_that_cannot_be_are_refused(changes, said: str):
    with pytest.raises(ConfigError, match=said):
        DataConfig("somewhere", **changes)


def test_a_policy_that_hands_out_no_tokens_is_refused(settings, tmp_path: Path):
    with pytest.raises(UnsupportedError, match="a bare LlamaModel does not hand out its vision"):
        Trainer(settings(tmp_path), SimpleNamespace(name="a bare LlamaModel"), lambda *_: None)


def test_only_a_run_that_trained_is_shipped(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as caught:
        ship.main(["--run", str(tmp_path / "nowhere")])
    assert caught.value.code == 2
    assert (
        "is missing; give a folder that 'vla-prune train recon' wrote" in capsys.readouterr().err
    )
