"""Tiny real models of the OpenVLA family: random weights, no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vla_prune.models import OpenVLA

from .tiny import CONFIGS

torch.set_num_threads(1)  # tiny tensors: threads only wait for each other on a busy machine


@pytest.fixture
def make() -> Callable[..., OpenVLA]:
    """``make("oft", chunk=2)``: a tiny model of that name, with fields replaced."""

    def build(name: str, **changes: Any) -> OpenVLA:
        torch.manual_seed(0)
        model = OpenVLA(replace(CONFIGS[name], **changes)).eval()
        with torch.no_grad():  # biases and scales start trivial, and would hide a wrong mapping
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    return build


@pytest.fixture
def batch() -> Callable[[OpenVLA], dict[str, torch.Tensor]]:
    """Arguments of ``forward`` for a batch of two."""

    def build(model: OpenVLA, words: int = 6) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        config = model.config
        size = config.towers[0].image_size
        ids = torch.randint(3, 300, (2, words), generator=generator)
        ids[:, 0] = 1
        out = {
            "images": torch.rand(2, len(config.views), 3, size, size, generator=generator),
            "input_ids": ids,
        }
        if config.proprio_dim:
            out["proprio"] = torch.randn(2, config.proprio_dim, generator=generator)
        return out

    return build
