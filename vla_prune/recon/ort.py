"""Exported vision encoder and reconstructor on ONNX Runtime, and a policy that sees by them.

Knows nothing of how the files are made. Example::

    vision = OrtVision("export", adapter.encoder(), adapter.model.config.views, "cuda")
    with attach(build_recipe("fastdrive", 0.25), OrtAdapter(adapter, vision)) as policy:
        chunk = policy.act_one(observation, state)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_prune.adapters.encoder import EncoderSpec, fingerprint
from vla_prune.adapters.openvla import OpenVLAAdapter, Seen
from vla_prune.adapters.projector import cut_at_projector
from vla_prune.errors import (
    CheckpointError,
    MissingError,
    ShapeError,
    UnsupportedError,
    check_least,
    did_you_mean,
)
from vla_prune.pruner import PruneCall
from vla_prune.recon.bind import load_network
from vla_prune.types import Observation

KIND = "vla_prune_vision"
INDEX = "export.json"
INSTALL = "install the extra: pip install 'vla-prune[onnx]'"
FIELDS = ("kind", "encoder", "reconstructor", "views", "image_size", "kept", "k", "k_chosen")
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OrtConfig:
    """The key ``onnx`` of a policy config.

    Attributes:
        folder: that ``vla-prune export`` wrote for this policy.
        provider: ``cpu``, ``cuda`` or ``tensorrt``.
        threads: of the CPU; 0 leaves the choice to ONNX Runtime.
    """

    folder: str
    provider: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class OrtSeen:
    """What one call of the session gives.

    Attributes:
        encoded: ``[B, N, E]`` float32 tokens of all views as they left the vision encoder.
        scores: ``[B, N]`` float32 foreground scores.
        index: ``[B, k]`` int64 grid indices of the tokens that stay, ascending.
    """

    encoded: np.ndarray
    scores: np.ndarray
    index: np.ndarray


class OrtVision:
    """The vision encoder, the reconstructor and a top-k; sessions are made once.

    Args:
        folder: that ``vla-prune export`` wrote.
        encoder: of the policy that it is to serve.
        views: camera names of that policy, in order.
        provider: ``cpu``, ``cuda`` or ``tensorrt``. Where that one is not to be had the next
            slower one serves; ``notes`` and the log say so.
        threads: of the CPU; 0 leaves the choice to ONNX Runtime.

    Attributes:
        provider: the one in use, by ONNX Runtime's name.
        kept: keep ratio -> how many tokens that is, as exported.
        notes: sentences about what is not as asked for.

    Raises:
        CheckpointError: the files are another policy's.
        MissingError: no such export, or no ONNX Runtime.
    """

    def __init__(
        self,
        folder: str | Path,
        encoder: EncoderSpec,
        views: Sequence[str],
        provider: str = "cpu",
        threads: int = 0,
    ) -> None:
        folder = Path(folder)
        self._sessions: dict[str, Any] = {}
        notes: list[str] = []
        for k, name in _files(folder).items():
            session, note = open_session(folder / name, provider, threads)
            about = _read(folder / name, session)
            _check(folder / name, about, encoder, views)
            self._sessions[k] = session
            notes += [note] if note and note not in notes else []
        self.notes = tuple(notes)
        for note in notes:
            log.warning(note)
        self.provider = session.get_providers()[0]
        self.kept = {float(ratio): k for ratio, k in json.loads(about["kept"]).items()}
        self.reconstructor: str = about["reconstructor"]
        self.quantise: str = about["quantise"]
        self.image_size = int(about["image_size"])
        self.folder, self.views = folder, tuple(views)
        self.total = encoder.tokens * len(self.views)

    def see(self, images: np.ndarray, k: int | None = None) -> OrtSeen:
        """One call.

        Args:
            images: ``[B, V, 3, H, W]`` float32 in [0, 1].
            k: how many tokens of all views together stay; None for as few as were exported.

        Raises:
            ShapeError: images of another shape, a ``k`` that was not exported, or scores that are
                not finite.
        """
        expected = (len(self.views), 3, self.image_size, self.image_size)
        if images.ndim != 5 or images.shape[1:] != expected or images.dtype != np.float32:
            raise ShapeError(
                f"{self.folder}: images have shape {images.shape} of {images.dtype}, this export "
                f"takes [B, {', '.join(map(str, expected))}] of float32 (views "
                f"{', '.join(self.views)}); resize them and stack the views."
            )
        k = min(self.kept.values()) if k is None else k
        if not 1 <= k <= self.total:
            raise ShapeError(f"{self.folder}: k is {k}; give 1 to {self.total} tokens.")
        feed = {"images": np.ascontiguousarray(images)}
        if "input" in self._sessions:
            session, feed["k"] = self._sessions["input"], np.array([k], dtype=np.int64)
        elif str(k) in self._sessions:
            session = self._sessions[str(k)]
        else:
            raise ShapeError(
                f"{self.folder}: {k} tokens are no budget of this export, it has "
                f"{', '.join(self._sessions)}; choose one of them or export with --buckets."
            )
        seen = OrtSeen(*session.run(["encoded", "scores", "index"], feed))
        if not np.isfinite(seen.scores).all():
            raise ShapeError(
                f"{self.folder}: the reconstructor gave NaN or infinite scores; check the images, "
                "or export without quantisation."
            )
        return seen


class OrtAdapter:
    """An OpenVLA-family policy that sees by ONNX Runtime and acts by torch.

    Everything but seeing is the model's own. The scores travel with the tokens, as one more
    channel behind the encoder's, so whatever a recipe does with tokens it does with scores; its
    own selector, floors and budget choose by them, and equal budgets give what the session's top-k
    gives. The stage ``vision`` then holds the reconstructor too.

    Args:
        host: the policy in torch.
        vision: exported from it.
    """

    def __init__(self, host: OpenVLAAdapter, vision: OrtVision) -> None:
        self.host, self.vision = host, vision
        self.name = f"{host.name} on ONNX Runtime"

    def __getattr__(self, name: str) -> Any:
        """What the policy in torch has."""
        if name == "host":  # not made yet, such as while it is copied
            raise AttributeError(name)
        return getattr(self.host, name)

    def reconstructor(self, weights: str | None) -> Callable[[Tensor, Tensor, int], Tensor]:
        """The network of a ``foreground`` scorer with these weights, see ``recon.bind``.

        Raises:
            CheckpointError: the export has other weights.
        """
        wanted = fingerprint(load_network(weights, self.host).state_dict().items())
        if wanted != self.vision.reconstructor:
            raise CheckpointError(
                f"{self.vision.folder}: the export holds reconstructor "
                f"{self.vision.reconstructor}, the recipe names {weights or 'the shipped one'} "
                f"({wanted}); export again with those weights, or name the exported ones in the "
                "recipe."
            )
        return carried_scores

    def act(self, observations: Sequence[Observation], call: PruneCall) -> Tensor:
        """``[B, chunk, A]`` actions in physical units."""
        return self.host.act_on(self.see(observations, call), observations, call)

    def see(self, observations: Sequence[Observation], call: PruneCall) -> Seen:
        """As the policy's own, with encoder and scores from ONNX Runtime."""
        model, clock = self.host.model, call.clock
        with clock.stage("prepare"):
            images = self.host.images(observations).cpu().numpy()
        with clock.stage("vision"):
            seen = self.vision.see(images)
            encoded = torch.from_numpy(seen.encoded).to(self.host.device)
            scores = torch.from_numpy(seen.scores).to(self.host.device)
            with clock.stage("projector"):
                visual = model.projector(encoded.to(model.projector.fc1.weight.dtype))
        return cut_at_projector(visual, call, torch.cat([encoded, scores[..., None]], dim=-1))


