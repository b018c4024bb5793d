"""The decoder's sequence: where its parts stand, how it is padded, which positions it has.

Pure tensor functions and one record; no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OpenVLAInputs:
    """What goes into the decoder, and where each part of it stands.

    The order is BOS, visual tokens, robot state, prompt, action slots, stop token; the parts in
    the middle and at the end exist only in the OFT form. Ranges are ``(start, stop)`` columns of
    ``embeds`` and are the same for the whole batch: padding stands *before* the prompt's words.

    Attributes:
        embeds: ``[B, S, D]``.
        positions: ``[B, S]`` rotary positions, those of the single, unpadded, unpruned sequence.
        attention_mask: ``[B, S]``, False on padding; None where nothing is padded.
        visual_slots: the visual tokens.
        text_slots: the prompt without BOS, padding included.
        action_slots: the action placeholders, None in the autoregressive form.
        action_rows: rows whose hidden state is the action: the placeholders, or (published) the
            rows one before them; in the autoregressive form the last prompt row.
        contiguous: False where positions skip the tokens that were pruned before the decoder.
    """

    embeds: Tensor
    positions: Tensor
    attention_mask: Tensor | None
    visual_slots: tuple[int, int]
    text_slots: tuple[int, int]
    action_slots: tuple[int, int] | None
    action_rows: tuple[int, int]
    contiguous: bool = True


def pad_after_bos(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Padded prompts as BOS, padding, words: left and right padding become the same.

    The prompt then ends in the same column in every row of the batch, next to the actions.
    """
    key = mask.to(torch.long)  # [B, T]: 0 padding, 1 words
    key = key.scatter(1, key.argmax(1, keepdim=True), -1)  # BOS is the first real token
    order = key.argsort(dim=1, stable=True)
    return input_ids.gather(1, order), mask.gather(1, order)


def tail_positions(
    after: int, n_state: int, input_ids: Tensor, mask: Tensor | None, n_tail: int
) -> Tensor:
    """Positions of all that follows the visual tokens: ``[B, n_state + T - 1 + n_tail]``."""
    batch, device = len(input_ids), input_ids.device
    if mask is None:
        n = n_state + input_ids.shape[1] - 1 + n_tail
        return (after + torch.arange(n, device=device)).expand(batch, n)
    words = mask[:, 1:].to(torch.long)
    state = torch.arange(n_state, device=device).expand(batch, n_state)
    text = n_state + (words.cumsum(1) - 1).clamp(min=0)  # padding is masked, its value is free
    tail = n_state + words.sum(1, keepdim=True) + torch.arange(n_tail, device=device)
    return after + torch.cat([state, text, tail], dim=1)
