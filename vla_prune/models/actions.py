"""What turns model outputs into actions: the 256 bins, and the statistics of the training data.

**Gripper.** In OpenVLA's data the last action dimension is not normalised (its mask entry is
False) and reads 1 = open, 0 = closed. LIBERO's simulator wants -1 = open, +1 = closed:
``libero_gripper`` converts. Nothing else here knows a robot.

Example::

    statistics = Statistics.load("dataset_statistics.json")
    actions = statistics.unnormalise("libero_spatial_no_noops", chunk)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_prune.errors import CheckpointError, ConfigError, did_you_mean

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""What OpenVLA was trained to be asked; ``instruction`` in lower case."""

EMPTY_TOKEN = 29871
"""Llama's token for an empty word. Training put it between the prompt's colon and the first
action, so the last prompt token of a published checkpoint must be this one."""


@dataclass(frozen=True)
class ActionTokenizer:
    """Normalised actions as the last entries of a vocabulary (OpenVLA, arXiv 2406.09246, 3.2).

    ``n_bins`` edges over [-1, 1] make ``n_bins - 1`` bins; token ``vocab - i`` stands for bin
    ``i``, and the value 1.0 alone falls on edge ``n_bins``, which is read as the last bin.

    Attributes:
        vocab: size of the vocabulary before padding, 32000 for Llama 2.
        n_bins: bin edges.
    """

    vocab: int
    n_bins: int = 256

    def encode(self, actions: Tensor) -> Tensor:
        """Token ids of normalised actions, any shape; values outside [-1, 1] are clipped."""
        edges = self._edges(actions.device)
        clipped = actions.to(torch.float64).clamp(-1.0, 1.0)
        return self.vocab - torch.bucketize(clipped, edges, right=True)

    def decode(self, token_ids: Tensor) -> Tensor:
        """Bin centres of token ids, float32; an id that is no action gives the nearest bin."""
        edges = self._edges(token_ids.device)
        centres = (edges[:-1] + edges[1:]) / 2
        index = (self.vocab - token_ids - 1).clamp(0, self.n_bins - 2)
        return centres[index].to(torch.float32)

    def _edges(self, device: torch.device) -> Tensor:
        # double, as numpy's linspace in the published code: float32 edges move whole bins
        return torch.linspace(-1.0, 1.0, self.n_bins, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Statistics:
    """Normalisation statistics in OpenVLA's ``norm_stats`` form.

    Attributes:
        datasets: data set name -> ``{"action": {...}, "proprio": {...}}``, each with lists
            ``q01``, ``q99`` (or ``min``, ``max``) and optionally ``mask``, one entry a dimension;
            a dimension whose mask is False is left as it is.
        bounds: which pair is mapped to [-1, 1]: ``q99`` (OpenVLA, LIBERO) or ``minmax`` (ALOHA).
    """

    datasets: Mapping[str, Mapping[str, Any]]
    bounds: str = "q99"

    @classmethod
    def load(cls, path: str | Path, bounds: str = "q99") -> Statistics:
        """From a ``dataset_statistics.json``, or the ``norm_stats`` of a published config.json."""
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        data = data.get("norm_stats", data)
        if not data or not all(isinstance(v, dict) and "action" in v for v in data.values()):
            raise CheckpointError(
                f"{path}: no action statistics found; give a dataset_statistics.json or a "
                "config.json with norm_stats."
            )
        return cls(data, bounds)

    def save(self, path: str | Path) -> None:
        """As a ``dataset_statistics.json``."""
        Path(path).write_text(json.dumps(self.datasets, indent=1), encoding="utf-8")

    def unnormalise(self, dataset: str | None, actions: Tensor) -> Tensor:
        """Actions ``[..., A]`` in [-1, 1] to physical units. ``dataset`` may be None if one."""
        low, high, mask = self._range(dataset, "action", actions)
        return torch.where(mask, 0.5 * (actions + 1) * (high - low) + low, actions)

    def normalise(self, dataset: str | None, actions: Tensor) -> Tensor:
        """The inverse of ``unnormalise``; not clipped."""
        low, high, mask = self._range(dataset, "action", actions)
        return torch.where(mask, 2 * (actions - low) / (high - low + 1e-8) - 1, actions)

    def normalise_proprio(self, dataset: str | None, proprio: Tensor) -> Tensor:
        """Robot state ``[..., P]`` to [-1, 1], clipped (moojink/openvla-oft)."""
        low, high, mask = self._range(dataset, "proprio", proprio)
        scaled = torch.where(mask, 2 * (proprio - low) / (high - low + 1e-8) - 1, proprio)
        return scaled.clamp(-1.0, 1.0)

    def _range(self, dataset: str | None, part: str, like: Tensor) -> tuple[Tensor, ...]:
        entry = self.datasets[self.dataset(dataset)]
        if part not in entry:
            raise ConfigError(
                f"statistics of {self.dataset(dataset)!r} have no {part!r}, only "
                f"{', '.join(sorted(entry))}; use a checkpoint whose policy was trained with it."
            )
        names = ("q01", "q99") if self.bounds == "q99" else ("min", "max")
        low, high = (torch.as_tensor(entry[part][n]).to(like) for n in names)
        mask = entry[part].get("mask") or [True] * len(entry[part][names[0]])
        return low, high, torch.as_tensor(mask, dtype=torch.bool, device=like.device)

    def dataset(self, name: str | None) -> str:
        """The name itself if it is known, the only one for None, else an error."""
        if name is None:
            if len(self.datasets) != 1:
                raise ConfigError(
                    f"statistics of {len(self.datasets)} data sets and no name given; choose one "
                    f"of {', '.join(sorted(self.datasets))}."
                )
            return next(iter(self.datasets))
        if name not in self.datasets:
            raise did_you_mean("statistics", "data set", name, self.datasets)
        return name


def libero_gripper(actions: Tensor) -> Tensor:
    """Actions ``[..., A]`` with the last dimension from 1 = open, 0 = closed to LIBERO's sign.

    LIBERO's controllers take -1 = open, +1 = closed; values between are rounded to one of them,
    as the published evaluation does.
    """
    gripper = torch.where(actions[..., -1:] > 0.5, -1.0, 1.0).to(actions)
    return torch.cat([actions[..., :-1], gripper], dim=-1)
