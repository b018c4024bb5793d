"""Reads published OpenVLA and OpenVLA-OFT checkpoints: only safetensors, no remote code, no timm.

OpenVLA-OFT publishes its action head and proprio projector as pickles, which are not read here.
Convert them once, in an environment you trust them in, into the checkpoint's folder::

    import torch
    from safetensors.torch import save_file

    for part in ("action_head", "proprio_projector"):
        state = torch.load(f"{part}--150000_checkpoint.pt", weights_only=True)
        save_file({k: v.contiguous() for k, v in state.items()}, f"{part}.safetensors")

Example::

    model = load_published("checkpoints/openvla-7b", dtype=torch.bfloat16, device="cuda")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vla_prune.errors import CheckpointError, MissingError
from vla_prune.models.actions import Statistics
from vla_prune.models.checkpoint import CONFIG, STATISTICS, assign, check_names
from vla_prune.models.config import OpenVLAConfig, openvla_7b, openvla_oft_7b
from vla_prune.models.names import Entry, published
from vla_prune.models.openvla import OpenVLA

INDEX = "model.safetensors.index.json"
PARTS = ("action_head", "proprio_projector")
"""What OpenVLA-OFT keeps beside the model, each in a file of its own."""


def load_published(
    folder: str | Path,
    config: OpenVLAConfig | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> OpenVLA:
    """A published checkpoint as our model, in eval mode, with its statistics.

    Tensors are read one at a time, so memory stays at one copy of the weights.

    Args:
        folder: a local copy of the checkpoint.
        config: its sizes; None is the published 7B one, OFT where the folder has an action head.
        dtype: of all weights; None keeps what the files have (bfloat16).
        device: where the weights go.
    """
    folder = Path(folder)
    config = config or published_config(folder)
    with torch.device("meta"):
        model = OpenVLA(config)
    state = map_tensors(config, _tensors(folder, config, device, dtype), str(folder))
    assign(model, state, folder)
    model.restore(device)
    for name in (STATISTICS, CONFIG):
        path = folder / name
        if path.is_file() and (name == STATISTICS or "norm_stats" in _json(path)):
            model.statistics = Statistics.load(path)
            break
    return model.eval()


def published_config(folder: str | Path) -> OpenVLAConfig:
    """Sizes of a published checkpoint: ours for its form, with what its config.json overrides."""
    folder = Path(folder)
    is_oft = any(_part_file(folder, part) for part in PARTS)
    pickles = [path.name for part in PARTS for path in sorted(folder.glob(f"{part}*.pt"))]
    if pickles and not is_oft:
        raise MissingError(
            f"{folder}: {', '.join(pickles)} are pickles, which are not read; convert them to "
            "safetensors as vla_prune/models/loader.py shows."
        )
    config = openvla_oft_7b() if is_oft else openvla_7b()
    if not (folder / CONFIG).is_file():
        return config
    data = _json(folder / CONFIG)
    text = data.get("text_config") or {}
    llm = {**config.llm, **{k: text[k] for k in config.llm if k in text}}
    padding = data.get("pad_to_multiple_of", 64)  # rows behind the vocabulary, PAD among them
    return replace(
        config,
        llm=llm,
        action_vocab=llm["vocab_size"] - padding,
        n_bins=data.get("n_action_bins", config.n_bins),
    )


def map_tensors(
    config: OpenVLAConfig, tensors: Iterable[tuple[str, Tensor]], where: str = "checkpoint"
) -> dict[str, Tensor]:
    """Published tensors under our names, fused projections split, unread ones left out.

    Args:
        config: the sizes.
        tensors: published name and tensor; works on ``meta`` tensors too.
        where: for the error that a missing, unknown or misshapen tensor gives.
    """
    entries = published(config)
    seen: list[str] = []
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        seen.append(name)
        if name in entries:
            state |= _ours(entries[name], tensor, where)
    check_names(where, entries, seen)
    return state


def _ours(entry: Entry, tensor: Tensor, where: str) -> dict[str, Tensor]:
    if tuple(tensor.shape) != entry.shape:
        raise CheckpointError(
            f"{where}: {entry.name} has shape {list(tensor.shape)}, the config asks for "
            f"{list(entry.shape)}; pass the config of this checkpoint."
        )
    if len(entry.ours) <= 1:
        return dict.fromkeys(entry.ours, tensor)
    parts = tensor.chunk(len(entry.ours))
    return {name: part.clone() for name, part in zip(entry.ours, parts, strict=True)}


def _tensors(
    folder: Path, config: OpenVLAConfig, device: torch.device | str, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Published names and tensors of all files, one tensor in memory at a time."""
    skipped = {name for name, entry in published(config).items() if not entry.ours}
    for path, prefix in _files(folder, config):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping, it cannot be iterated
                full = prefix + name.removeprefix("module.")  # left by distributed training
                if full in skipped:
                    yield full, torch.empty(file.get_slice(name).get_shape(), device="meta")
                else:
                    yield full, file.get_tensor(name).to(dtype=dtype)


def _files(folder: Path, config: OpenVLAConfig) -> Iterator[tuple[Path, str]]:
    """The safetensors files of a checkpoint, each with the prefix that its names lack."""
    if (folder / INDEX).is_file():
        shards = sorted(set(_json(folder / INDEX)["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    for shard in shards:
        if not (folder / shard).is_file():
            raise MissingError(f"{folder}: no {shard}; copy the whole checkpoint there.")
        yield folder / shard, ""
    wanted = [config.form == "oft", config.proprio_dim is not None]
    for part in (part for part, needed in zip(PARTS, wanted, strict=True) if needed):
        path = _part_file(folder, part)
        if path is None:
            raise MissingError(
                f"{folder}: no {part}*.safetensors; convert {part}*.pt as "
                "vla_prune/models/loader.py shows, or pass a config without that part."
            )
        yield path, f"{part}."


def _part_file(folder: Path, part: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"{part}*.safetensors"))), None)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
