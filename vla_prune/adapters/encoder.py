"""Which vision encoder a model has, so that what was trained on one is not put behind another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vla_prune.errors import UnsupportedError


@dataclass(frozen=True)
class EncoderSpec:
    """A vision encoder, as far as one camera picture goes.

    Attributes:
        dim: channels of a token as it leaves the encoder.
        rows: tokens of a picture from top to bottom.
        cols: tokens from left to right.
        patch: side of a token, pixels; a picture is ``rows * patch`` by ``cols * patch``.
        fingerprint: of the weights, see :func:`fingerprint`.
    """

    dim: int
    rows: int
    cols: int
    patch: int
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.rows * self.cols

    def mismatch(self, other: EncoderSpec) -> tuple[str, Any, Any] | None:
        """The first field in which another encoder differs, and its two values."""
        for field in fields(self):
            own, theirs = getattr(self, field.name), getattr(other, field.name)
            if own != theirs:
                return field.name, own, theirs
        return None


def encoder_of(adapter: Any) -> EncoderSpec:
    """A policy's vision encoder.

    Raises:
        UnsupportedError: its adapter does not hand out what the encoder gives.
    """
    if not hasattr(adapter, "encode"):
        raise UnsupportedError(
            f"{adapter.name} does not hand out its vision encoder's tokens, so no reconstructor "
            "can be trained on them; use a policy of adapter 'openvla' or 'qwen2_5_vl'."
        )
    return adapter.encoder()


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits of names, shapes and values.

    Values are rounded to bfloat16 first, so that weights are the same encoder whether they were
    loaded as float32, float16 or bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
