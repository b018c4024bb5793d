"""The prompt of a Qwen2.5-VL driver as token ids, and where its visual tokens are.

Knows the chat form and no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from string import Formatter
from typing import Protocol

import torch
from torch import Tensor

from vla_prune.adapters.driver_text import EgoState
from vla_prune.errors import ConfigError, ShapeError
from vla_prune.types import Observation

CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
FIELDS = ("history_s", "interval_s", "status", "instruction")


class Tokenizer(Protocol):
    """What is used of transformers' tokenizers."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Text to ids; ``<|image_pad|>`` and its kin become one id each."""
        ...

    def decode(self, token_ids: Seq[int], skip_special_tokens: bool) -> str:
        """Ids to text."""
        ...


class DriverPrompt:
    """One question about several images, cut in two behind the last of them.

    Args:
        question: ``<image>`` for each image, then any of ``{history_s}``, ``{interval_s}``,
            ``{status}`` and ``{instruction}``.
        ego: tells the state.
        sizes: visual tokens of each image.
        tokenizer: text to ids.
        image_token: id of ``<|image_pad|>``.

    Attributes:
        head: ids up to the last image, the same for every observation.
        places: where in it the visual tokens are.
        gaps: tokens between the visual tokens of one image and those of the next.
    """

    def __init__(
        self,
        question: str,
        ego: EgoState,
        sizes: Seq[int],
        tokenizer: Tokenizer,
        image_token: int,
    ) -> None:
        self.ego = ego
        self.tokenizer = tokenizer
        self.image_token = image_token
        ahead, _, self._behind = CHAT.replace("{prompt}", question).rpartition("<image>")
        unknown = _fields(self._behind) - set(FIELDS)
        if ahead.count("<image>") != len(sizes) - 1 or "{" in ahead or unknown:
            raise ConfigError(
                f"prompt {question[:60]!r}: give one <image> for each of {len(sizes)} cameras, "
                f"and behind the last one any of {', '.join('{' + name + '}' for name in FIELDS)}."
            )
        ids = self._encode((ahead + "<image>").replace("<image>", IMAGE))
        if ids.count(image_token) != len(sizes):
            raise ConfigError(
                f"the tokenizer makes {ids.count(image_token)} image tokens ({image_token}) of "
                f"{len(sizes)} images; take the checkpoint's own tokenizer."
            )
        counts = iter(sizes)
        self.head = [t for i in ids for t in [i] * (next(counts) if i == image_token else 1)]
        self.places = [n for n, token in enumerate(self.head) if token == image_token]
        later = list(accumulate(sizes))[:-1]  # the first visual token of each image but one
        self.gaps = tuple(self.places[n] - self.places[n - 1] - 1 for n in later)

    def ids(self, observations: Seq[Observation]) -> tuple[Tensor, Tensor]:
        """Whole prompts: ids ``[B, S]``, and which are no padding.

        Padding stands behind the images and in front of the words, so that images stand at the
        same places and the last token is a word in every row.
        """
        tails = [self.tail(observation) for observation in observations]
        ahead, width = len(self.head), max(map(len, tails))
        ids = torch.tensor([self.head + [0] * (width - len(t)) + t for t in tails])
        valid = torch.ones_like(ids, dtype=torch.bool)
        for row, tail in enumerate(tails):
            valid[row, ahead : ahead + width - len(tail)] = False
        return ids, valid

    def tail(self, observation: Observation) -> list[int]:
        """Ids behind the images, up to where the answer begins.

        Raises:
            ShapeError: a state of another form, or an instruction that holds an image token.
        """
        turn, instruction = self.ego.turn(observation.state), observation.instruction
        text = self._behind.format(
            history_s=self.ego.history_s,
            interval_s=self.ego.interval_s,
            status=self.ego.said(observation.state),
            instruction=f"{instruction}, next turn: {turn}" if turn else instruction,
        )
        ids = self._encode(text)
        if self.image_token in ids:
            raise ShapeError(
                f"the instruction {instruction[:60]!r} holds an image token; give plain words."
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _fields(text: str) -> set[str]:
    """Names in braces; a lone brace counts as a name."""
    try:
        return {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        return {"{"}


@dataclass(frozen=True)
class HashedWords:
    """Ids for random weights: one for each word, the image's own for ``<|image_pad|>``."""

    image_token: int

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Words and marks hashed into 0 to 31."""
        parts = re.findall(r"<\|\w+\|>|\w+|[^\w\s]", text)
        return [self.image_token if p == "<|image_pad|>" else sum(p.encode()) % 32 for p in parts]

    def decode(self, token_ids: Seq[int], skip_special_tokens: bool = True) -> str:
        """Nothing: random weights say nothing."""
        return ""
