"""Weights of a pruner on disk: config.json and model.safetensors, and whose encoder they are for.

The decoder is thrown away after training, so it is not here.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.config import check_keys
from vla_prune.errors import CheckpointError, MissingError
from vla_prune.models import checkpoint
from vla_prune.recon.model import ReconConfig, ReconPruner

KIND = "vla_prune_recon"


def save_reconstructor(
    folder: Path, pruner: ReconPruner, encoder: EncoderSpec, about: dict[str, Any] | None = None
) -> None:
    """Write a folder, which may be new.

    Args:
        folder: where.
        pruner: whose weights.
        encoder: that it was trained on.
        about: of the training, for people.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "model_type": KIND,
        "model": asdict(pruner.config),
        "encoder": asdict(encoder),
        "about": about or {},
    }
    text = json.dumps(document, indent=1) + "\n"
    (folder / checkpoint.CONFIG).write_text(text, encoding="utf-8")
    checkpoint.write_weights(pruner, folder)


def load_reconstructor(
    folder: str | Path,
    encoder: EncoderSpec,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> ReconPruner:
    """Read a folder for a model's encoder, in eval mode.

    Args:
        folder: what :func:`save_reconstructor` wrote.
        encoder: of the model that it is to serve.
        dtype: of all weights; None keeps what the file has.
        device: where the weights go.

    Raises:
        CheckpointError: it was trained on another encoder, or the folder holds something else.
        MissingError: no such folder.
    """
    folder = Path(folder)
    document = read_config(folder)
    made_for = EncoderSpec(**document["encoder"])
    if differs := made_for.mismatch(encoder):
        name, have, want = differs
        raise CheckpointError(
            f"{folder}: this reconstructor is for an encoder with {name} {have}, the policy's has "
            f"{want}; train one with 'vla-prune train recon', or name other weights."
        )
    with torch.device("meta"):
        pruner = ReconPruner(ReconConfig(**document["model"]))
    checkpoint.read_weights(pruner, folder, dtype, device)
    return pruner.eval().requires_grad_(False)


def shipped() -> list[Path]:
    """Folders of weights that are in the package."""
    room = Path(str(resources.files("vla_prune"))) / "recon"
    return sorted(path.parent for path in room.glob(f"*/{checkpoint.CONFIG}"))


def find_reconstructor(weights: str | None, encoder: EncoderSpec) -> Path:
    """The folder that a recipe means.

    Args:
        weights: a folder, a shipped name, or None for the shipped one of the encoder.
        encoder: of the model.
    """
    names = [path.name for path in shipped()]
    if weights is not None:
        if Path(weights).expanduser().is_dir():
            return Path(weights).expanduser()
        if weights in names:
            return shipped()[names.index(weights)]
        raise MissingError(
            f"foreground: weights {weights!r} are no folder here, and none are shipped by that "
            f"name ({', '.join(names) or 'none are'}); give a folder that 'vla-prune train recon' "
            "wrote."
        )
    for path in shipped():
        if read_config(path)["encoder"]["fingerprint"] == encoder.fingerprint:
            return path
    raise MissingError(
        f"foreground: no shipped reconstructor was trained on this policy's vision encoder "
        f"({encoder.fingerprint}; shipped: {', '.join(names) or 'none'}); train one with "
        "'vla-prune train recon', and name its folder as the scorer's weights."
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What stands beside the weights: ``model``, ``encoder``, and ``about`` the training.

    Raises:
        MissingError: there is none.
        CheckpointError: it is torn, or no reconstructor's.
    """
    path = folder / checkpoint.CONFIG
    if not path.is_file():
        raise MissingError(f"{folder}: no {checkpoint.CONFIG}; give a folder of a reconstructor.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is no JSON ({error}); get it again.") from error
    if document.get("model_type") != KIND:
        raise CheckpointError(
            f"{path}: model_type is {document.get('model_type')!r}, no reconstructor of ours; "
            "give a folder that 'vla-prune train recon' wrote."
        )
    if lacking := {"model", "encoder"} - document.keys():
        raise CheckpointError(f"{path}: {min(lacking)!r} is missing; get it again.")
    check_keys(f"{path}: model", ReconConfig, document["model"])
    check_keys(f"{path}: encoder", EncoderSpec, document["encoder"])
    return document
