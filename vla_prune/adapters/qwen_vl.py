"""Qwen2.5-VL as a driver: camera images and ego state in, waypoints as text out.

Knows transformers' own ``Qwen2_5_VLForConditionalGeneration`` and nothing of scorers. Example::

    adapter = QwenVLAdapter(model, tokenizer, processor, ("CAM_FRONT",), (900, 1600))
    with attach(pruner, adapter) as policy:
        [chunk] = policy.act([observation], [policy.new_state()])  # actions [6, 2], every 0.5 s
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    DynamicCache,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from vla_prune.adapters.decoder import DecoderHooks, DecoderRun, RowSet, Sequence
from vla_prune.adapters.driver_text import (
    DRIVE_STATE,
    STEP_S,
    WAYPOINTS,
    EgoState,
    driver_prompt,
    steps_between,
    waypoints,
)
from vla_prune.adapters.encoder import EncoderSpec, fingerprint
from vla_prune.adapters.images import camera_image, resized
from vla_prune.adapters.projector import ENCODED, cut_at_projector
from vla_prune.adapters.qwen_prompt import DriverPrompt, HashedWords, Tokenizer
from vla_prune.cost import DecoderShape
from vla_prune.errors import ActionError, ShapeError, did_you_mean
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenLayout, ViewGrid
from vla_prune.types import Observation

ACTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "places": lambda places: places,
    "steps": steps_between,
}


@dataclass(frozen=True)
class QwenInputs:
    """What ``generate`` takes, by the same names.

    Attributes:
        input_ids: ``[B, S]``, see :meth:`DriverPrompt.ids`.
        attention_mask: ``[B, S]`` bool, False for padding.
        pixel_values: ``[B * patches, 3 * 2 * 14 * 14]``.
        image_grid_thw: ``[B * V, 3]`` patches of each image: 1, rows, columns.
        mm_token_type_ids: ``[B, S]``, 1 for visual tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor
    mm_token_type_ids: Tensor


