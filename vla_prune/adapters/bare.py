"""A bare decoder over random embeddings: what ``bench`` times and what engine tests are made of.

Reads: nothing but the decoder; observations are only counted.
Changes: see :mod:`vla_prune.adapters.decoder`.
Checked with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from vla_prune.adapters.decoder import DecoderHooks, DecoderRun, RowSet, Sequence
from vla_prune.adapters.projector import PROJECTOR, cut_at_projector
from vla_prune.cost import DecoderShape
from vla_prune.errors import did_you_mean
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenLayout, ViewGrid
from vla_prune.types import Observation


class BareDecoderAdapter:
    """A Llama-like decoder fed with one start token, seeded random visual tokens and text tokens.

    Args:
        decoder: such as ``LlamaModel``; ``config.is_causal = False`` makes it bidirectional.
        views: the patch grids.
        text_tokens: prompt length.
        decode_steps: greedy steps after the prefill, each feeding the last hidden state back; 0
            for none.
        seed: of the embeddings, drawn anew for every batch size.
    """

    dt_s = 0.1

    def __init__(
        self,
        decoder: nn.Module,
        views: tuple[ViewGrid, ...],
        text_tokens: int,
        decode_steps: int = 0,
        seed: int = 0,
    ) -> None:
        config = decoder.config
        self.name = f"a bare {type(decoder).__name__}"
        self.decoder = decoder
        self.layout = TokenLayout(views)
        self.text_tokens = text_tokens
        self.decode_steps = decode_steps
        self.seed = seed
        self._embeddings: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.other_tokens = 1 + text_tokens
        self.shape = DecoderShape.of(config)
        self.causal = getattr(config, "is_causal", True)
        self.hooks = DecoderHooks(decoder, ("last", "prompt", "prefill"))

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return next(self.decoder.parameters()).device

    def sites(self) -> tuple[Site, ...]:
        """``projector`` and every decoder layer."""
        return (PROJECTOR, *self.hooks.sites())

    def attach(self, stack: ExitStack) -> None:
        """Put the decoder hooks on."""
        self.hooks.attach(stack)

    def embeddings(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Seeded start ``[B, 1, D]``, visual ``[B, M, D]`` and text ``[B, T, D]`` embeddings.

        Drawn once per batch size: the draw is no part of what a bench times.
        """
        if batch not in self._embeddings:
            self._embeddings[batch] = self._draw(batch)
        return self._embeddings[batch]

    def _draw(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        length, hidden = self.layout.total + self.other_tokens, self.shape.hidden
        one = torch.randn(batch, length, hidden, generator=generator)
        x = one.to(self.device, next(self.decoder.parameters()).dtype)
        return x.split([1, self.layout.total, self.text_tokens], dim=1)

    def act(self, observations: Seq[Observation], call: PruneCall) -> Tensor:
        """``[B, 1 + decode_steps, D]``: the last row of every pass."""
        return self.run(*self.embeddings(len(observations)), call)

    def run(
        self,
        start: Tensor,
        visual: Tensor,
        text: Tensor,
        call: PruneCall,
        valid: Tensor | None = None,
    ) -> Tensor:
        """One prefill and the decode steps.

        Args:
            start: ``[B, 1, D]``.
            visual: ``[B, M, D]``.
            text: ``[B, T, D]``, padded on the right where ``valid`` says so.
            call: the running policy call.
            valid: ``[B, T]`` bool, False for padding; None if nothing is padded.

        Returns:
            ``[B, 1 + decode_steps, D]`` hidden states of the last prompt token and of each decode
            step.
        """
        total = visual.shape[1]
        visual, index, counts = cut_at_projector(visual, call)
        sequence, positions, mask = self._sequence(index, counts, visual, text.shape[1], valid)
        embeds = torch.cat([start, visual, text], dim=1)
        run = DecoderRun(sequence, call, self._action_layer(call))
        with self.hooks.running(run):
            return self._passes(run, embeds, positions, mask, total)

    def _sequence(
        self,
        index: Tensor,
        counts: tuple[int, ...] | None,
        features: Tensor,
        text: int,
        valid: Tensor | None,
    ) -> tuple[Sequence, Tensor, Tensor | None]:
        batch, n = index.shape
        device = index.device
        length = 1 + n + text
        behind = 1 + self.layout.total + torch.arange(text, device=device).expand(batch, -1)
        positions = torch.cat([torch.zeros_like(index[:, :0]), index + 1, behind], dim=1)
        positions = torch.cat([positions.new_zeros(batch, 1), positions], dim=1)
        prompt = RowSet(slice(1 + n, length))
        last, prefill, mask = RowSet(slice(length - 1, length)), RowSet(slice(0, length)), None
        if valid is not None:
            ahead = torch.ones(batch, 1 + n, dtype=torch.bool, device=device)
            mask = torch.cat([ahead, valid], dim=1)
            prompt = RowSet(prompt.rows, valid)
            prefill = RowSet(prefill.rows, mask)
            last = RowSet((mask.sum(1, keepdim=True) - 1).long())
        rows = {"last": last, "prompt": prompt, "prefill": prefill, "action": last}
        return Sequence(1, index, counts, features, rows, self.causal), positions, mask

    def _passes(
        self, run: DecoderRun, embeds: Tensor, positions: Tensor, mask: Tensor | None, total: int
    ) -> Tensor:
        cache = DynamicCache(config=self.decoder.config) if self.decode_steps else None
        with run.call.clock.stage("prefill"):
            hidden = self._forward(embeds, positions, mask, cache)
        rows = run.sequence.rows["last"]
        outputs = [rows.take(hidden, dim=1)]
        following = self._next_position(positions, mask)
        for _ in range(self.decode_steps):
            if mask is not None:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            with run.call.clock.stage("decode"):
                outputs.append(self._forward(outputs[-1], following, mask, cache))
            following = following + 1
        return torch.cat(outputs, dim=1)

    def _forward(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache: DynamicCache | None
    ) -> Tensor:
        if mask is None and cache is None:
            # Without a cache transformers takes gapped positions for packed sequences; an explicit
            # 2-D mask of ones keeps it from looking, and from building a 4-D one.
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return self.decoder(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    @staticmethod
    def _next_position(positions: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return positions[:, -1:] + 1
        return positions.masked_fill(~mask, -1).amax(dim=1, keepdim=True) + 1

    def _action_layer(self, call: PruneCall) -> int:
        history = call.pruner.history
        asked = history.layer if history is not None else None
        return self.shape.layers // 2 - 1 if asked is None else asked


def build(data: dict[str, Any]) -> BareDecoderAdapter:
    """From a policy config; see ``configs/policy/decoder12.yaml``. Random weights, seeded."""
    known = (
        "llm",
        "views",
        "text_tokens",
        "decode_steps",
        "bidirectional",
        "seed",
        "dtype",
        "device",
    )
    for key in data:
        if key not in known:
            raise did_you_mean("policy bare_decoder", "field", key, known)
    config = LlamaConfig(**data["llm"], attn_implementation="sdpa")
    config.is_causal = not data.get("bidirectional", False)
    torch.manual_seed(data.get("seed", 0))
    decoder = LlamaModel(config).eval()
    device = data.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    decoder = decoder.to(device, getattr(torch, data.get("dtype", "float32")))
    views = tuple(ViewGrid(**view) for view in data["views"])
    return BareDecoderAdapter(
        decoder, views, data["text_tokens"], data.get("decode_steps", 0), data.get("seed", 0)
    )
