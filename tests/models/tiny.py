"""Sizes of the tiny models, one of each form."""

from __future__ import annotations

from dataclasses import replace

from vla_prune.models import OpenVLAConfig, TowerConfig

DINO = TowerConfig(
    "dinov2", 28, 7, hidden_size=16, layers=3, heads=2, mlp_hidden=64, registers=2,
    mean=(0.48, 0.45, 0.40), std=(0.22, 0.23, 0.24),
)  # fmt: skip
SIGLIP = TowerConfig("siglip", 28, 7, hidden_size=24, layers=4, heads=2, mlp_hidden=40)
CONV = TowerConfig("conv", 48, 12, hidden_size=16, layers=1)
LLAMA = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,  # large, so that a wrong mask or position shows
    "pad_token_id": 0,
}
AUTOREGRESSIVE = OpenVLAConfig(towers=(DINO, SIGLIP), llm=LLAMA, action_vocab=300)
OFT = OpenVLAConfig(
    towers=(DINO, SIGLIP), llm=LLAMA, views=("image", "wrist"), chunk=3, form="oft",
    slots_per_step=2, action_dim=2, proprio_dim=5, action_vocab=300,
)  # fmt: skip
POCKET = replace(
    OFT, towers=(CONV,), slots_per_step=1, learned_slots=True, shifted_read=False, head_hidden=24
)
CONFIGS = {"autoregressive": AUTOREGRESSIVE, "oft": OFT, "pocket": POCKET}
# A policy config, random weights.
POLICY = """# x
# y
adapter: openvla
weights: random
config:
  towers:
    - {kind: conv, image_size: 16, patch_size: 4, hidden_size: 16, layers: 0, strides: [2, 2]}
  llm: {vocab_size: 64, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 4,
        num_attention_heads: 2}
  views: [image]
  form: oft
  chunk: 2
  slots_per_step: 1
device: cpu
"""
