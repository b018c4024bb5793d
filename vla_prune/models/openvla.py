"""OpenVLA and OpenVLA-OFT as one plain module: towers, projector, Llama decoder, action head.

Each stage is a method of its own, because pruning happens between them and inside the decoder.
This file knows no published names (``loader``) and no pruning.

Example::

    model = OpenVLA(openvla_oft_7b())
    visual = model.encode_images(images)                            # [B, 512, 4096]
    inputs = model.build_inputs(visual, input_ids, proprio)
    chunk = model.predict_chunk(model.decode(inputs), inputs)       # [B, 8, 7], normalised

Checked with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from vla_prune.errors import ShapeError, UnsupportedError
from vla_prune.models import checkpoint
from vla_prune.models.actions import ActionTokenizer, Statistics
from vla_prune.models.config import OpenVLAConfig
from vla_prune.models.heads import ActionHead, Projector, ProprioProjector
from vla_prune.models.sequence import OpenVLAInputs, pad_after_bos, tail_positions
from vla_prune.models.vision import ConvTower, Normalise, build_tower


class OpenVLA(nn.Module):
    """A policy of the OpenVLA family (arXiv 2406.09246; OFT: arXiv 2502.19645).

    Published weights are read by ``vla_prune.models.loader``.

    Attributes:
        config: the sizes.
        statistics: normalisation statistics that came with the weights, or None.
    """

    visual_offset = 1
    """Rotary position of visual token 0: only BOS stands before it."""

    def __init__(self, config: OpenVLAConfig, statistics: Statistics | None = None) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.towers = nn.ModuleList(build_tower(tower) for tower in config.towers)
        llm = LlamaConfig(**config.llm, attn_implementation="sdpa")
        if config.form == "oft":
            # Read by transformers' mask builder and, as a keyword, by the attention function: the
            # mask is then None (or padding alone) and the fused kernel is not causal.
            llm.is_causal = False
        self.language_model = LlamaForCausalLM(llm)
        width = llm.hidden_size
        vision_dim = sum(tower.hidden_size for tower in config.towers)
        self.projector = Projector(vision_dim, width, fused=len(config.towers) > 1)
        self.proprio_projector = None
        self.action_head = None
        self.slot_embedding = None
        if config.proprio_dim is not None:
            self.proprio_projector = ProprioProjector(config.proprio_dim, width)
        if config.form == "oft":
            self.action_head = ActionHead(
                config.slots_per_step * width,
                config.head_hidden or width,
                config.action_dim,
                config.head_blocks,
            )
        if config.form == "oft" and config.learned_slots:
            slots = torch.randn(config.n_slots, width) * llm.initializer_range
            self.slot_embedding = nn.Parameter(slots)

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of one view's tokens."""
        return self.config.token_grid

    @property
    def n_visual(self) -> int:
        """Visual tokens of all views together."""
        return self.config.n_visual

    @property
    def bidirectional(self) -> bool:
        """Whether every row sees every other: the OFT form."""
        return self.config.form == "oft"

    @property
    def action_tokenizer(self) -> ActionTokenizer:
        """Bins of the autoregressive form."""
        vocab = self.config.action_vocab or self.language_model.config.vocab_size
        return ActionTokenizer(vocab, self.config.n_bins)

    # --- images -> visual tokens ---------------------------------------------------------------

    def vision_features(self, images: Tensor) -> Tensor:
        """Features of all towers, joined by channel: ``[B, V, 3, H, W]`` -> ``[B, V * n, C]``.

        Args:
            images: in [0, 1], views in the order of ``config.views``.
        """
        size = self.config.towers[0].image_size
        expected = (len(self.config.views), 3, size, size)
        if images.shape[1:] != expected:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}, but this policy takes [B, "
                f"{', '.join(map(str, expected))}] (views {', '.join(self.config.views)}); "
                "resize them and stack the views."
            )
        flat = images.flatten(0, 1)  # [B * V, 3, H, W]
        features = torch.cat([tower(flat) for tower in self.towers], dim=-1)  # [B * V, n, C]
        return features.reshape(images.shape[0], -1, features.shape[-1])

    def encode_images(self, images: Tensor) -> Tensor:
        """Visual tokens in the decoder's space: ``[B, V, 3, H, W]`` -> ``[B, V * n, D]``."""
        return self.projector(self.vision_features(images))

    # --- visual tokens and words -> decoder inputs ---------------------------------------------

    def build_inputs(
        self,
        visual: Tensor,
        input_ids: Tensor,
        proprio: Tensor | None = None,
        text_mask: Tensor | None = None,
        visual_positions: Tensor | None = None,
    ) -> OpenVLAInputs:
        """The decoder's sequence.

        Args:
            visual: ``[B, M, D]``; fewer than ``n_visual`` after pruning, 0 for none.
            input_ids: ``[B, T]`` prompt tokens, beginning with BOS.
            proprio: ``[B, P]`` normalised robot state, where the policy takes one.
            text_mask: ``[B, T]``, False on padding, which may stand left or right of the prompt.
            visual_positions: ``[B, M]`` rotary positions of the visual tokens, needed when some
                are missing: indices among all ``n_visual`` plus ``visual_offset``.
        """
        self._check(visual, input_ids, proprio, visual_positions)
        batch, m = visual.shape[:2]
        device = visual.device
        if text_mask is not None:
            input_ids, text_mask = pad_after_bos(input_ids, text_mask.to(torch.bool))
        words = self.language_model.model.embed_tokens(input_ids)  # [B, T, D]
        parts = [words[:, :1], visual.to(words.dtype)]
        if self.proprio_projector is not None:
            dtype = self.proprio_projector.fc1.weight.dtype
            parts.append(self.proprio_projector(proprio.to(dtype))[:, None])
        parts.append(words[:, 1:])
        if self.bidirectional:
            parts.append(self._slots(batch).to(words))
            parts.append(self._stop(batch))
        embeds = torch.cat(parts, dim=1)  # [B, S, D]

        text_start = 1 + m + int(self.proprio_projector is not None)
        text_stop = text_start + input_ids.shape[1] - 1
        n_tail = embeds.shape[1] - text_stop
        contiguous = visual_positions is None and m == self.n_visual
        if visual_positions is None:
            visual_positions = torch.arange(m, device=device).expand(batch, m) + self.visual_offset
        after = self.visual_offset + self.n_visual  # first position behind the visual tokens
        positions = torch.cat(
            [
                torch.zeros(batch, 1, dtype=torch.long, device=device),
                visual_positions.to(device=device, dtype=torch.long),
                tail_positions(after, text_start - 1 - m, input_ids, text_mask, n_tail),
            ],
            dim=1,
        )
        mask = None
        if text_mask is not None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=device)
            mask[:, text_start:text_stop] = text_mask[:, 1:]
        n_slots = self.config.n_slots
        slots = (text_stop, text_stop + n_slots) if self.bidirectional else None
        shift = int(self.config.shifted_read)
        rows = (text_stop - shift, text_stop - shift + n_slots) if slots else (
            text_stop - 1, text_stop
        )  # fmt: skip
        return OpenVLAInputs(
            embeds=embeds,
            positions=positions,
            attention_mask=mask,
            visual_slots=(1, 1 + m),
            text_slots=(text_start, text_stop),
            action_slots=slots,
            action_rows=rows,
            contiguous=contiguous,
        )

    def _slots(self, batch: int) -> Tensor:
        if self.slot_embedding is not None:
            return self.slot_embedding.expand(batch, -1, -1)
        weight = self.language_model.model.embed_tokens.weight
        return weight.new_zeros(batch, self.config.n_slots, weight.shape[1])

    def _stop(self, batch: int) -> Tensor:
        # seen in training behind the actions, so a bidirectional policy needs it
        stop = self.language_model.config.eos_token_id
        return self.language_model.model.embed_tokens.weight[stop].expand(batch, 1, -1)

    def _check(
        self,
        visual: Tensor,
        input_ids: Tensor,
        proprio: Tensor | None,
        visual_positions: Tensor | None,
    ) -> None:
        if visual.shape[0] != input_ids.shape[0]:
            raise ShapeError(
                f"visual tokens for a batch of {visual.shape[0]}, prompts for "
                f"{input_ids.shape[0]}; give both the same batch."
            )
        m = visual.shape[1]
        if visual_positions is None and m not in (0, self.n_visual):
            raise ShapeError(
                f"{m} of {self.n_visual} visual tokens without visual_positions; pass their "
                "indices plus visual_offset, or the decoder would take them for the first ones."
            )
        if visual_positions is not None and visual_positions.shape != visual.shape[:2]:
            raise ShapeError(
                f"visual_positions have shape {tuple(visual_positions.shape)}, visual tokens "
                f"{tuple(visual.shape[:2])}; give one position to each token."
            )
        given = None if proprio is None else proprio.shape[-1]
        if given != self.config.proprio_dim:
            raise ShapeError(
                f"proprio has {given} entries, this policy takes {self.config.proprio_dim}; "
                "give the state it was trained with."
            )

    # --- the decoder ---------------------------------------------------------------------------

    def decode(
        self,
        inputs: OpenVLAInputs,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        """Last hidden states ``[B, S, D]``, after the final norm.

        Causal in the autoregressive form, bidirectional in the OFT form (``__init__`` says how).
        ``kwargs`` go to ``LlamaModel.forward``.
        """
        mask = inputs.attention_mask
        no_cache = past_key_values is None and not use_cache
        if mask is None and not inputs.contiguous and not self.bidirectional and no_cache:
            # Without a cache and a mask, transformers takes gaps in the positions for several
            # packed sequences and separates them. A mask of ones switches that off; it is not
            # expanded to [S, S].
            mask = torch.ones_like(inputs.positions, dtype=torch.bool)
        return self.language_model.model(
            inputs_embeds=inputs.embeds,
            position_ids=inputs.positions,
            attention_mask=mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        ).last_hidden_state

    # --- OFT: action slots -> chunk ------------------------------------------------------------

    def action_hidden(self, hidden: Tensor, inputs: OpenVLAInputs) -> Tensor:
        """What the head reads: ``[B, S, D]`` -> ``[B, chunk, slots_per_step * D]``."""
        start, stop = inputs.action_rows
        return hidden[:, start:stop].reshape(len(hidden), self.config.chunk, -1)

    def predict_chunk(self, hidden: Tensor, inputs: OpenVLAInputs) -> Tensor:
        """Normalised actions ``[B, chunk, action_dim]`` from the decoder's hidden states."""
        if self.action_head is None:
            raise UnsupportedError(
                "predict_chunk needs form 'oft', this policy is 'autoregressive'; use "
                "generate_action_tokens and action_tokenizer.decode."
            )
        dtype = self.action_head.fc1.weight.dtype
        return self.action_head(self.action_hidden(hidden, inputs).to(dtype))

    # --- autoregressive: one token after another -----------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., vocab]``."""
        return self.language_model.lm_head(hidden)

    def next_inputs(self, inputs: OpenVLAInputs, token_ids: Tensor) -> OpenVLAInputs:
        """The inputs of the decode step after ``inputs``, for a cache that has seen those.

        Args:
            inputs: of the step before.
            token_ids: ``[B]``, what that step chose.
        """
        mask = inputs.attention_mask
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        return OpenVLAInputs(
            embeds=self.language_model.model.embed_tokens(token_ids[:, None]),
            positions=inputs.positions[:, -1:] + 1,
            attention_mask=mask,
            visual_slots=(0, 0),
            text_slots=(0, 1),
            action_slots=None,
            action_rows=(0, 1),
            contiguous=inputs.contiguous,
        )

    def generate_action_tokens(
        self, inputs: OpenVLAInputs, past_key_values: Cache | None = None
    ) -> Tensor:
        """Greedy action tokens ``[B, action_dim]``: a prefill, then one step per further token.

        Args:
            inputs: of ``build_inputs``.
            past_key_values: an empty cache to fill, for callers who look at it afterwards.
        """
        if self.bidirectional:
            raise UnsupportedError(
                "generate_action_tokens needs form 'autoregressive', this policy is 'oft'; use "
                "predict_chunk."
            )
        cache = DynamicCache(config=self.language_model.config)
        cache = cache if past_key_values is None else past_key_values
        tokens: list[Tensor] = []
        for _ in range(self.config.action_dim):
            hidden = self.decode(inputs, past_key_values=cache, use_cache=True)
            tokens.append(self.logits(hidden[:, -1]).argmax(-1))
            inputs = self.next_inputs(inputs, tokens[-1])
        return torch.stack(tokens, dim=1)

    # --- all together --------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        input_ids: Tensor,
        proprio: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Normalised actions ``[B, chunk, action_dim]`` with every visual token kept."""
        inputs = self.build_inputs(self.encode_images(images), input_ids, proprio, text_mask)
        if self.bidirectional:
            return self.predict_chunk(self.decode(inputs), inputs)
        return self.action_tokenizer.decode(self.generate_action_tokens(inputs))[:, None]

    # --- files ---------------------------------------------------------------------------------

    def save_pretrained(
        self, folder: str | Path, tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None
    ) -> None:
        """Write config, weights, statistics and tokenizer to a folder, which may be new."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(self.config, folder)
        checkpoint.write_weights(self, folder)
        if tokenizer is not None:
            backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
            backend.save(str(folder / checkpoint.TOKENIZER))
        if self.statistics is not None:
            self.statistics.save(folder / checkpoint.STATISTICS)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> OpenVLA:
        """Read what ``save_pretrained`` wrote, in eval mode.

        Args:
            folder: on this machine.
            dtype: of all weights; None keeps what the file has.
            device: where the weights go.
        """
        folder = Path(folder)
        with torch.device("meta"):
            model = cls(checkpoint.read_config(folder))
        checkpoint.read_weights(model, folder, dtype, device)
        model.restore(device)
        if (folder / checkpoint.STATISTICS).is_file():
            model.statistics = Statistics.load(folder / checkpoint.STATISTICS)
        return model.eval()

    def restore(self, device: torch.device | str | None = None) -> None:
        """What no checkpoint holds: tied weights, rotary frequencies, image mean and std, layout.

        Args:
            device: of the weights; None leaves the constants where they are.
        """
        self.language_model.tie_weights()
        rotary = self.language_model.model.rotary_emb
        device = rotary.inv_freq.device if device is None else torch.device(device)
        fresh = LlamaRotaryEmbedding(self.language_model.config)
        rotary.inv_freq = fresh.inv_freq.to(device)
        rotary.original_inv_freq = fresh.original_inv_freq.to(device)
        for module in self.modules():
            if isinstance(module, Normalise):
                module.restore(device)
            elif isinstance(module, ConvTower):
                module.to(memory_format=torch.channels_last)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OpenVLA:
        # `to(bfloat16)` would round the rotary frequencies too: at position 500 that turns the
        # fastest of them by up to a radian. They stay float32, as in from_pretrained models.
        super()._apply(fn, recurse)
        if self.language_model.model.rotary_emb.inv_freq.dtype != torch.float32:
            self.restore()
        return self
