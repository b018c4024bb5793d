"""The models that the engine is tested on: tiny, real, random weights.

A host offers the same samples three ways: through its adapter, through the model alone, and by a
slow literal reference. The reference never removes a token: it runs the transformers layers one
by one over the full sequence, with eager attention, and from a cut on masks the dropped tokens'
key columns. To put another model family through the matrix, write a host and add it to ``HOSTS``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PI0Config,
    PI0ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.models import tiny
from vla_prune.adapters.bare import BareDecoderAdapter
from vla_prune.adapters.openvla import OpenVLAAdapter
from vla_prune.adapters.pi0 import Pi0Adapter
from vla_prune.adapters.qwen_prompt import HashedWords
from vla_prune.adapters.qwen_vl import QwenVLAdapter
from vla_prune.models import OpenVLA, OpenVLAConfig
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
        start: place of the first visual token; with ``places`` where they are not contiguous.
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
        """The same by the model alone."""
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
            query, key = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
            sees = (key <= query) | (not self.causal) & (query < prefix) & (key < prefix)
            sees = sees & valid[:, None]
            hidden, maps = _masked_layers(self, self.eager, x, places, sees, kept)
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


class OpenVLAHost:
    """OpenVLA: action tokens after a causal prompt, or OFT's slots that see everything.

    Greedy tokens would hide small errors, so the autoregressive form gives the logits of every
    pass beside its action.
    """

    start = 1

    def __init__(self, config: OpenVLAConfig, padded: bool = False) -> None:
        torch.manual_seed(0)
        llm = config.llm | {"num_hidden_layers": LAYERS, "eos_token_id": STOP}
        self.model = OpenVLA(replace(config, llm=llm)).eval()
        with torch.no_grad():  # biases and norms start trivial, and would hide a wrong mask
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        self.decoder = self.model.language_model.model
        self.configs = [self.decoder.config]
        self.adapter = OpenVLAAdapter(self.model, hashed_words)
        prompts = PADDED if padded else EQUAL
        side, state = config.towers[0].image_size, config.proprio_dim or 0
        self.observations = [
            observation(n, config.views, prompts[n], side, state) for n in range(3)
        ]
        words = hashed_words(list(prompts))[1][:, 1:].sum(1)
        room, ahead = int(words.max()), 1 + config.n_visual + bool(state)
        text = torch.arange(room) >= room - words[:, None]  # padding is in front of the words
        ones = torch.ones(3, ahead + config.n_slots + self.model.bidirectional, dtype=torch.bool)
        self.valid = torch.cat([ones[:, :ahead], text, ones[:, ahead:]], dim=1)
        self.prompt = slice(ahead, ahead + room)
        self.eager = copy.deepcopy(self.model)
        self.eager.language_model.set_attn_implementation("eager")

    def act(self, call: PruneCall, rows: Sequence[int]) -> Tensor:
        shown = [self.observations[row] for row in rows]
        return self._with_logits(lambda: self.adapter.act(shown, call))

    @torch.inference_mode()
    def plain(self, rows: Sequence[int]) -> Tensor:
        images, state = self._seen(rows)
        ids, mask = hashed_words([self.observations[row].instruction for row in rows])
        mask = None if mask.all() else mask
        return self._with_logits(lambda: self.model(images, ids, state, mask))

    @torch.inference_mode()
    def reference(self, rows: Sequence[int], kept: Mapping[str, Tensor]) -> Reference:
        """Sample by sample: nothing is ever padded."""
        return _sample_by_sample(self, rows, kept)

    def _alone(self, row: int, kept: Mapping[str, Tensor]) -> Reference:
        """One sample, without a cache: every decode step runs the whole, longer sequence anew."""
        model, config = self.eager, self.model.config
        decoder, outputs, first = model.language_model.model, [], None
        x, text_stop = self._sequence(row)
        prefix = x.shape[1]
        for _ in range(1 if model.bidirectional else config.action_dim):
            sees = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool)
            sees = sees if model.bidirectional else sees.tril()
            places = torch.arange(x.shape[1])[None]
            hidden, maps = _masked_layers(self, decoder, x, places, sees, kept)
            first = hidden if first is None else first
            if not model.bidirectional:
                logits = model.language_model.lm_head(hidden[:, -1:])
                token = logits.argmax(-1)
                edges = torch.linspace(-1.0, 1.0, config.n_bins, dtype=torch.float64)
                centres = ((edges[1:] + edges[:-1]) / 2).float()
                action = centres[(config.action_vocab - token - 1).clamp(0, len(centres) - 1)]
                outputs.append(torch.cat([logits, action[..., None]], dim=-1))
                x = torch.cat([x, decoder.embed_tokens(token)], dim=1)
        read = slice(text_stop - 1, None)  # the last prompt token and every decode step
        if model.bidirectional:
            read = slice(text_stop, text_stop + config.n_slots)
            if config.shifted_read:
                read = slice(read.start - 1, read.stop - 1)
            slots = hidden[:, read].reshape(1, config.chunk, -1)
            outputs.append(model.action_head(slots))
        actions = [probabilities.mean(1)[:, read, :prefix] for probabilities in maps]
        maps = [probabilities[..., :prefix, :prefix] for probabilities in maps]
        return Reference(torch.cat(outputs, dim=1), first, maps, actions)

    def _sequence(self, row: int) -> tuple[Tensor, int]:
        """Start, images, robot state, words, slots, stop ``[1, S, D]``; where the words end."""
        model, config = self.eager, self.model.config
        embed = model.language_model.model.embed_tokens
        images, state = self._seen([row])
        words = embed(hashed_words([self.observations[row].instruction])[0])
        parts = [words[:, :1], model.encode_images(images)]
        if state is not None:
            parts.append(model.proprio_projector(state)[:, None])
        parts.append(words[:, 1:])
        text_stop = sum(part.shape[1] for part in parts)
        if model.bidirectional:
            zeros = torch.zeros(config.n_slots, words.shape[2])
            parts.append((model.slot_embedding if config.learned_slots else zeros)[None])
            parts.append(embed(torch.tensor([[STOP]])))
        return torch.cat(parts, dim=1), text_stop

    def _seen(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Images ``[B, V, 3, H, W]`` and, where the policy takes one, the robot's state."""
        shown = [self.observations[row] for row in rows]
        images = np.stack([[o.images[view] for view in self.model.config.views] for o in shown])
        state = torch.from_numpy(np.stack([o.state for o in shown]))
        pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3).float() / 255.0
        return pixels, state if self.model.config.proprio_dim else None

    def _with_logits(self, act: Callable[[], Tensor]) -> Tensor:
        """Chunks of the OFT form; else ``[B, passes, vocab + 1]`` logits and actions."""
        logits: list[Tensor] = []
        head = self.model.language_model.lm_head
        handle = head.register_forward_hook(lambda _m, _a, output: logits.append(output))
        try:
            actions = act()
        finally:
            handle.remove()
        if self.model.bidirectional:
            return actions
        return torch.cat([torch.stack(logits, dim=1), actions.mT], dim=-1)


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


