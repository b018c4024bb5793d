"""Literal references: the published networks written out on tensors of published names.

Written from the definitions of timm 0.9.16 (pre-norm block, fused qkv, LayerScale, exact GELU,
positions on patches only) and moojink/openvla-oft (action head). No module of ours, no shortcuts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vla_prune.models import OpenVLA
from vla_prune.models.config import TowerConfig
from vla_prune.models.names import published

Tensors = dict[str, Tensor]


def published_state(model: OpenVLA) -> Tensors:
    """The checkpoint that would map to this model: its own weights, random where unread."""
    own = model.state_dict()
    state = {}
    for entry in published(model.config).values():
        if entry.ours:
            state[entry.name] = torch.cat([own[name] for name in entry.ours]).clone()
        else:
            state[entry.name] = torch.randn(entry.shape)
        assert tuple(state[entry.name].shape) == entry.shape, entry.name
    return state


def gelu(x: Tensor) -> Tensor:
    """The exact form."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def linear(x: Tensor, t: Tensors, name: str) -> Tensor:
    """Weights of ``name``."""
    return x @ t[name + ".weight"].T + t[name + ".bias"]


def layer_norm(x: Tensor, t: Tensors, name: str, eps: float) -> Tensor:
    """Over the last dimension."""
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + eps) * t[name + ".weight"] + t[name + ".bias"]


def timm_attention(x: Tensor, t: Tensors, name: str, heads: int) -> Tensor:
    """Fused qkv, split as ``[3, heads, head_dim]``."""
    batch, n, width = x.shape
    qkv = linear(x, t, name + ".qkv").reshape(batch, n, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(width // heads)).softmax(-1)
    return linear((weights @ v).transpose(1, 2).reshape(batch, n, width), t, name + ".proj")


def timm_block(x: Tensor, t: Tensors, name: str, heads: int) -> Tensor:
    """Pre-norm block; LayerScale where the checkpoint has it."""
    one = torch.ones(())
    y = timm_attention(layer_norm(x, t, name + ".norm1", 1e-6), t, name + ".attn", heads)
    x = x + y * t.get(name + ".ls1.scale_factor", one)
    y = gelu(linear(layer_norm(x, t, name + ".norm2", 1e-6), t, name + ".mlp.fc1"))
    return x + linear(y, t, name + ".mlp.fc2") * t.get(name + ".ls2.scale_factor", one)


def timm_tower(images: Tensor, t: Tensors, name: str, tower: TowerConfig) -> Tensor:
    """Second-to-last block's patches, no final norm: get_intermediate_layers(n={depth - 2})."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.mean, tower.std))
    p, side = tower.patch_size, tower.side
    x = (images - mean) / std
    x = x[:, :, : side * p, : side * p].reshape(len(x), 3, side, p, side, p)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), side * side, 3 * p * p)
    weight = t[name + ".patch_embed.proj.weight"].flatten(1)
    x = x @ weight.T + t[name + ".patch_embed.proj.bias"] + t[name + ".pos_embed"]
    before = [t[name + "." + k] for k in ("cls_token", "reg_token") if name + "." + k in t]
    x = torch.cat([*(b.expand(len(x), -1, -1) for b in before), x], dim=1)
    n_before = x.shape[1] - side * side
    taken = None
    for i in range(tower.layers):
        x = timm_block(x, t, f"{name}.blocks.{i}", tower.heads)
        if i == tower.layers - 2:
            taken = x[:, n_before:]
    return taken


def mlp_resnet(x: Tensor, t: Tensors, name: str, blocks: int = 2) -> Tensor:
    """The L1 head."""
    x = linear(layer_norm(x, t, name + ".layer_norm1", 1e-5), t, name + ".fc1").clamp(min=0)
    for i in range(blocks):
        ffn = f"{name}.mlp_resnet_blocks.{i}.ffn"
        x = linear(layer_norm(x, t, ffn + ".0", 1e-5), t, ffn + ".1").clamp(min=0) + x
    return linear(layer_norm(x, t, name + ".layer_norm2", 1e-5), t, name + ".fc2")
