"""A tiny real policy, and demonstrations in which bright patches are the foreground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models import tiny
from vla_prune.adapters.openvla import OpenVLAAdapter, hashed_words
from vla_prune.models import OpenVLA
from vla_prune.recon.train import TrainConfig, train_config

SIDE, PATCH = 4, 12
VIEWS = {"image": "image_rgb", "wrist": "eye_in_hand_rgb"}
SEEDS = (0, 1, 2, 6)  # the last is held out


def tiny_adapter(seed: int = 0) -> OpenVLAAdapter:
    """Two views of 4 x 4 tokens of width 16."""
    torch.manual_seed(seed)
    return OpenVLAAdapter(OpenVLA(tiny.POCKET), hashed_words)


def built(data: dict) -> OpenVLAAdapter:
    """As the builder of a policy config's adapter."""
    return tiny_adapter()


def write_demos(folder: Path, frames: int = 4) -> Path:
    """Grey noise; of each picture some patches are bright, and labelled so."""
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "shard.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            {
                "patch_labels": json.dumps(["background", "thing", "other"]),
                "views": json.dumps(list(VIEWS)),
                "chunk": 3,
            }
        )
        for number, seed in enumerate(SEEDS):
            demo = data.create_group(f"demo_{number}")
            demo.attrs.update({"seed": seed, "instruction": "pick up the bowl"})
            patches = rng.choice(3, (frames, len(VIEWS), SIDE, SIDE), p=[0.6, 0.3, 0.1])
            large = patches.repeat(PATCH, axis=2).repeat(PATCH, axis=3)
            pictures = np.where(large == 1, 220, 60)[..., None] + rng.integers(
                0, 30, (*large.shape, 3)
            )
            demo["frame_index"] = np.arange(frames)
            demo["states8"] = np.zeros((frames, 5), np.float32)
            demo["chunks"] = np.zeros((frames, 3, 2), np.float32)
            demo["aux/offsets"] = np.zeros((frames, 3), np.float32)
            demo["aux/patches"] = patches.astype(np.uint8)
            for view, key in enumerate(VIEWS.values()):
                demo[f"obs/{key}"] = pictures[:, view].astype(np.uint8)
    return folder


@pytest.fixture(scope="session")
def adapter() -> OpenVLAAdapter:
    return tiny_adapter()


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("recon") / "demos")


@pytest.fixture(scope="session")
def settings(demos: Path):
    """``settings(out, steps=6)``: a training of the tiny policy; all share one cache."""

    def make(out: Path, **changes) -> TrainConfig:
        data = {
            "policy": "tiny",
            "data": {"source": str(demos), "foreground": ["thing"], "ignore": ["other"]},
            "out": str(out),
            "cache": str(demos.parent / "cache"),
            "model": {"ffn": 24, "heads": 2, "kv_heads": 1, "query_std": 1.0},
            "decoder": {"layers": 1, "pixels": 4},
            "steps": 6,
            "batch": 4,
            "lr": 1e-2,
            "warmup": 1,
            "log_every": 2,
            "save_every": 3,
        }
        return train_config("tiny.yaml", data | changes, 16)

    return make