class QwenHost:
    """Qwen2.5-VL: text between the images, three rotary positions, greedy text.

    Greedy tokens would hide small errors, so its output is the logits of every pass.
    """

    def __init__(self, cameras: tuple[str, ...] = ("front",), padded: bool = False) -> None:
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(tiny_qwen_config("sdpa")).eval()
        with torch.no_grad():  # biases and norms start trivial, and would hide a wrong mask
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.generation_config.eos_token_id = None
        self.model = model
        self.decoder = model.model.language_model
        self.configs = [self.decoder.config]
        self.adapter = QwenVLAdapter(
            model,
            HashedWords(QWEN_IMAGE),
            tiny_qwen_processor(),
            cameras,
            image_size=(24, 32),
            state=("speed",),
            question="<image> and ".join([""] * len(cameras)) + "<image> {status} {instruction}",
            max_new_tokens=3,
        )
        prompts = PADDED if padded else EQUAL
        self.observations = [
            replace(observation(n, cameras, prompts[n], 24), state=np.array([5.25 + n]))
            for n in range(3)
        ]
        self.places = self.adapter.prompt.places
        self.start = self.places[0]
        self.valid = self.adapter.prepare(self.observations).attention_mask
        self.prompt = slice(self.places[-1] + 1, self.valid.shape[1])
        self.eager = Qwen2_5_VLForConditionalGeneration(tiny_qwen_config("eager")).eval()
        self.eager.load_state_dict(model.state_dict())

    def act(self, call: PruneCall, rows: Sequence[int]) -> Tensor:
        inputs = self.adapter.prepare([self.observations[row] for row in rows])
        return self._logits(lambda: self.adapter.run(inputs, call))

    @torch.inference_mode()
    def plain(self, rows: Sequence[int]) -> Tensor:
        inputs = self.adapter.prepare([self.observations[row] for row in rows])
        steps = self.adapter.max_new_tokens
        return self._logits(
            lambda: self.model.generate(**vars(inputs), do_sample=False, max_new_tokens=steps)
        )

    @torch.inference_mode()
    def reference(self, rows: Sequence[int], kept: Mapping[str, Tensor]) -> Reference:
        """Sample by sample, without padding or cache."""
        return _sample_by_sample(self, rows, kept)

    def _alone(self, row: int, kept: Mapping[str, Tensor]) -> Reference:
        model, decoder = self.eager, self.eager.model.language_model
        inputs = self.adapter.prepare([self.observations[row]])
        x = decoder.embed_tokens(inputs.input_ids)
        features = model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw)
        x[0, self.places] = features.pooler_output
        prefix, places, outputs, first = x.shape[1], self._positions(x.shape[1]), [], None
        for _ in range(self.adapter.max_new_tokens):
            sees = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
            hidden, maps = _masked_layers(self, decoder, x, places, sees, kept)
            first = hidden if first is None else first
            outputs.append(model.lm_head(hidden[:, -1:]))
            x = torch.cat([x, decoder.embed_tokens(outputs[-1].argmax(-1))], dim=1)
            places = torch.cat([places, places[..., -1:] + 1], dim=2)
        actions = [one.mean(1)[:, prefix - 1 :, :prefix] for one in maps]
        maps = [one[..., :prefix, :prefix] for one in maps]
        return Reference(torch.cat(outputs, dim=1), first, maps, actions)

    def _positions(self, length: int) -> Tensor:
        """``[3, 1, length]``: an image stands at one time and takes up its longer side."""
        grids = {}
        for view, at in zip(self.adapter.layout.views, self._firsts(), strict=True):
            grids[at] = view
        positions, now, place = [], 0, 0
        while place < length:
            view = grids.get(place)
            if view is None:
                positions.append((now, now, now))
                now, place = now + 1, place + 1
                continue
            for r in range(view.rows):
                positions += [(now, now + r, now + c) for c in range(view.cols)]
            now, place = now + max(view.rows, view.cols), place + view.size
        return torch.tensor(positions).T[:, None]

    def _firsts(self) -> list[int]:
        total = self.adapter.layout.total
        return self.places[:: total // len(self.adapter.layout.views)]

    def _logits(self, act: Callable[[], Tensor]) -> Tensor:
        """``[B, passes, vocab]``."""
        logits: list[Tensor] = []
        handle = self.model.lm_head.register_forward_hook(lambda _m, _a, out: logits.append(out))
        try:
            act()
        finally:
            handle.remove()
        return torch.cat(logits, dim=1)


QWEN_IMAGE = 60


def tiny_qwen_config(attention: str) -> Qwen2_5_VLConfig:
    """The real architecture, five layers of width 32, two key/value heads; windows of 2 x 2."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    text |= {"max_position_embeddings": 512, "bos_token_id": 57, "eos_token_id": 58}
    rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
    vision |= {"patch_size": 4, "window_size": 16, "out_hidden_size": 32}
    return Qwen2_5_VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision | {"fullatt_block_indexes": [1]},
        image_token_id=QWEN_IMAGE,
        video_token_id=61,
        vision_start_token_id=62,
        vision_end_token_id=63,
        attn_implementation=attention,
    )


def tiny_qwen_processor() -> Qwen2VLImageProcessorPil:
    """Patches of 4 pixels, any size."""
    size = {"shortest_edge": 64, "longest_edge": 4096}
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=size)


AUTOREGRESSIVE = replace(tiny.AUTOREGRESSIVE, views=("front",), action_dim=3)
OFT = replace(tiny.OFT, views=("front", "wrist"))
POCKET = replace(tiny.POCKET, views=("front",))
STOP = 60  # a token that no prompt has

EQUAL = ("pick up the bowl", "push the red plate", "open it now sir")
PADDED = ("pick up the very red bowl", "push", "open it now")


def hashed_words(sentences: list[str]) -> tuple[Tensor, Tensor]:
    """A tokenizer: start token 2, one id a word, newline 1, padded right."""
    rows = [[2] + [sum(w.encode()) % 50 + 3 for w in s.split()] + [1] for s in sentences]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[n < len(row) for n in range(width)] for row in rows])


def observation(
    seed: int, cameras: Sequence[str], prompt: str, side: int = 16, state: int = 6
) -> Observation:
    """Seeded images and state, in the sizes of the tiny pi0 unless given."""
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in cameras}
    return Observation(images, prompt, rng.normal(size=state).astype(np.float32), float(seed))


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
    "openvla": lambda: OpenVLAHost(AUTOREGRESSIVE),
    "openvla two views padded": lambda: OpenVLAHost(
        replace(AUTOREGRESSIVE, views=("front", "wrist")), padded=True
    ),
    "oft": lambda: OpenVLAHost(replace(OFT, views=("front",))),
    "oft two views padded": lambda: OpenVLAHost(OFT, padded=True),
    "pocket": lambda: OpenVLAHost(replace(POCKET, views=("front", "wrist"))),
    "pocket padded": lambda: OpenVLAHost(POCKET, padded=True),
    "pi0": Pi0Host,
    "pi0 two views": lambda: Pi0Host(("front", "wrist")),
    "pi0 padded": lambda: Pi0Host(("front", "wrist"), padded=True),
    "qwen": QwenHost,
    "qwen two views": lambda: QwenHost(("front", "left")),
    "qwen padded": lambda: QwenHost(("front", "left"), padded=True),
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


def visual_places(host: Host) -> Tensor:
    """``[M]``: where the visual tokens are in the uncut sequence."""
    start = host.start
    places = getattr(host, "places", range(start, start + host.adapter.layout.total))
    return torch.tensor(list(places))


def _sample_by_sample(
    host: OpenVLAHost | QwenHost, rows: Sequence[int], kept: Mapping[str, Tensor]
) -> Reference:
    """References of single samples, put where they stand in the padded batch."""
    outputs, hidden, maps, actions = [], [], [], []
    for n, row in enumerate(rows):
        alone = host._alone(row, {site: index[n : n + 1] for site, index in kept.items()})
        at = F.one_hot(host.valid[row].nonzero()[:, 0], host.valid.shape[1]).float()
        outputs.append(alone.output)
        hidden.append(at.T @ alone.hidden)
        maps.append([at.T @ one @ at for one in alone.maps])
        actions.append([one @ at for one in alone.actions])
    return Reference(
        torch.cat(outputs),
        torch.cat(hidden),
        [torch.cat(layer) for layer in zip(*maps, strict=True)],
        [torch.cat(layer) for layer in zip(*actions, strict=True)],
    )


def _dropped(host: Host, layer: int, kept: Mapping[str, Tensor], length: int) -> Tensor:
    """``[B, length]`` bool: columns that a cut at or before this layer removed."""
    total = host.adapter.layout.total
    batch = len(next(iter(kept.values()))) if kept else 1
    gone = torch.zeros(batch, length, dtype=torch.bool)
    for site, index in kept.items():
        if site == "projector" or int(site.split(".")[1]) <= layer:
            stays = torch.zeros(batch, total, dtype=torch.bool).scatter(1, index, True)
            gone[:, visual_places(host)] |= ~stays
    return gone


def _masked_layers(
    host: Host,
    decoder: nn.Module,
    x: Tensor,
    places: Tensor,
    sees: Tensor,
    kept: Mapping[str, Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Hidden states after the last norm and the maps of all layers, over the full sequence.

    ``places`` are rotary positions ``[B, S]``; ``sees`` is ``[B, S, S]`` before anything is cut.
    """
    hidden, maps = x, []
    for number, layer in enumerate(decoder.layers):
        columns = ~_dropped(host, number, kept, x.shape[1])
        with _probabilities(layer.self_attn, maps):
            hidden = layer(
                hidden,
                attention_mask=_additive(sees & columns[:, None]),
                position_embeddings=decoder.rotary_emb(hidden, places),
            )
    return decoder.norm(hidden), maps


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
