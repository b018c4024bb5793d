"""Masks and token labels, from files and from demonstrations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.errors import ConfigError, MissingError, ShapeError
from vla_prune.recon.frames import DataConfig, cell_shares, examples, read, read_mask, token_labels
from vla_prune.recon.metrics import average_precision, recall_at

ENCODER = EncoderSpec(16, 4, 4, 12, "0" * 16)


def save(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture.astype(np.uint8)).save(path)
    return path


def test_shares_are_areas_also_of_uneven_cells():
    shown = np.zeros((5, 7), bool)
    shown[:2, :3] = True
    assert cell_shares(shown, 2, 2).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert cell_shares(shown, 1, 1).tolist() == pytest.approx([6 / 35])
    with pytest.raises(ShapeError, match="has no 6 x 1 cells"):
        cell_shares(shown, 6, 1)


def test_a_token_is_what_most_of_it_shows():
    mask = np.array([[1, 0, 1, 2], [1, 0, 2, 2]], np.uint8)
    assert token_labels(mask, 1, 2, 0.5).tolist() == [1, 2]
    assert token_labels(mask, 1, 2, 0.6).tolist() == [0, 2]
    assert token_labels(mask * 0, 1, 2, 0.0).tolist() == [0, 0]


def test_mask_files_are_read_as_they_are_meant(tmp_path: Path):
    kinds = np.array([[0, 1], [2, 1]], np.uint8)
    grey = np.array([0, 255, 128])[kinds]
    assert np.array_equal(read_mask(save(tmp_path / "a.png", grey)), kinds)
    assert np.array_equal(read_mask(save(tmp_path / "b.png", kinds % 2)), kinds % 2)


def test_bad_masks_get_one_sentence(tmp_path: Path):
    good = save(tmp_path / "good.png", np.full((4, 6), 255))
    with pytest.raises(ShapeError, match="6 x 4 pixels, its image 5 x 4"):
        read_mask(good, (4, 5))
    with pytest.raises(ShapeError, match="holds grey 7"):
        read_mask(save(tmp_path / "grey.png", np.full((2, 2), 7)))
    (tmp_path / "torn.png").write_bytes(good.read_bytes()[:20])
    with pytest.raises(ShapeError, match="no whole picture"):
        read_mask(tmp_path / "torn.png")
    with pytest.raises(MissingError, match="mask is missing"):
        read_mask(tmp_path / "none.png")


def test_an_index_gives_pictures_masks_and_labels(tmp_path: Path):
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :20] = 255
    rows = []
    for i in range(30):
        save(tmp_path / f"image{i}.png", np.full((20, 40, 3), i))
        save(tmp_path / f"mask{i}.png", mask)
        rows.append({"image": f"image{i}.png", "mask": f"mask{i}.png", "group": f"scene {i}"})
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = DataConfig(str(tmp_path))
    split = [examples(data, held) for held in (False, True)]
    assert len(split[0]) + len(split[1]) == 30
    assert 0 < len(split[1]) < 10
    [first, *_] = list(read(split[0], data, ENCODER))
    assert first.picture.shape == (20, 40, 3)
    assert first.mask.shape == (48, 48)
    assert first.labels.reshape(4, 4).tolist() == [[1, 1, 0, 0]] * 4
    assert len(examples(replace(data, frames=5), False)) == 5
    (tmp_path / "index.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(ConfigError, match="line 1 is no row of an index"):
        examples(data, False)


def test_demonstrations_give_both_cameras_with_their_labels(demos: Path):
    data = DataConfig(str(demos), foreground=("thing",), ignore=("other",))
    found = examples(data, False)
    assert len(found) + len(examples(data, True)) == 4 * 4 * 2
    for example in read(found, data, ENCODER):
        bright = example.picture.reshape(4, 12, 4, 12, 3).mean(axis=(1, 3, 4)) > 150
        assert np.array_equal(example.labels.reshape(4, 4) == 1, bright)
        assert np.array_equal(example.mask[::12, ::12].reshape(-1), example.labels)


def test_demonstrations_that_do_not_fit_are_refused(demos: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="did you mean 'thing'"):
        examples(DataConfig(str(demos), foreground=("things",)), False)
    with pytest.raises(ConfigError, match="'foreground' names no patch class"):
        examples(DataConfig(str(demos)), False)
    twice = DataConfig(str(demos), foreground=("thing",), ignore=("thing",))
    with pytest.raises(ConfigError, match="'thing' is foreground and ignored"):
        examples(twice, False)
    with pytest.raises(MissingError, match="no frames to train on"):
        examples(DataConfig(str(tmp_path), foreground=("thing",)), False)
    data, large = DataConfig(str(demos), foreground=("thing",)), replace(ENCODER, rows=8)
    with pytest.raises(ShapeError, match="patch labels are 4 x 4, the encoder has 8 x 4"):
        next(read(examples(data, False), data, large))


def test_shards_that_cannot_be_read_are_named(demos: Path, tmp_path: Path):
    import h5py

    data = DataConfig(str(tmp_path), foreground=("thing",))
    shard = tmp_path / "shard.hdf5"
    shard.write_bytes((demos / "shard.hdf5").read_bytes()[:2000])
    with pytest.raises(ShapeError, match=r"shard\.hdf5 is no whole HDF5 file"):
        examples(data, False)
    with h5py.File(shard, "w") as file:  # as LIBERO's own
        file.create_group("data").attrs["problem_info"] = "{}"
    with pytest.raises(ShapeError, match="no demonstrations of ours, which say what each patch"):
        examples(data, False)
    with pytest.raises(MissingError, match="no frames to train on; give a folder"):
        examples(replace(data, source=str(demos / "shard.hdf5")), False)


def test_precision_is_within_a_frame():
    labels = torch.tensor([[1, 0, 0, 2], [1, 1, 0, 0], [0, 0, 0, 0]])
    perfect = torch.tensor([[0.9, 0.1, 0.2, 5.0], [-3.0, -4.0, -5.0, -6.0], [1.0, 2.0, 3.0, 4.0]])
    assert average_precision(perfect, labels) == 1.0
    assert average_precision(torch.zeros(3, 4), labels) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert average_precision(perfect[2:], labels[2:]) != average_precision(perfect, labels)


def test_recall_names_the_best_that_can_be():
    labels = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    found, best = recall_at(scores, labels, 0.25)
    assert found == pytest.approx((1 / 3 + 0) / 2)
    assert best == pytest.approx((1 / 3 + 1) / 2)
