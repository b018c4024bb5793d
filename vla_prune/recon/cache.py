"""Features of the frozen encoder on disk, computed once for all trainings on the same frames.

A folder of safetensors shards; one that was interrupted goes on where it stopped. Knows no
training.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.errors import CheckpointError
from vla_prune.models.checkpoint import open_tensors
from vla_prune.recon.frames import DataConfig, chosen_hash, examples, read

SHARD = 256
ENCODE = 16  # pictures at a time
SPLITS = {"train": False, "held_out": True}
ABOUT = "about.json"


def build_cache(
    folder: Path, data: DataConfig, adapter: Any, report: Callable[[float], None] | None = None
) -> dict[str, Any]:
    """Encode all frames; returns at once where that has been done.

    Args:
        folder: for this source and this encoder alone.
        data: which frames.
        adapter: of the policy whose encoder it is: ``encoder()`` and ``encode(pictures)``.
        report: called with the share done, 0 to 1.

    Returns:
        By split, how many frames there are and a hash of which.

    Raises:
        CheckpointError: the folder holds other frames, or another encoder's features.
    """
    encoder = adapter.encoder()
    found = {split: examples(data, held) for split, held in SPLITS.items()}
    chosen = {
        split: {"count": len(frames), "hash": chosen_hash(frames)}
        for split, frames in found.items()
    }
    about = {"data": asdict(data), "encoder": asdict(encoder), "frames": chosen}
    about = json.loads(json.dumps(about))
    path = folder / ABOUT
    if path.is_file():
        _check_same(folder, json.loads(path.read_text(encoding="utf-8")), about)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    total, done = sum(map(len, found.values())), 0
    for split, frames in found.items():
        (folder / split).mkdir(exist_ok=True)
        for number, shard in enumerate(_shards(folder, split, len(frames))):
            part = frames[number * SHARD : (number + 1) * SHARD]
            if not shard.is_file():
                partial = shard.with_suffix(".partial")
                save_file(_encoded(part, data, adapter, encoder), partial)
                partial.rename(shard)
            done += len(part)
            if report:
                report(done / total)
    return chosen


def _check_same(folder: Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    for part in about:
        for key, value in about[part].items():
            had = there.get(part, {}).get(key)
            if had != value:
                raise CheckpointError(
                    f"{folder}: cached features are of {part}.{key} {had!r}, this run has "
                    f"{value!r}; name another 'cache' or delete the folder."
                )


def _shards(folder: Path, split: str, frames: int) -> list[Path]:
    """Files that hold so many frames."""
    return [folder / split / f"{n:05d}.safetensors" for n in range(-(-frames // SHARD))]


def _encoded(
    found: list[Any], data: DataConfig, adapter: Any, encoder: EncoderSpec
) -> dict[str, Tensor]:
    rows: dict[str, list] = {"features": [], "images": [], "masks": [], "labels": []}
    size = (encoder.cols * encoder.patch, encoder.rows * encoder.patch)
    stream = read(found, data, encoder)
    while batch := list(islice(stream, ENCODE)):
        features = adapter.encode([example.picture for example in batch])
        rows["features"] += features.to("cpu", torch.float16)
        for example in batch:
            image = Image.fromarray(example.picture).resize(size, Image.Resampling.BICUBIC)
            rows["images"].append(torch.from_numpy(np.array(image)))
            rows["masks"].append(torch.from_numpy(np.ascontiguousarray(example.mask)))
            rows["labels"].append(torch.from_numpy(np.ascontiguousarray(example.labels)))
    return {name: torch.stack(column).contiguous() for name, column in rows.items()}


class Cached:
    """One split of a cache, read from disk as it is needed.

    Args:
        folder: that :func:`build_cache` filled.
        split: ``train`` or ``held_out``.
    """

    def __init__(self, folder: Path, split: str) -> None:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        paths = _shards(folder, split, about["frames"][split]["count"])
        self._files = [open_tensors(path) for path in paths]
        self._ends = np.cumsum([f.get_slice("labels").get_shape()[0] for f in self._files])

    def __len__(self) -> int:
        """How many frames."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Frames at ``index``.

        Returns:
            Tokens ``[B, n, D]`` float32, images ``[B, 3, H, W]`` float in [0, 1], masks ``[B, H,
            W]`` and labels ``[B, n]`` uint8.
        """
        columns: dict[str, list[Tensor]] = {}
        for i in index:
            number = int(np.searchsorted(self._ends, i, "right"))
            row = int(i) - (int(self._ends[number - 1]) if number else 0)
            for name in ("features", "images", "masks", "labels"):
                part = self._files[number].get_slice(name)[row : row + 1]
                columns.setdefault(name, []).append(part)
        features, images, masks, labels = (torch.cat(column) for column in columns.values())
        return features.float(), images.permute(0, 3, 1, 2).float() / 255.0, masks, labels