def see_by_onnx(adapter: Any, config: OrtConfig) -> OrtAdapter:
    """A policy that sees by its export.

    Raises:
        UnsupportedError: the policy is of a family that cannot be exported.
        CheckpointError: the export is another policy's.
    """
    if not isinstance(adapter, OpenVLAAdapter):
        raise UnsupportedError(
            f"onnx: {adapter.name} cannot see by ONNX Runtime, only policies of adapter 'openvla' "
            "can; take the key out of the policy config."
        )
    views = adapter.model.config.views
    vision = OrtVision(config.folder, adapter.encoder(), views, config.provider, config.threads)
    return OrtAdapter(adapter, vision)


def carried_scores(tokens: Tensor, places: Tensor, views: int) -> Tensor:
    """The scores that came with the tokens: ``[B, N, E + 1]`` -> ``[B, N]``."""
    return tokens[..., -1]


def open_session(path: Path, provider: str, threads: int) -> tuple[Any, str | None]:
    """A session, and a sentence if it does not run on the provider that was asked for."""
    if provider not in PROVIDERS:
        raise did_you_mean("ONNX Runtime", "provider", provider, PROVIDERS)
    if find_spec("onnxruntime") is None:
        raise MissingError(f"{path}: onnxruntime is not installed; {INSTALL}.")
    check_least("ONNX Runtime", 0, threads=threads)
    if not path.is_file():
        raise MissingError(f"{path}: no such file; run 'vla-prune export' again.")
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

    wanted, offered = PROVIDERS[provider], onnxruntime.get_available_providers()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    usable = [name for name in wanted if name in offered]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=usable)
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        raise CheckpointError(
            f"{path} is no ONNX file that can run here ({str(error).splitlines()[0]}); run "
            "'vla-prune export' again."
        ) from error
    used = session.get_providers()[0]
    if used == wanted[0]:
        return session, None
    why = "offers" if wanted[0] not in offered else "could not start it, though it offers"
    return session, (
        f"provider {provider!r} ({wanted[0]}) was asked for, but ONNX Runtime "
        f"{onnxruntime.__version__} here {why} {', '.join(offered)}; running on {used}. For a GPU "
        "install 'vla-prune[onnx-gpu]' in place of 'vla-prune[onnx]', with the CUDA and TensorRT "
        "libraries of its release."
    )


def _files(folder: Path) -> dict[str, str]:
    """``{"input" or K: file}`` of an export."""
    path = folder / INDEX
    if not path.is_file():
        raise MissingError(f"{folder}: no {INDEX}; give a folder of 'vla-prune export'.")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} names no files ({error!r}); run 'vla-prune export' again."
        ) from error
    return dict(files)


def _read(path: Path, session: Any) -> dict[str, str]:
    """Our metadata of an ONNX file, by name."""
    found = session.get_modelmeta().custom_metadata_map
    about = {key.removeprefix("vla_prune."): value for key, value in found.items()}
    if about.get("kind") != KIND or not set(FIELDS) <= about.keys():
        raise CheckpointError(
            f"{path}: this ONNX file has no metadata of ours; give a folder that 'vla-prune "
            "export' wrote."
        )
    return about


def _check(path: Path, about: dict[str, str], encoder: EncoderSpec, views: Sequence[str]) -> None:
    """Refuse another policy's files."""
    made_for = EncoderSpec(**json.loads(about["encoder"]))
    differs = made_for.mismatch(encoder)
    if differs is None and json.loads(about["views"]) != list(views):
        differs = "views", ", ".join(json.loads(about["views"])), ", ".join(views)
    if differs:
        name, have, want = differs
        raise CheckpointError(
            f"{path}: exported from a policy with {name} {have}, this one has {want}; run "
            "'vla-prune export' for this policy."
        )
