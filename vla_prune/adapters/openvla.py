"""OpenVLA and OpenVLA-OFT: cuts before and inside the Llama decoder.

Reads: the model's own stages (``encode_images``, ``build_inputs``, ``decode`` and the heads).
Changes: nothing of the model; see :mod:`vla_prune.adapters.decoder`.
Checked with transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from vla_prune.adapters.decoder import DecoderHooks, DecoderRun, RowSet, Sequence
from vla_prune.adapters.encoder import EncoderSpec, fingerprint
from vla_prune.adapters.images import camera_image, resized
from vla_prune.adapters.projector import ENCODED, cut_at_projector
from vla_prune.cost import DecoderShape
from vla_prune.errors import ShapeError, did_you_mean
from vla_prune.models.actions import EMPTY_TOKEN, PROMPT, libero_gripper
from vla_prune.models.checkpoint import load_tokenizer
from vla_prune.models.config import OpenVLAConfig, openvla_7b, openvla_oft_7b
from vla_prune.models.loader import load_published
from vla_prune.models.openvla import OpenVLA, OpenVLAInputs
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenLayout, ViewGrid
from vla_prune.types import Observation

# Visual tokens [B, n, D], grid indices [B, n], how many of each view (None if rows differ).
Seen = tuple[Tensor, Tensor, tuple[int, ...] | None]

GRIPPERS: dict[str, Callable[[Tensor], Tensor]] = {
    "as_is": lambda actions: actions,
    "sign": lambda actions: torch.cat([actions[..., :-1], actions[..., -1:].sign()], dim=-1),
    "libero": libero_gripper,
}


class OpenVLAAdapter:
    """One OpenVLA-family model made to fit.

    Args:
        model: with weights, in eval mode.
        tokenize: sentences -> ``(ids [B, T], mask [B, T] bool)``, start token first.
        prompt: the sentence around the ``{instruction}``.
        dataset: whose statistics un-normalise; None if there is only one.
        gripper: what becomes of the last action dimension: ``as_is``, ``sign`` (-1 or 1) or
            ``libero`` (from OpenVLA's 1 = open to LIBERO's -1 = open).
        dt_s: seconds between two actions.
    """

    def __init__(
        self,
        model: OpenVLA,
        tokenize: Callable[[list[str]], tuple[Tensor, Tensor]],
        prompt: str = "{instruction}",
        dataset: str | None = None,
        gripper: str = "as_is",
        dt_s: float = 0.05,
    ) -> None:
        if gripper not in GRIPPERS:
            raise did_you_mean("policy openvla", "gripper", gripper, GRIPPERS)
        config = model.config
        self.model = model.eval()
        self.tokenize = tokenize
        self.prompt = prompt
        self.dataset = dataset
        self.gripper = GRIPPERS[gripper]
        self.dt_s = dt_s
        self.name = "OpenVLA-OFT" if model.bidirectional else "OpenVLA"
        rows, cols = model.token_grid
        self.layout = TokenLayout(tuple(ViewGrid(view, rows, cols) for view in config.views))
        self.shape = DecoderShape.of(model.language_model.config)
        kinds = ("last", "prompt", "prefill") + (("action",) if model.bidirectional else ())
        self.hooks = DecoderHooks(model.language_model.model, kinds)
        example = self._words([self.example_observation(0)])[0].shape[1]
        extra = int(config.proprio_dim is not None) + config.n_slots + int(model.bidirectional)
        self.other_tokens = example + extra

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def sites(self) -> tuple[Site, ...]:
        """``projector`` and every decoder layer."""
        return (ENCODED, *self.hooks.sites())

    def attach(self, stack: ExitStack) -> None:
        """Put the decoder hooks on."""
        self.hooks.attach(stack)

    def example_observation(self, seed: int) -> Observation:
        """Seeded noise in the shape that this policy takes."""
        rng = np.random.default_rng(seed)
        size, config = self.model.config.towers[0].image_size, self.model.config
        images = {
            view: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for view in config.views
        }
        state = None if config.proprio_dim is None else np.zeros(config.proprio_dim, np.float32)
        return Observation(images, "pick up the black bowl and place it on the plate", state)

    def encoder(self) -> EncoderSpec:
        """The towers, whose joined features are what leaves the encoder. Reads all weights."""
        towers, config = self.model.towers, self.model.config
        rows, cols = config.token_grid
        dim = sum(tower.hidden_size for tower in config.towers)
        hashed = fingerprint(towers.state_dict().items())
        return EncoderSpec(dim, rows, cols, config.towers[0].patch_size, hashed)

    @torch.inference_mode()
    def encode(self, pictures: Seq[np.ndarray]) -> Tensor:
        """Single pictures ``[H, W, 3]`` uint8, of any camera: ``[B, n, E]``."""
        size = self.model.config.towers[0].image_size
        batch = np.stack([resized(picture, size, size) for picture in pictures])
        pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float() / 255.0
        return torch.cat([tower(pixels) for tower in self.model.towers], dim=-1)

    def word_embeddings(self, observations: Seq[Observation]) -> tuple[Tensor, Tensor | None]:
        """The prompt as the decoder gets it, ``[B, T, D]``, and which of it is no padding."""
        ids, mask = self._words(observations)
        return self.model.language_model.model.embed_tokens(ids), mask

    def act(self, observations: Seq[Observation], call: PruneCall) -> Tensor:
        """``[B, chunk, A]`` actions in physical units."""
        return self.act_on(self.see(observations, call), observations, call)

    def see(self, observations: Seq[Observation], call: PruneCall) -> Seen:
        """The first half of :meth:`act`: towers, projector, and the cut there if there is one.

        The halves may run on two machines; each then has its own call of the same recipe.
        """
        model, clock = self.model, call.clock
        with clock.stage("prepare"):
            images = self.images(observations)
        with clock.stage("vision"):
            encoded = model.vision_features(images)
            with clock.stage("projector"):
                visual = model.projector(encoded)
        return cut_at_projector(visual, call, encoded)

    def act_on(self, seen: Seen, observations: Seq[Observation], call: PruneCall) -> Tensor:
        """The second half: words, robot state and decoder. Looks at no image."""
        model, (visual, index, _) = self.model, seen
        with call.clock.stage("prepare"):
            proprio, (ids, mask) = self._proprio(observations), self._words(observations)
        inputs = model.build_inputs(visual, ids, proprio, mask, index + model.visual_offset)
        run = self.decoder_run(inputs, seen, call)
        with self.hooks.running(run):
            actions = (
                self._parallel(inputs, run) if model.bidirectional else self._tokens(inputs, run)
            )
        if model.statistics is not None:
            actions = model.statistics.unnormalise(self.dataset, actions.float())
        return self.gripper(actions)

    def decoder_run(self, inputs: OpenVLAInputs, seen: Seen, call: PruneCall) -> DecoderRun:
        """What the hooks need to know of one pass through the decoder."""
        return DecoderRun(self._sequence(inputs, *seen), call, self._layer(call))

    def _parallel(self, inputs: OpenVLAInputs, run: DecoderRun) -> Tensor:
        clock = run.call.clock
        with clock.stage("prefill"):
            hidden = self.model.decode(inputs)
        with clock.stage("head"):
            # Cuts shorten the sequence in front of the action rows, never behind them.
            removed = inputs.embeds.shape[1] - hidden.shape[1]
            rows = tuple(row - removed for row in inputs.action_rows)
            return self.model.predict_chunk(hidden, replace(inputs, action_rows=rows))

    def _tokens(self, inputs: OpenVLAInputs, run: DecoderRun) -> Tensor:
        model, clock = self.model, run.call.clock
        cache = DynamicCache(config=model.language_model.config)
        tokens: list[Tensor] = []
        for step in range(model.config.action_dim):
            with clock.stage("decode" if step else "prefill"):
                hidden = model.decode(inputs, past_key_values=cache, use_cache=True)
                tokens.append(model.logits(hidden[:, -1]).argmax(-1))
                inputs = model.next_inputs(inputs, tokens[-1])
        return model.action_tokenizer.decode(torch.stack(tokens, dim=1))[:, None]

    def _sequence(
        self, inputs: OpenVLAInputs, visual: Tensor, index: Tensor, counts: tuple[int, ...] | None
    ) -> Sequence:
        mask, (start, stop) = inputs.attention_mask, inputs.text_slots
        weigh = lambda rows: None if mask is None else mask[:, rows]  # noqa: E731
        prompt, prefill = slice(start, stop), slice(0, stop)
        rows = {
            "last": RowSet(slice(stop - 1, stop)),
            "prompt": RowSet(prompt, weigh(prompt)),
            "prefill": RowSet(prefill, weigh(prefill)),
            "action": RowSet(slice(*inputs.action_rows)),
        }
        return Sequence(
            inputs.visual_slots[0], index, counts, visual, rows, not self.model.bidirectional
        )

    def images(self, observations: Seq[Observation]) -> Tensor:
        """``[B, V, 3, H, W]`` in [0, 1]; images of another size are resized (bicubic)."""
        config = self.model.config
        size = config.towers[0].image_size
        batch = [
            [resized(camera_image("the policy", o, view), size, size) for view in config.views]
            for o in observations
        ]
        pixels = torch.from_numpy(np.array(batch)).to(self.device)  # [B, V, H, W, 3] uint8
        return pixels.permute(0, 1, 4, 2, 3).float() / 255.0

    def _proprio(self, observations: Seq[Observation]) -> Tensor | None:
        wanted = self.model.config.proprio_dim
        if wanted is None:
            return None
        for observation in observations:
            given = None if observation.state is None else len(observation.state)
            if given != wanted:
                raise ShapeError(
                    f"{self.name}: the state has {given} entries, this policy takes {wanted}; "
                    "give the state it was trained with."
                )
        state = torch.from_numpy(np.stack([o.state for o in observations])).float().to(self.device)
        if self.model.statistics is None:
            return state
        return self.model.statistics.normalise_proprio(self.dataset, state)

    def _words(self, observations: Seq[Observation]) -> tuple[Tensor, Tensor | None]:
        sentences = [self.prompt.format(instruction=o.instruction.lower()) for o in observations]
        ids, mask = self.tokenize(sentences)
        room = self.model.language_model.config.max_position_embeddings
        length = self.layout.total + ids.shape[1] + self.model.config.n_slots + 2
        if length > room:
            raise ShapeError(
                f"{self.name}: prompt and images make {length} tokens, the model takes {room}; "
                f"shorten the instruction ({ids.shape[1]} tokens)."
            )
        mask = mask.bool()
        return ids.to(self.device), None if bool(mask.all()) else mask.to(self.device)

    def _layer(self, call: PruneCall) -> int:
        history = call.pruner.history
        asked = None if history is None else history.layer
        return self.shape.layers // 2 - 1 if asked is None else asked


def build(data: dict[str, Any]) -> OpenVLAAdapter:
    """From a policy config.

    ``weights`` is a folder of ours or of a published checkpoint, or ``random`` with ``preset``
    (``openvla_7b``, ``openvla_oft_7b``) or ``config`` (fields of ``OpenVLAConfig``) for speed
    alone.
    """
    known = (
        "weights",
        "preset",
        "config",
        "prompt",
        "dataset",
        "gripper",
        "dt_s",
        "dtype",
        "device",
        "seed",
    )
    for key in data:
        if key not in known:
            raise did_you_mean("policy openvla", "field", key, known)
    device = data.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    default = "bfloat16" if device == "cuda" else "float32"
    dtype = getattr(torch, data.get("dtype") or default)
    weights = data.get("weights", "random")
    if weights == "random":
        model, tokenize = _random(data, dtype, device), hashed_words
    else:
        from vla_prune.config import resolve_weights

        folder = resolve_weights(weights)
        published = not (folder / "dataset_statistics.json").exists() or "preset" in data
        load = load_published if published else OpenVLA.from_pretrained
        model, tokenize = load(folder, dtype=dtype, device=device), _tokenizer(folder, published)
    options = {k: data[k] for k in ("dataset", "gripper", "dt_s") if k in data}
    prompt = data.get("prompt", PROMPT if weights == "random" else "{instruction}")
    return OpenVLAAdapter(model, tokenize, prompt, **options)


def _random(data: dict[str, Any], dtype: torch.dtype, device: str) -> OpenVLA:
    presets = {"openvla_7b": openvla_7b, "openvla_oft_7b": openvla_oft_7b}
    if "config" in data:
        config = OpenVLAConfig.from_dict(data["config"])
    elif data.get("preset") in presets:
        config = presets[data["preset"]]()
    else:
        raise did_you_mean("policy openvla", "preset", str(data.get("preset")), presets)
    torch.manual_seed(data.get("seed", 0))
    return OpenVLA(config).to(device, dtype).eval()


def hashed_words(sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Some ids for random weights: words hashed into 1 to 31, start token 1 in front."""
    rows = [[1] + [sum(word.encode()) % 29 + 3 for word in s.split()] for s in sentences]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask


def _tokenizer(folder, published: bool) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<pad>" if not published else tokenizer.convert_ids_to_tokens(0)

    def tokenize(sentences: list[str]) -> tuple[Tensor, Tensor]:
        encoded = tokenizer(sentences, padding=True, return_tensors="pt")
        ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()
        if not published:
            return ids, mask
        # Training put an empty word between the colon and the first action.
        rows = [[*row[keep].tolist(), EMPTY_TOKEN] for row, keep in zip(ids, mask, strict=True)]
        width = max(map(len, rows))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        return padded, valid

    return tokenize