class QwenVLAdapter:
    """Qwen2.5-VL (arXiv 2502.13923) in the form of Impromptu-VLA (arXiv 2505.23757).

    **Reads**: queries and keys of the decoder layers that scorers ask for. Action rows are the
    last prompt token and every decode step, until the answer has ended.

    **Changes**: nothing of the model (see :mod:`vla_prune.adapters.decoder`). The greedy loop of
    ``generate`` is written out over the model's public parts, so that positions can be given:
    kept tokens keep their three rotary positions, and what is decoded goes on behind the uncut
    prompt. Sampling and penalties of a checkpoint's ``generation_config`` are left out.

    **Checked with transformers 5.23.**

    Args:
        model: with weights; put into eval mode.
        tokenizer: of the checkpoint.
        processor: of the images; the one that needs no torchvision.
        cameras: image names, in the order in which the prompt shows them.
        image_size: height and width of the cameras' pictures, pixels; the processor makes the
            token grid of it. Pictures of another size are resized (bicubic) to that grid.
        state: what each entry of ``Observation.state`` is, see :class:`EgoState`.
        question: see :class:`~vla_prune.adapters.qwen_prompt.DriverPrompt`; that of
            :func:`~vla_prune.adapters.driver_text.driver_prompt` unless given.
        actions: ``steps`` (the way of each 0.5 s, metres, x forward and y left of where the ego
            is now; what the driving world takes) or ``places`` (of the ego, same axes).
        max_new_tokens: an answer is cut off there.
        stop_tokens: ids that end an answer; those of the model's ``generation_config`` unless
            given.
        read: text -> ``[6, 2]`` places; raises ``ActionError``.
    """

    name = "Qwen2.5-VL"
    dt_s = STEP_S

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Tokenizer,
        processor: Qwen2VLImageProcessorPil,
        cameras: Seq[str],
        image_size: tuple[int, int],
        state: Seq[str] = DRIVE_STATE,
        question: str | None = None,
        actions: str = "steps",
        max_new_tokens: int = 256,
        stop_tokens: Seq[int] | None = None,
        read: Callable[[str], np.ndarray] = waypoints,
    ) -> None:
        if actions not in ACTIONS:
            raise did_you_mean("policy qwen2_5_vl", "actions", actions, ACTIONS)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.processor = processor
        self.cameras = tuple(cameras)
        self.image_size = tuple(image_size)
        self.actions = ACTIONS[actions]
        self.max_new_tokens = max_new_tokens
        self.stop_tokens = _stops(model) if stop_tokens is None else list(stop_tokens)
        self.read = read
        factor = processor.patch_size * processor.merge_size
        least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
        self.fitted = smart_resize(*self.image_size, factor, least, most)  # height, width
        rows, cols = (side // factor for side in self.fitted)
        self.layout = TokenLayout(tuple(ViewGrid(name, rows, cols) for name in self.cameras))
        self.shape = DecoderShape.of(model.config.text_config)
        self.hooks = DecoderHooks(model.model.language_model, ("last", "prompt", "prefill"))
        self.prompt = DriverPrompt(
            driver_prompt(self.cameras) if question is None else question,
            EgoState(tuple(state)),
            self.layout.sizes,
            tokenizer,
            model.config.image_token_id,
        )
        example = self.prompt.tail(self.example_observation(0))
        self.other_tokens = len(self.prompt.head) - self.layout.total + len(example)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def sites(self) -> tuple[Site, ...]:
        """``projector`` (behind the vision tower's merger) and every decoder layer."""
        return (ENCODED, *self.hooks.sites())

    def attach(self, stack: ExitStack) -> None:
        """Put the decoder hooks on."""
        self.hooks.attach(stack)

    def example_observation(self, seed: int) -> Observation:
        """Seeded noise in the shape that this policy takes."""
        rng, shape = np.random.default_rng(seed), (*self.image_size, 3)
        images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in self.cameras}
        state = np.zeros(len(self.prompt.ego.names), np.float32)
        return Observation(images, "drive along the route", state)

    def encoder(self) -> EncoderSpec:
        """The vision tower with its merger. Reads all weights."""
        tower, processor = self.model.model.visual, self.processor
        patch = processor.patch_size * processor.merge_size
        rows, cols = (side // patch for side in self.fitted)
        dim = self.model.config.vision_config.out_hidden_size
        return EncoderSpec(dim, rows, cols, patch, fingerprint(tower.state_dict().items()))

    @torch.inference_mode()
    def encode(self, pictures: Seq[np.ndarray]) -> Tensor:
        """Single pictures ``[H, W, 3]`` uint8, of any camera: ``[B, n, E]``."""
        images = [resized(picture, *self.fitted) for picture in pictures]
        seen = self.processor(images, do_resize=False, return_tensors="pt")
        pixels, grid = (seen[k].to(self.device) for k in ("pixel_values", "image_grid_thw"))
        features = self.model.get_image_features(pixels, grid).pooler_output
        return torch.stack(tuple(features))

    # --- observations -> inputs ----------------------------------------------------------------

    def prepare(self, observations: Seq[Observation]) -> QwenInputs:
        """What the model takes."""
        ids, valid = self.prompt.ids(observations)
        room = self.model.config.text_config.max_position_embeddings
        length = ids.shape[1] + self.max_new_tokens
        if length > room:
            raise ShapeError(
                f"{self.name}: images, prompt and answer make {length} tokens, the model takes "
                f"{room}; shorten the instruction ({ids.shape[1] - self.layout.total} tokens with "
                "its question)."
            )
        images = [
            resized(camera_image(self.name, o, camera), *self.fitted)
            for o in observations
            for camera in self.cameras
        ]
        seen = self.processor(images, do_resize=False, return_tensors="pt")
        visual = torch.zeros_like(ids)
        visual[:, self.prompt.places] = 1
        parts = (ids, valid, seen["pixel_values"], seen["image_grid_thw"], visual)
        return QwenInputs(*(part.to(self.device) for part in parts))

    # --- inputs -> actions ---------------------------------------------------------------------

    def act(self, observations: Seq[Observation], call: PruneCall) -> Tensor:
        """``[B, 6, 2]`` metres every 0.5 s, see ``actions``.

        Raises:
            ActionError: an answer is no six waypoints.
        """
        with call.clock.stage("prepare"):
            inputs = self.prepare(observations)
        answers = self.run(inputs, call).tolist()
        made, failed = [], {}
        for row, answer in enumerate(answers):
            try:
                made.append(self.actions(self.read(self._text(answer))))
            except ActionError as error:
                failed[row] = str(error)
        if failed:
            raise ActionError(f"{self.name}: {next(iter(failed.values()))}", failed)
        return torch.from_numpy(np.stack(made))

    def run(self, inputs: QwenInputs, call: PruneCall) -> Tensor:
        """The ids that greedy ``generate`` adds: ``[B, T]``, anything behind a stop token."""
        model, batch = self.model, len(inputs.input_ids)
        embed = model.get_input_embeddings()
        with call.clock.stage("vision"):
            features = model.get_image_features(inputs.pixel_values, inputs.image_grid_thw)
            visual = torch.cat(features.pooler_output).to(embed.weight.dtype)
        visual = visual.unflatten(0, (batch, -1))
        # The merger belongs to the vision tower, so these are the encoder's own tokens.
        visual, index, counts = cut_at_projector(visual, call, visual)
        places = torch.tensor(self.prompt.places, device=self.device)
        others = (inputs.mm_token_type_ids[0] == 0).nonzero()[:, 0].expand(batch, -1)
        left = torch.cat([places[index], others], dim=1).sort(dim=1).values  # of the uncut prompt
        mask = inputs.attention_mask
        positions, _ = model.model.get_rope_index(
            inputs.input_ids,
            inputs.mm_token_type_ids,
            inputs.image_grid_thw,
            attention_mask=mask,
        )
        last = positions.amax((0, 2))  # [B], of the last prompt token
        positions, mask = positions.gather(2, left.expand(3, -1, -1)), mask.gather(1, left)
        sequence = self._sequence(visual, index, counts, mask)
        embeds = embed(inputs.input_ids.gather(1, left))
        places = sequence.visual.positions(self.device).expand(batch, -1)
        embeds.scatter_(1, places[..., None].expand_as(visual), visual)
        run = DecoderRun(sequence, call, self._layer(call))
        with self.hooks.running(run):
            return self._decode(run, embeds, positions, mask, last)

    def _decode(
        self, run: DecoderRun, embeds: Tensor, positions: Tensor, mask: Tensor, last: Tensor
    ) -> Tensor:
        """Greedy tokens ``[B, T]``.

        Args:
            run: the active one.
            embeds: ``[B, S, D]``.
            positions: ``[3, B, S]`` time, row and column of each token.
            mask: ``[B, S]`` bool.
            last: ``[B]`` position of the last prompt token.
        """
        model = self.model
        cache = DynamicCache(config=model.config.text_config)
        stops = torch.tensor(self.stop_tokens, dtype=torch.long, device=embeds.device)
        goes_on = torch.ones_like(mask[:, :1])
        tokens: list[Tensor] = []
        for step in range(self.max_new_tokens):
            with run.call.clock.stage("decode" if step else "prefill"):
                hidden = model.model.language_model(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
                tokens.append(model.lm_head(hidden[:, -1:])[:, 0].argmax(-1, keepdim=True))
                goes_on = goes_on & ~torch.isin(tokens[-1], stops)
                if not bool(goes_on.any()):
                    break
                run.step_rows = RowSet(slice(0, 1), goes_on)  # an ended answer looks at nothing
                embeds = model.get_input_embeddings()(tokens[-1])
                positions = (last + step + 1)[None, :, None].expand(3, -1, -1)
                mask = torch.cat([mask, torch.ones_like(goes_on)], dim=1)
        return torch.cat(tokens, dim=1)

    def _sequence(
        self, visual: Tensor, index: Tensor, counts: tuple[int, ...] | None, mask: Tensor
    ) -> Sequence:
        start, gaps, length = self.prompt.places[0], self.prompt.gaps, mask.shape[1]
        words = slice(start + index.shape[1] + sum(gaps), length)
        last = RowSet(slice(length - 1, length))
        rows = {"last": last, "prompt": RowSet(words, mask[:, words]), "action": last}
        rows["prefill"] = RowSet(slice(0, length), mask)
        return Sequence(start, index, counts, visual, rows, gaps=gaps, layout=self.layout)

    def _text(self, answer: list[int]) -> str:
        """The words in front of the first stop token."""
        ends = (n for n, token in enumerate(answer) if token in self.stop_tokens)
        return self.tokenizer.decode(answer[: next(ends, None)], skip_special_tokens=True)

    def _layer(self, call: PruneCall) -> int:
        history = call.pruner.history
        asked = None if history is None else history.layer
        return max(self.shape.layers // 2 - 1, 0) if asked is None else asked


def _stops(model: Qwen2_5_VLForConditionalGeneration) -> list[int]:
    stops = model.generation_config.eos_token_id
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def build(data: dict[str, Any]) -> QwenVLAdapter:
    """From a policy config.

    ``weights`` is a folder or hub name for ``from_pretrained``, which holds tokenizer and image
    processor too; or ``random`` with ``config`` (fields of ``Qwen2_5_VLConfig``) for speed alone:
    its answers are always ``max_new_tokens`` long and its actions NaN. ``max_pixels`` bounds the
    area of a resized image.
    """
    options = ("state", "question", "actions", "max_new_tokens")
    known = ("weights", "config", "cameras", "image_size", "max_pixels", *options)
    known += ("seed", "dtype", "device")
    for key in data:
        if key not in known:
            raise did_you_mean("policy qwen2_5_vl", "field", key, known)
    device = data.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, data.get("dtype") or ("bfloat16" if device == "cuda" else "float32"))
    weights = data.get("weights", "random")
    given = {key: data[key] for key in options if key in data}
    limits = {"max_pixels": data["max_pixels"]} if "max_pixels" in data else {}
    if weights == "random":
        torch.manual_seed(data.get("seed", 0))
        config = Qwen2_5_VLConfig(**data.get("config", {}))
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        tokenizer, vision = HashedWords(config.image_token_id), config.vision_config
        processor = Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size, merge_size=vision.spatial_merge_size, **limits
        )
        given |= {"stop_tokens": (), "read": lambda _: np.full((WAYPOINTS, 2), np.nan, np.float32)}
    else:
        load = Qwen2_5_VLForConditionalGeneration.from_pretrained
        model = load(weights, dtype=dtype, use_safetensors=True).to(device)
        tokenizer = AutoTokenizer.from_pretrained(weights)
        processor = Qwen2VLImageProcessorPil.from_pretrained(weights, **limits)
    cameras = data.get("cameras", ("CAM_FRONT",))
    size = data.get("image_size", (900, 1600))
    return QwenVLAdapter(model, tokenizer, processor, cameras, size, **given)
