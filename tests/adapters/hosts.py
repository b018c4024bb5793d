"""The models that the engine is tested on: tiny, real, random weights.

A host offers the same samples three ways: through its adapter, through transformers alone, and by
a slow literal reference. The reference never removes a token: it runs the transformers layers one
by one over the full sequence, with eager attention, and from a cut on masks the dropped tokens'
key columns. To put another model family through the matrix, write a host and add it to ``HOSTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PI0Config,
    PI0ForConditionalGeneration,
)

from vla_prune.adapters.bare import BareDecoderAdapter
from vla_prune.adapters.pi0 import Pi0Adapter
from vla_prune.policy import attach
from vla_prune.pruner import PruneCall, Pruner
from vla_prune.tokens import ViewGrid
from vla_prune.types import Observation, PolicyState

LAYERS = 5
HISTORY_LAYER = LAYERS // 2 - 1

TWO_VIEWS = (ViewGrid("front", 3, 4), ViewGrid("wrist", 2, 4))
ONE_VIEW = (ViewGrid("front", 3, 4),)


@dataclass
class Reference:
    """What the slow reference saw.

    Attributes:
        output: what the adapter should return.
        hidden: ``[B, S, D]`` after the decoder's last norm, uncut sequence.
        maps: per layer ``[B, H, S, S]`` probabilities of the uncut sequence.
        actions: per layer ``[B, R, S]`` probabilities of all action rows, mean over heads.
    """

    output: Tensor
    hidden: Tensor
    maps: list[Tensor]
    actions: list[Tensor]


class Host(Protocol):
    """One model family under test.

    Attributes:
        adapter: what is tested.
        decoder: the module whose layers are cut; has ``layers``, ``norm`` and ``config``.
        configs: all configs that an attached adapter touches.
        start: place of the first visual token.
        valid: ``[samples, S]`` bool over the uncut sequence, False for padding.
        prompt: where the text is in the uncut sequence.
    """

    adapter: Any
    decoder: nn.Module
    configs: Sequence[Any]
    start: int
    valid: Tensor
    prompt: slice

    def act(self, call: PruneCall, rows: Sequence[int]) -> Tensor:
        """Samples ``rows`` through the adapter."""
        ...

    def plain(self, rows: Sequence[int]) -> Tensor:
        """The same by transformers alone."""
        ...

    def reference(self, rows: Sequence[int], kept: Mapping[str, Tensor]) -> Reference:
        """The same by the slow reference. ``kept``: site -> grid indices ``[B, K]``."""
        ...


class BareHost:
    """A Llama decoder with grouped key/value heads."""

    start = 1

    def __init__(
        self,
        causal: bool = True,
        decode_steps: int = 0,
        views: tuple[ViewGrid, ...] = ONE_VIEW,
        lengths: tuple[int, ...] | None = None,
    ) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            attn_implementation="sdpa",
        )
        config.is_causal = self.causal = causal
        self.decoder = LlamaModel(config).eval()
        self.configs = [self.decoder.config]
        self.adapter = BareDecoderAdapter(self.decoder, views, 5, decode_steps)
        total = self.adapter.layout.total
        draw = torch.Generator().manual_seed(1)
        self.embeds = torch.randn(3, 1 + total + 5, 32, generator=draw).split([1, total, 5], 1)
        self.lengths = lengths
        text = torch.tensor(lengths or (5, 5, 5))[:, None] > torch.arange(5)
        self.valid = torch.cat([torch.ones(3, 1 + total, dtype=torch.bool), text], dim=1)
        self.text_valid = text if lengths else None
        self.prompt = slice(1 + total, 1 + total + 5)
        eager = LlamaConfig(**{**config.to_dict(), "attn_implementation": "eager"})
        self.eager = LlamaModel(eager).eval()
        self.eager.load_state_dict(self.decoder.state_dict())

    def act(self, call: PruneCall, rows: Sequence[int]) -> Tensor:
        valid = None if self.text_valid is None else self.text_valid[rows]
        return self.adapter.run(*(part[rows] for part in self.embeds), call, valid)

    @torch.inference_mode()
    def plain(self, rows: Sequence[int]) -> Tensor:
        steps, last = self.adapter.decode_steps, self.valid[rows].sum(1, keepdim=True)
        cache = DynamicCache(config=self.decoder.config) if steps else None
        mask = self.valid[rows] if self.lengths else None
        hidden = self.decoder(
            inputs_embeds=torch.cat([part[rows] for part in self.embeds], dim=1),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=bool(steps),
        ).last_hidden_state
        outputs = [hidden[torch.arange(len(rows)), last[:, 0] - 1][:, None]]
        for step in range(steps):
            if mask is not None:
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            hidden = self.decoder(
                inputs_embeds=outputs[-1],
                attention_mask=mask,
                position_ids=last + step,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            outputs.append(hidden)
        return torch.cat(outputs, dim=1)

    @torch.inference_mode()
    def reference(self, rows: Sequence[int], kept: Mapping[str, Tensor]) -> Reference:
        x = torch.cat([part[rows] for part in self.embeds], dim=1)
        prefix, valid = x.shape[1], self.valid[rows]
        last = valid.sum(1)
        places = torch.arange(prefix).expand(len(rows), -1)
        which = torch.arange(len(rows))
        outputs, first = [], None
        for _ in range(1 + self.adapter.decode_steps):
            # Without a cache: every decode step runs the whole, longer sequence anew.
            hidden, maps = x, []
            query, key = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
            sees = (key <= query) | (not self.causal) & (query < prefix) & (key < prefix)
            for number, layer in enumerate(self.eager.layers):
                columns = valid & ~_dropped(self, number, kept, x.shape[1])
                with _probabilities(layer.self_attn, maps):
                    hidden = layer(
                        hidden,
                        attention_mask=_additive(sees & columns[:, None]),
                        position_embeddings=self.eager.rotary_emb(hidden, places),
                    )
            hidden = self.eager.norm(hidden)
            row = hidden[:, -1] if outputs else hidden[which, last - 1]
            first = hidden if first is None else first
            outputs.append(row[:, None])
            x = torch.cat([x, row[:, None]], dim=1)
            valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
            places = torch.cat([places, last[:, None] + len(outputs) - 1], dim=1)
        steps = self.adapter.decode_steps
        actions = []
        for probabilities in maps:
            mean = probabilities.mean(1)
            rows_of = [mean[which, last - 1][:, None], mean[:, prefix : prefix + steps]]
            actions.append(torch.cat(rows_of, dim=1)[..., :prefix])
        maps = [probabilities[..., :prefix, :prefix] for probabilities in maps]
        return Reference(torch.cat(outputs, dim=1), first, maps, actions)


class Pi0Host:
    """pi0 with one or two cameras; prompts of equal or different length."""

    start = 0

    def __init__(self, cameras: tuple[str, ...] = ("front",), padded: bool = False) -> None:
        torch.manual_seed(0)
        model = PI0ForConditionalGeneration(tiny_pi0_config("sdpa")).eval()
        with torch.no_grad():  # biases and norms start trivial, and would hide a wrong mask
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        self.model = model
        self.decoder = model.model.vlm.language_model
        self.configs = [self.decoder.config, model.model.dit.config]
        self.adapter = Pi0Adapter(model, hashed_words, cameras, dt_s=0.02)
        prompts = PADDED if padded else EQUAL
        self.observations = [observation(n, cameras, prompts[n]) for n in range(3)]
        self.noise = self.adapter.noise(range(3))
        inputs = self.adapter.prepare(self.observations)
        self.valid = inputs.attention_mask
        self.prompt = slice(self.adapter.layout.total, self.valid.shape[1])
        self.eager = PI0ForConditionalGeneration(tiny_pi0_config("eager")).eval()
        self.eager.load_state_dict(model.state_dict())

    def act(self, call: PruneCall, rows: Sequence[int]) -> Tensor:
        inputs = self.adapter.prepare([self.observations[row] for row in rows])
        return self.adapter.run(inputs, self.noise[rows], call)

    def plain(self, rows: Sequence[int]) -> Tensor:
        inputs = self.adapter.prepare([self.observations[row] for row in rows])
        with torch.inference_mode():
            return self.model.sample_actions(**vars(inputs), noise=self.noise[rows])

    @torch.inference_mode()
    def reference(self, rows: Sequence[int], kept: Mapping[str, Tensor]) -> Reference:
        model, inputs = self.eager, self.adapter.prepare([self.observations[row] for row in rows])
        vlm, dit = model.model.vlm.language_model, model.model.dit
        noise, valid = self.noise[rows], inputs.attention_mask
        length, chunk = valid.shape[1], model.config.chunk_size
        hidden = model.model.embed_prefix(
            inputs.input_ids, inputs.pixel_values, inputs.pixel_attention_mask
        )
        rotary = vlm.rotary_emb(hidden, valid.cumsum(1) - 1)
        cache, maps, denoised = DynamicCache(), [], [[] for _ in vlm.layers]
        for number, layer in enumerate(vlm.layers):
            columns = valid & ~_dropped(self, number, kept, length)
            mask = _additive(columns[:, None].expand(-1, length, -1))
            with _probabilities(layer.self_attn, maps):
                hidden = layer(
                    hidden,
                    attention_mask=mask,
                    position_embeddings=rotary,
                    past_key_values=cache,
                )
        prefix = vlm.norm(hidden)
        places = valid.sum(1, keepdim=True) + torch.arange(1 + chunk)
        own = torch.ones(1 + chunk, 1 + chunk, dtype=torch.bool)
        own[0, 1:] = False  # the state token sees no action
        steps = model.config.num_inference_steps
        for step in range(steps):
            time = torch.full((len(rows),), 1.0 - step / steps)
            hidden = model.embed_action_time(inputs.state, noise, time)
            rotary = dit.rotary_emb(hidden, places)
            for number, layer in enumerate(dit.layers):
                columns = valid & ~_dropped(self, number, kept, length)
                sees = [columns[:, None].expand(-1, 1 + chunk, -1), own.expand(len(rows), -1, -1)]
                seen: list[Tensor] = []
                with _probabilities(layer.self_attn, seen):
                    hidden = layer(
                        hidden,
                        attention_mask=_additive(torch.cat(sees, dim=2)),
                        position_embeddings=rotary,
                        past_key_values=cache,
                    )
                denoised[number].append(seen[0].mean(1)[:, 1:, :length])
            cache.crop(-1 - chunk)
            noise = noise - model.action_out_proj(dit.norm(hidden)[:, 1:]) / steps
        actions = [torch.cat(parts, dim=1) for parts in denoised]
        return Reference(noise, prefix, maps, actions)


def tiny_pi0_config(attention: str) -> PI0Config:
    """The real architecture, five layers of width 32, one key/value head."""
    text = {"model_type": "gemma", "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 64}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vision_use_head": False}
    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": {**text, "hidden_size": 32, "intermediate_size": 48},
            "vision_config": {**vision, "image_size": 16, "patch_size": 4},
            "projection_dim": 32,
            "image_token_id": 63,
        },
        dit_config={**text, "hidden_size": 24, "intermediate_size": 32},
        chunk_size=4,
        max_state_dim=6,
        max_action_dim=7,
        num_inference_steps=3,
        attn_implementation=attention,
    )


EQUAL = ("pick up the bowl", "push the red plate", "open it now sir")
PADDED = ("pick up the very red bowl", "push", "open it now")


def hashed_words(sentences: list[str]) -> tuple[Tensor, Tensor]:
    """A tokenizer: start token 2, one id a word, newline 1, padded right."""
    rows = [[2] + [sum(w.encode()) % 50 + 3 for w in s.split()] + [1] for s in sentences]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[n < len(row) for n in range(width)] for row in rows])


def observation(seed: int, cameras: Sequence[str], prompt: str) -> Observation:
    """Seeded images and state for a tiny pi0."""
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in cameras}
    return Observation(images, prompt, rng.normal(size=6).astype(np.float32), float(seed))


HOSTS: dict[str, Callable[[], Host]] = {
    "causal": BareHost,
    "causal two views": lambda: BareHost(views=TWO_VIEWS),
    "causal decode": lambda: BareHost(decode_steps=2, views=TWO_VIEWS),
    "causal padded": lambda: BareHost(lengths=(3, 5, 4)),
    "causal padded decode": lambda: BareHost(decode_steps=2, lengths=(3, 5, 4)),
    "bidirectional": lambda: BareHost(False),
    "bidirectional decode": lambda: BareHost(False, 2, TWO_VIEWS),
    "bidirectional padded": lambda: BareHost(False, 0, TWO_VIEWS, (3, 5, 4)),
    "bidirectional padded decode": lambda: BareHost(False, 2, ONE_VIEW, (3, 5, 4)),
    "pi0": Pi0Host,
    "pi0 two views": lambda: Pi0Host(("front", "wrist")),
    "pi0 padded": lambda: Pi0Host(("front", "wrist"), padded=True),
}


@dataclass
class Recorder:
    """A real scorer (seeded ranks) that remembers what it was shown."""

    needs: frozenset[str] = frozenset()
    views: list = field(default_factory=list)

    def score(self, view):
        self.views.append(view)
        return (view.index * 7919 % 31).float() + view.tokens.float().mean(-1).sigmoid()


class Broken(RuntimeError):
    """What :class:`Raising` raises."""


@dataclass(frozen=True)
class Raising:
    """A scorer that fails in mid-call."""

    needs: frozenset[str] = frozenset()

    def score(self, view):
        raise Broken


def call(
    host: Host, pruner: Pruner, rows: Sequence[int], states: Sequence[PolicyState] | None = None
) -> tuple[Tensor, PruneCall]:
    """One call of samples ``rows`` under a recipe, as the policy makes it."""
    states = [PolicyState() for _ in rows] if states is None else states
    with attach(pruner, host.adapter):
        running = pruner.begin(states, host.adapter.layout)
        with torch.inference_mode():
            output = host.act(running, rows)
        running.finish(states)
    return output, running


def _dropped(host: Host, layer: int, kept: Mapping[str, Tensor], length: int) -> Tensor:
    """``[B, length]`` bool: columns that a cut at or before this layer removed."""
    total = host.adapter.layout.total
    batch = len(next(iter(kept.values()))) if kept else 1
    gone = torch.zeros(batch, length, dtype=torch.bool)
    for site, index in kept.items():
        if site == "projector" or int(site.split(".")[1]) <= layer:
            stays = torch.zeros(batch, total, dtype=torch.bool).scatter(1, index, True)
            gone[:, host.start : host.start + total] |= ~stays
    return gone


def _additive(sees: Tensor) -> Tensor:
    """``[B, R, S]`` bool -> ``[B, 1, R, S]`` for eager attention."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(sees.shape).masked_fill(~sees, lowest)[:, None]


@contextmanager
def _probabilities(attention: nn.Module, into: list[Tensor]):
    """Append the eager map ``[B, H, R, S]`` of one attention call."""
    handle = attention.register_forward_hook(lambda _m, _a, output: into.append(output[1]))
    try:
        yield
    finally:
        handle.remove()
