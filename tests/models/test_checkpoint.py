"""Our own folders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from vla_prune.errors import CheckpointError, MissingError
from vla_prune.models import OpenVLA, Statistics, load_tokenizer


@pytest.mark.parametrize("name", ["autoregressive", "oft", "pocket"])
def test_round_trip_is_exact(make, batch, name, tmp_path):
    model = make(name)
    args = batch(model)
    model.save_pretrained(tmp_path / "policy")
    again = OpenVLA.from_pretrained(tmp_path / "policy")
    assert again.config == model.config
    assert not again.training
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    assert torch.equal(again(**args), model(**args))


def test_tied_weights_are_written_once_and_stay_tied(make, batch, tmp_path):
    tied = make("autoregressive").config.llm | {"tie_word_embeddings": True}
    model = make("autoregressive", llm=tied)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "language_model.lm_head.weight" not in names
    again = OpenVLA.from_pretrained(tmp_path)
    lm = again.language_model
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert torch.equal(again(**batch(model)), model(**batch(model)))


def test_dtype_is_for_weights_only(make, tmp_path):
    make("pocket").save_pretrained(tmp_path)
    model = OpenVLA.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    stem = model.towers[0].stem[0].weight
    assert stem.is_contiguous(memory_format=torch.channels_last)


def test_statistics_and_tokenizer_travel(make, tmp_path):
    model = make("pocket")
    model.statistics = Statistics({"pocket": {"action": {"q01": [0.0], "q99": [1.0]}}})
    words = Tokenizer(WordLevel({"<s>": 0, "lift": 1}, unk_token="<s>"))
    model.save_pretrained(tmp_path, tokenizer=words)
    again = OpenVLA.from_pretrained(tmp_path)
    assert again.statistics == model.statistics
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("lift")["input_ids"] == [1]
    again.save_pretrained(tmp_path / "copy", tokenizer=tokenizer)
    assert load_tokenizer(tmp_path / "copy")("lift")["input_ids"] == [1]


def test_missing_and_left_over_tensors_are_named(make, tmp_path):
    make("pocket").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["action_head.fc2.bias"]
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"1 tensors are missing \(action_head.fc2.bias\) and 1 tensors are left over \(ext",
    ):
        OpenVLA.from_pretrained(tmp_path)


def test_only_the_first_names_are_listed(make, tmp_path):
    make("pocket").save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"action_head.fc2.bias, \.\.\.\)") as caught:
        OpenVLA.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 400


def test_wrong_shape_is_named(make, tmp_path):
    make("pocket").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"action_dim": 3}))
    with pytest.raises(CheckpointError, match=r"action_head.fc2.\w+ has shape .* asks for \[3"):
        OpenVLA.from_pretrained(tmp_path)


def test_missing_files_are_named(make, tmp_path):
    with pytest.raises(MissingError, match=r"no config\.json"):
        OpenVLA.from_pretrained(tmp_path)
    make("pocket").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="from safetensors only"):
        OpenVLA.from_pretrained(tmp_path)
    with pytest.raises(MissingError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_published_folder_points_to_its_loader(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    with pytest.raises(CheckpointError, match=r"'openvla'.*load_published"):
        OpenVLA.from_pretrained(tmp_path)
