"""Where a training stands, as one safetensors file: weights, averages, moments and the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from vla_prune.models.checkpoint import open_tensors

OPTIMISER = "optimiser"


def write(
    path: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], optimiser: Optimizer
) -> None:
    """Replace the file at once, so that a killed run finds the one before it.

    Args:
        path: of the file.
        step: steps done.
        parts: state dicts by name.
        optimiser: whose moments belong to it.
    """
    tensors = {f"{part}.{k}": v for part, known in parts.items() for k, v in known.items()}
    for number, entry in optimiser.state_dict()["state"].items():
        tensors |= {f"{OPTIMISER}.{number}.{k}": torch.as_tensor(v) for k, v in entry.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.rename(path)


def read(path: Path, optimiser: Optimizer) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """The step and the state dicts by name; the optimiser gets its moments back.

    Raises:
        CheckpointError: the file is torn.
    """
    with open_tensors(path) as file:
        step = int(file.metadata()["step"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parts.setdefault(part, {})[name] = value
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in parts.pop(OPTIMISER, {}).items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
    # Fused AdamW on CPU walks memory as it lies: a moment must lie as its parameter does.
    for parameter, moments in optimiser.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
    return step, parts
