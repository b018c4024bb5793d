"""Multiply-accumulate counts of decoders, and the ideals that follow from them.

The count per layer is that of the VLA-Pruner release (ALGORITHMS.md 1.6): ``4 n d^2 + 2 n^2 d + 3
n d m`` for ``n`` tokens, width ``d`` and a gated feed-forward of width ``m``. Norms, softmax and
the selection itself are not counted; grouped key/value heads are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """What the count needs to know about a decoder."""

    layers: int
    hidden: int
    ffn: int
    kv_ratio: float = 1.0  # key/value heads over query heads

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From a decoder's transformers config, such as ``LlamaConfig``."""
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_key_value_heads / config.num_attention_heads,
        )


def layer_macs(n: int, shape: DecoderShape) -> float:
    """Multiply-accumulates of one layer over ``n`` tokens, no cache."""
    d, m = shape.hidden, shape.ffn
    return n * d * d * (2.0 + 2.0 * shape.kv_ratio) + 2.0 * n * n * d + 3.0 * n * d * m


def prefill_macs(shape: DecoderShape, tokens_per_layer: Sequence[int]) -> float:
    """Multiply-accumulates of one pass whose layer ``i`` sees ``tokens_per_layer[i]`` tokens."""
    return sum(layer_macs(n, shape) for n in tokens_per_layer)


def tokens_per_layer(
    shape: DecoderShape, visual: int, other: int, kept: dict[str, int]
) -> list[int]:
    """Sequence length at every layer.

    Args:
        shape: the decoder.
        visual: visual tokens before any cut.
        other: all tokens that no site may remove.
        kept: site name (``projector``, ``decoder.K``) -> visual tokens that stay.
    """
    lengths, present = [], kept.get("projector", visual)
    for layer in range(shape.layers):
        present = kept.get(f"decoder.{layer}", present)
        lengths.append(present + other)
    return lengths


def amdahl_ceiling(total: float, prunable: float) -> float:
    """Speed-up if the prunable part took no time at all."""
    return total / max(total - prunable, 1e-12)
