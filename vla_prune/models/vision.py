"""The image encoders: DINOv2 with registers, SigLIP, and a small convolutional stem.

The transformer blocks are transformers' own; this file adds what OpenVLA does around them (timm's
token layout, features of an inner block without the final norm). It knows nothing of the decoder.

Example::

    tower = build_tower(TowerConfig("conv", 144, 12, hidden_size=128, layers=1))
    tower(torch.rand(2, 3, 144, 144)).shape          # [2, 144, 128]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, SiglipVisionConfig
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersLayer,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from vla_prune.models.config import TowerConfig


class Normalise(nn.Module):
    """Images in [0, 1] to what a tower was trained on: ``(x - mean) / std`` by channel."""

    def __init__(self, config: TowerConfig) -> None:
        """Buffers of constants, outside the state dict."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.empty(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.empty(3, 1, 1), persistent=False)
        self.restore(self.mean.device)

    def restore(self, device: torch.device) -> None:
        """Write the constants again, in float32: after ``to(dtype)`` or a build on ``meta``."""
        for name in ("mean", "std"):
            values = getattr(self.config, name)
            setattr(self, name, torch.tensor(values, device=device).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` -> the same."""
        return (images - self.mean) / self.std


class ViTTower(nn.Module):
    """A vision transformer as timm 0.9 lays it out, read at an inner block.

    DINOv2 (Oquab et al., arXiv 2304.07193) with registers (Darcet et al., arXiv 2309.16588) and
    SigLIP (Zhai et al., arXiv 2303.15343). Positions are added to the patches only; class and
    register tokens stand before them and are dropped from the features. Both towers use the exact
    GELU, because timm does; transformers' SigLIP default is the tanh form.
    """

    def __init__(self, config: TowerConfig) -> None:
        """Random weights; ``config.blocks`` blocks."""
        super().__init__()
        self.config = config
        width, n = config.hidden_size, config.side**2
        self.normalise = Normalise(config)
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, n, width))
        self.class_token = self.register_tokens = None
        if config.kind == "dinov2":
            self.class_token = nn.Parameter(torch.empty(1, 1, width))
            self.register_tokens = nn.Parameter(torch.empty(1, config.registers, width))
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.blocks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal of 0.02 for weights, zero biases: the ViT default."""
        for token in (self.position_embedding, self.class_token, self.register_tokens):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1]: ``[B, 3, H, W]`` -> ``[B, n, C]``."""
        x = self.normalise(images).to(self.patch_embedding.weight.dtype)
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [B, n, C]
        x = x + self.position_embedding
        n = x.shape[1]
        if self.class_token is not None:
            before = (self.class_token, self.register_tokens)
            x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in before), x], dim=1)
        for block in self.blocks:
            x = block(x, None)
        return x[:, -n:]


def _block(config: TowerConfig) -> nn.Module:
    if config.kind == "siglip":
        return SiglipEncoderLayer(
            SiglipVisionConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_hidden,
                num_attention_heads=config.heads,
                layer_norm_eps=config.norm_eps,
                hidden_act="gelu",
                attn_implementation="sdpa",
            )
        )
    return Dinov2WithRegistersLayer(
        Dinov2WithRegistersConfig(
            hidden_size=config.hidden_size,
            mlp_ratio=config.mlp_hidden // config.hidden_size,
            num_attention_heads=config.heads,
            layer_norm_eps=config.norm_eps,
            hidden_act="gelu",
            attn_implementation="sdpa",
        )
    )


class ConvTower(nn.Module):
    """Early convolutions in place of a patch embedding, for training from scratch on a CPU.

    Strided 3x3 convolutions and a 1x1, after Xiao et al. (arXiv 2106.14881, 4), with GroupNorm
    and GELU in place of their batch norm and ReLU (a robot's batch is one image), then residual
    blocks at token resolution. Positions are a learned table that starts as a 2-D sine code, so
    that a decoder with 1-D rotary positions can tell rows from columns at once.
    """

    def __init__(self, config: TowerConfig) -> None:
        """Random weights; widths grow to ``hidden_size``, halving towards the image."""
        super().__init__()
        self.config = config
        self.normalise = Normalise(config)
        width, n_convs = config.hidden_size, len(config.strides)
        widths = [3, *(max(8, width >> (n_convs - 1 - i)) for i in range(n_convs))]
        stem: list[nn.Module] = []
        for i, stride in enumerate(config.strides):
            stem += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_groups(widths[i + 1]), widths[i + 1]),
                nn.GELU(),
            ]
        self.stem = nn.Sequential(*stem, nn.Conv2d(widths[-1], width, 1))
        self.blocks = nn.ModuleList(_ConvBlock(width) for _ in range(config.blocks))
        self.position_embedding = nn.Parameter(torch.empty(1, config.side**2, width))
        self.reset_parameters()
        self.to(memory_format=torch.channels_last)

    def reset_parameters(self) -> None:
        """Kaiming for convolutions; sines for positions."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            nn.init.zeros_(block.mix.weight)  # blocks begin as the identity
        with torch.no_grad():
            self.position_embedding.copy_(
                sine_positions(self.config.side, self.config.hidden_size)[None]
            )

    def forward(self, images: Tensor) -> Tensor:
        """Features of images in [0, 1]: ``[B, 3, H, W]`` -> ``[B, n, C]``."""
        x = self.normalise(images).to(self.position_embedding.dtype)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))  # [B, C, h, w]
        for block in self.blocks:
            x = x + block(x)
        return x.flatten(2).transpose(1, 2) + self.position_embedding


class _ConvBlock(nn.Module):
    """What a residual block adds: norm, 3x3, GELU, 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_groups(width), width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.gelu(self.conv(self.norm(x))))


def _groups(width: int) -> int:
    return next(g for g in (8, 4, 2, 1) if width % g == 0)


def sine_positions(side: int, width: int) -> Tensor:
    """A 2-D sine code, rows in the first half of the channels: ``[side * side, width]``.

    Periods run from 4 tokens to 4 image sides; amplitude 0.5, so that contents of unit variance
    are not drowned.
    """
    n_freq = (width // 2 + 1) // 2
    steps = torch.arange(n_freq) / max(1, n_freq - 1)
    freq = 2 * torch.pi / (4.0 * side**steps)  # radians per token
    angle = torch.arange(side)[:, None] * freq  # [side, n_freq]
    code = torch.cat([angle.sin(), angle.cos()], dim=-1)[:, : width // 2]  # [side, width // 2]
    rows = code[:, None].expand(side, side, -1)
    columns = code[None].expand(side, side, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(side * side, -1)
    return 0.5 * F.pad(table, (0, width - table.shape[-1]))


def build_tower(config: TowerConfig) -> nn.Module:
    """The module for a tower's config."""
    return ConvTower(config) if config.kind == "conv" else ViTTower(config)
