"""Our own folders: config.json, model.safetensors and, where there are any, tokenizer, statistics.

Only safetensors are read, never pickles. Published checkpoints have other names: see ``loader``.
Users call ``OpenVLA.save_pretrained`` and ``OpenVLA.from_pretrained``; this is what they are made
of, and it knows nothing of the model but its tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from vla_prune.errors import CheckpointError, MissingError
from vla_prune.models.config import OpenVLAConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, STATISTICS = "tokenizer.json", "dataset_statistics.json"


def write_config(config: OpenVLAConfig, folder: Path) -> None:
    """As config.json."""
    text = json.dumps(config.to_dict(), indent=1)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(folder: Path) -> OpenVLAConfig:
    """The config of a folder of ours."""
    path = folder / CONFIG
    if not path.is_file():
        raise MissingError(f"{folder}: no {CONFIG}; give a folder written by save_pretrained.")
    data = json.loads(path.read_text(encoding="utf-8"))
    if "towers" not in data:
        raise CheckpointError(
            f"{path}: no config of ours (model_type {data.get('model_type')!r}); a published "
            "OpenVLA checkpoint is read by vla_prune.models.loader.load_published."
        )
    return OpenVLAConfig.from_dict(data)


def write_weights(model: nn.Module, folder: Path) -> None:
    """As model.safetensors; tied weights are written once."""
    state = model.state_dict()
    names = tensor_names(model)
    save_file({name: state[name].contiguous() for name in names}, folder / WEIGHTS)


def read_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype | None, device: torch.device | str
) -> None:
    """Fill a model built on ``meta``, tensor by tensor."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingError(f"{folder}: no {WEIGHTS}; weights are read from safetensors only.")
    expected = tensor_names(model)
    with open_tensors(path, device) as file:
        check_names(path, expected, file.keys())
        assign(model, {name: file.get_tensor(name).to(dtype=dtype) for name in expected}, path)


def open_tensors(path: Path, device: torch.device | str = "cpu") -> safe_open:
    """A safetensors file, open.

    Raises:
        CheckpointError: it is torn, or something else.
    """
    try:
        return safe_open(path, framework="pt", device=str(device))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); get it again, or delete it where it "
            "can be made again."
        ) from error


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, ours or a published one."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise MissingError(f"{folder}: no {TOKENIZER}; put the one of the checkpoint there.")
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


def tensor_names(model: nn.Module) -> list[str]:
    """Names a checkpoint must hold: the state dict's, less the second name of a tied weight."""
    seen: set[int] = set()
    names = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            names.append(name)
        seen.add(id(tensor))
    return names


def check_names(where: str | Path, expected: Iterable[str], given: Iterable[str]) -> None:
    """Raise one sentence that names the first tensors that are missing or left over."""
    expected, given = set(expected), set(given)
    found = [
        f"{len(names)} tensors are {what} ({', '.join(sorted(names)[:3])}"
        + (", ...)" if len(names) > 3 else ")")
        for what, names in (("missing", expected - given), ("left over", given - expected))
        if names
    ]
    if found:
        raise CheckpointError(
            f"{where}: {' and '.join(found)}; take the config that these weights were saved with."
        )


def assign(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Put tensors in place of the model's, without a copy; names and shapes are checked."""
    check_names(where, tensor_names(model), state)
    own = model.state_dict()
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{where}: {name} has shape {list(tensor.shape)}, the config asks for "
                f"{list(own[name].shape)}; take the config that these weights were saved with."
            )
    model.load_state_dict(state, strict=False, assign=True)
