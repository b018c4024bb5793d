"""The contract of an adapter: everything we know about one model family, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from vla_prune.cost import DecoderShape
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenLayout
from vla_prune.types import Observation


class Adapter(Protocol):
    """One model family made to fit.

    Attributes:
        name: for messages, such as ``"OpenVLA-OFT"``.
        layout: the camera views and their patch grids.
        device: where the model is.
        dt_s: seconds between two actions of a chunk.
        shape: the language model, for multiply-accumulate counts.
        other_tokens: tokens of a typical sequence that no site may remove.
    """

    name: str
    layout: TokenLayout
    device: torch.device
    dt_s: float
    shape: DecoderShape
    other_tokens: int

    def sites(self) -> tuple[Site, ...]:
        """Where this model's visual tokens can be cut."""
        ...

    def attach(self, stack: ExitStack) -> None:
        """Put the hooks on; closing ``stack`` takes them off without a trace."""
        ...

    def act(self, observations: Sequence[Observation], call: PruneCall) -> Tensor:
        """``[B, H, A]`` actions in physical units. Asks ``call`` at every site it passes."""
        ...
