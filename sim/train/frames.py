"""Demonstration frames in memory, as a trainer wants them. Knows no simulator.

The files are those of :mod:`vla_prune_sim.train.demos` and of
:mod:`vla_prune_sim.train.drive_demos`. Shards may still be arriving: call
:meth:`FrameSet.refresh` now and then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_prune.recon.frames import dataset, is_held_out, open_demonstrations


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    Attributes:
        images: ``[B, V, 3, H, W]`` float in [0, 1].
        proprio: ``[B, P]`` physical units.
        actions: ``[B, chunk, A]`` physical units, what the expert would do next.
        labels: ``[B, V * n]`` patch class, see `FrameSet.classes`.
        offsets: ``[B, D]`` what is good to know, such as metres from the hand to the target.
        instructions: one sentence each.
    """

    images: Tensor
    proprio: Tensor
    actions: Tensor
    labels: Tensor
    offsets: Tensor
    instructions: list[str]


class FrameSet:
    """All sampled frames of a folder of demonstration shards.

    Args:
        folder: where the ``*.hdf5`` shards are.
        held_out: take about every tenth demonstration (for validation), or all others.

    Attributes:
        views: camera names, in order.
        classes: names of the patch classes.
    """

    def __init__(self, folder: str | Path, held_out: bool = False) -> None:
        self.folder = Path(folder)
        self.held_out = held_out
        self._seen: set[str] = set()
        self.images: list[np.ndarray] = []
        self.rows: list[tuple[np.ndarray, ...]] = []
        self.sentences: list[str] = []
        self.views: tuple[str, ...] = ()
        self.classes: tuple[str, ...] = ()
        self.refresh()

    def __len__(self) -> int:
        return len(self.images)

    def refresh(self) -> int:
        """Read shards that have arrived since; returns how many frames there are now."""
        for path in sorted(self.folder.glob("**/*.hdf5")):
            if str(path) in self._seen:
                continue
            self._seen.add(str(path))
            with open_demonstrations(path) as file:
                about = file["data"].attrs
                self.views = tuple(json.loads(about["views"]))
                self.classes = tuple(json.loads(about["patch_labels"]))
                self._chunk = int(about["chunk"])
                for demo in file["data"].values():
                    if is_held_out(str(int(demo.attrs["seed"]))) == self.held_out:
                        self._add(demo)
        return len(self)

    def _add(self, demo) -> None:
        where, state, patches = (
            demo["frame_index"][()],
            demo["states8"][()],
            demo["aux/patches"][()],
        )
        pictures = [demo[f"obs/{dataset(view)}"][()] for view in self.views]
        views = np.stack(pictures, axis=1)  # [F, V, H, W, 3]
        chunks, offsets = _chunks(demo, where, self._chunk), _offsets(demo, state)
        for row in range(len(where)):
            self.images.append(views[row])
            self.rows.append((state[row], chunks[row], patches[row].reshape(-1), offsets[row]))
            self.sentences.append(str(demo.attrs["instruction"]))

    def batch(
        self, index: np.ndarray, shift: int = 0, seed: int | None = None, images: bool = True
    ) -> Batch:
        """Frames at ``index``; with a seed, images are jittered in place, gain and noise.

        Without ``images`` there are none in the batch: ``[0]``.
        """
        seen = torch.empty(0)
        if images:
            stacked = np.stack([self.images[i] for i in index])  # [B, V, H, W, 3]
            seen = torch.from_numpy(stacked).permute(0, 1, 4, 2, 3).float().div_(255.0)
        if images and seed is not None:
            seen = augment(seen, shift, torch.Generator().manual_seed(seed))
        columns = [np.stack(column) for column in zip(*(self.rows[i] for i in index), strict=True)]
        state, actions, labels, offsets = (torch.from_numpy(column) for column in columns)
        return Batch(
            seen, state, actions, labels.long(), offsets, [self.sentences[i] for i in index]
        )


def patch_labels(folder: str | Path, held_out: bool) -> Iterator[np.ndarray]:
    """Patch classes alone, demonstration by demonstration: ``[F, V * n]`` uint8."""
    for path in sorted(Path(folder).glob("**/*.hdf5")):
        with open_demonstrations(path) as file:
            for demo in file["data"].values():
                if is_held_out(str(int(demo.attrs["seed"]))) == held_out:
                    patches = demo["aux/patches"][()]
                    yield patches.reshape(len(patches), -1)


def _chunks(demo, where: np.ndarray, length: int) -> np.ndarray:
    """``[F, chunk, A]``: written as such, or taken from the run of actions."""
    if "chunks" in demo:
        return demo["chunks"][()]
    actions = demo["actions"][()]
    return np.stack([actions[frame : frame + length] for frame in where])


def _offsets(demo, state: np.ndarray) -> np.ndarray:
    """``[F, D]``: written as such, or from the hand to the target and to the goal."""
    if "aux/offsets" in demo:
        return demo["aux/offsets"][()]
    ends = np.stack([demo["aux/target_pos"][()], demo["aux/goal_pos"][()]], axis=1)
    return (ends - state[:, None, :3]).reshape(len(state), -1)


def augment(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift by up to ``shift`` pixels, gain, offset, noise: ``[B, V, 3, H, W]`` in [0, 1]."""
    batch, views, _, height, width = images.shape
    flat = images.flatten(0, 1)
    if shift:
        padded = torch.nn.functional.pad(flat, [shift] * 4, mode="replicate")
        moves = torch.randint(0, 2 * shift + 1, (len(flat), 2), generator=generator).tolist()
        moved = [
            p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)
        ]
        flat = torch.stack(moved)
    gain = 1.0 + 0.15 * (2 * torch.rand(len(flat), 3, 1, 1, generator=generator) - 1)
    offset = 0.06 * (2 * torch.rand(len(flat), 1, 1, 1, generator=generator) - 1)
    noise = 0.02 * torch.randn(flat.shape, generator=generator)
    return (flat * gain + offset + noise).clamp_(0.0, 1.0).view(batch, views, 3, height, width)
