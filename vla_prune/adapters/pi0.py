"""pi0: images and words through PaliGemma, then an expert that denoises actions over its cache.

Knows transformers' own ``PI0ForConditionalGeneration`` and nothing of scorers. Example::

    adapter = Pi0Adapter(model, tokenize, cameras=("base", "wrist"), dt_s=0.02)
    with attach(pruner, adapter) as policy:
        [chunk] = policy.act([observation], [policy.new_state()])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Cache, PI0Config, PI0ForConditionalGeneration
from transformers.masking_utils import create_causal_mask

from vla_prune.adapters.decoder import DecoderHooks, DecoderRun, RowSet, Sequence
from vla_prune.adapters.images import camera_image
from vla_prune.adapters.projector import PROJECTOR, cut_at_projector
from vla_prune.cost import DecoderShape
from vla_prune.errors import ConfigError, ShapeError, did_you_mean
from vla_prune.pruner import PruneCall, Site
from vla_prune.tokens import TokenLayout, ViewGrid
from vla_prune.types import Observation


@dataclass(frozen=True)
class MeanStd:
    """Normalisation statistics of one quantity, in the form of pi0's processor.

    Attributes:
        mean: of the training data, one entry a dimension.
        std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse statistics that do not belong together."""
        if len(self.mean) != len(self.std):
            raise ConfigError(
                f"pi0 statistics: {len(self.mean)} means but {len(self.std)} deviations; give one "
                "of each per dimension."
            )

    def normalise(self, x: Tensor) -> Tensor:
        """``[..., P]`` physical units to about unit variance."""
        return (x - x.new_tensor(self.mean)) / (x.new_tensor(self.std) + 1e-8)

    def unnormalise(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return x * (x.new_tensor(self.std) + 1e-8) + x.new_tensor(self.mean)


@dataclass(frozen=True)
class Pi0Inputs:
    """What ``sample_actions`` takes, by the same names.

    Attributes:
        state: ``[B, max_state_dim]`` normalised, zeros behind.
        input_ids: ``[B, M + T]``: all cameras' image tokens, then start token, words, newline.
        pixel_values: ``[B, V, 3, H, W]``.
        attention_mask: ``[B, M + T]`` bool, False where a shorter prompt is padded on the right.
        pixel_attention_mask: ``[B, V]`` bool, all True.
    """

    state: Tensor
    input_ids: Tensor
    pixel_values: Tensor
    attention_mask: Tensor
    pixel_attention_mask: Tensor


class Pi0Adapter:
    """pi0 (arXiv 2410.24164): a bidirectional prefix that is cut, an expert that reads the rest.

    **Reads**: queries and keys of the prefix layers that scorers ask for. Action attention is what
    the expert's action rows pay to the visual columns of the prefix cache at the history layer:
    mean over heads, action rows and denoising steps. The state token is left out: it stands in
    front of the actions, cannot see them, and carries no noise.

    **Changes**: nothing of the model (see :mod:`vla_prune.adapters.decoder`). ``sample_actions``
    derives the expert's mask and positions from the prefix as it was given, so its loop is written
    out here over the model's public parts: positions stay those of the uncut prefix, masks are
    sized by layer 0's cache, and from the cut on the expert's hooks slice their columns at every
    denoising step.

    **Checked with transformers 5.23.**

    Args:
        model: with weights; put into eval mode.
        tokenize: sentences -> ``(ids [B, T], mask [B, T] bool)``, start token first, padded right.
        cameras: image names in the order of training.
        dt_s: seconds between two actions of a chunk.
        state_stats: normalise the robot's state; None if it comes normalised.
        action_stats: un-normalise the actions; None leaves them as the model gives them.
        action_dim: leading dimensions that mean something; those of ``action_stats`` unless given.
        steps: denoising steps; the model's own number unless given.
        seed: of the noise. It is drawn from (seed, tick) alone, so that a batch gives what singles
            give, and dense and pruned runs start from the same noise.
    """

    name = "pi0"

    def __init__(
        self,
        model: PI0ForConditionalGeneration,
        tokenize: Callable[[list[str]], tuple[Tensor, Tensor]],
        cameras: Seq[str],
        dt_s: float,
        state_stats: MeanStd | None = None,
        action_stats: MeanStd | None = None,
        action_dim: int | None = None,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        config = model.config
        self.model = model.eval()
        self.tokenize = tokenize
        self.cameras = tuple(cameras)
        self.dt_s = dt_s
        self.state_stats = state_stats
        self.action_stats = action_stats
        known = len(action_stats.mean) if action_stats else config.max_action_dim
        self.action_dim = action_dim or known
        if not self.action_dim <= known <= config.max_action_dim:
            raise ConfigError(
                f"pi0: {self.action_dim} action dimensions with statistics of {known}; the model "
                f"has {config.max_action_dim}."
            )
        self.steps = steps or config.num_inference_steps
        self.seed = seed
        vision = config.vlm_config.vision_config
        self.image_size = vision.image_size
        side = vision.image_size // vision.patch_size
        self.layout = TokenLayout(tuple(ViewGrid(name, side, side) for name in self.cameras))
        self.shape = DecoderShape.of(model.model.vlm.language_model.config)
        self.prefix = DecoderHooks(model.model.vlm.language_model, ("last", "prompt", "prefill"))
        self.expert = DecoderHooks(model.model.dit, ())
        self.other_tokens = self._words([self.example_observation(0)])[0].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def sites(self) -> tuple[Site, ...]:
        """``projector`` and every layer of the prefix decoder."""
        return (PROJECTOR, *self.prefix.sites())

    def attach(self, stack: ExitStack) -> None:
        """Put hooks on the prefix decoder and on the expert."""
        self.prefix.attach(stack)
        self.expert.attach(stack)

    def example_observation(self, seed: int) -> Observation:
        """Seeded noise in the shape that this policy takes."""
        rng = np.random.default_rng(seed)
        shape = (self.image_size, self.image_size, 3)
        images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in self.cameras}
        size = len(self.state_stats.mean) if self.state_stats else self.model.config.max_state_dim
        return Observation(images, "pick up the black bowl", np.zeros(size, np.float32))

    # --- observations -> inputs ----------------------------------------------------------------

    def prepare(self, observations: Seq[Observation]) -> Pi0Inputs:
        """What the model takes.

        Images as transformers' ``PI0ImageProcessor`` makes them (bicubic, aspect kept, [-1, 1],
        zeros at the right and bottom), words as its ``PI0Processor`` does (start token,
        instruction, newline).
        """
        ids, valid = self._words(observations)
        batch = len(observations)
        image_id = self.model.config.vlm_config.image_token_id
        ahead = torch.full((batch, self.layout.total), image_id, device=self.device)
        return Pi0Inputs(
            torch.stack([self._state(o) for o in observations]),
            torch.cat([ahead, ids], dim=1),
            self._pixels(observations),
            torch.cat([torch.ones_like(ahead, dtype=torch.bool), valid], dim=1),
            torch.ones(batch, len(self.cameras), dtype=torch.bool, device=self.device),
        )

    def noise(self, ticks: Iterable[int]) -> Tensor:
        """``[B, chunk, max_action_dim]`` normal noise, a function of (seed, tick) row by row."""
        config, rows = self.model.config, []
        for tick in ticks:
            state = np.random.SeedSequence([self.seed, tick]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
            rows.append(torch.randn(config.chunk_size, config.max_action_dim, generator=generator))
        return torch.stack(rows).to(self.device, self.model.dtype)

    def _words(self, observations: Seq[Observation]) -> tuple[Tensor, Tensor]:
        ids, valid = self.tokenize([f"{o.instruction}\n" for o in observations])
        return ids.to(self.device), valid.to(self.device, torch.bool)

    def _state(self, observation: Observation) -> Tensor:
        """``[max_state_dim]``."""
        width = self.model.config.max_state_dim
        wanted = len(self.state_stats.mean) if self.state_stats else None
        given = 0 if observation.state is None else len(observation.state)
        if given == 0 or given > width or wanted not in (None, given):
            limit = f"at most {width}" if wanted is None else wanted
            raise ShapeError(
                f"pi0: the state has {given} entries, this policy takes {limit}; give the state "
                "that it was trained with."
            )
        state = torch.from_numpy(np.asarray(observation.state, np.float32))
        if self.state_stats is not None:
            state = self.state_stats.normalise(state)
        state = torch.nn.functional.pad(state, (0, width - given))
        return state.to(self.device, self.model.dtype)

    def _pixels(self, observations: Seq[Observation]) -> Tensor:
        """``[B, V, 3, H, W]``."""
        size = self.image_size
        pixels = np.zeros((len(observations), len(self.cameras), size, size, 3), np.float32)
        for row, observation in enumerate(observations):
            for column, name in enumerate(self.cameras):
                fitted = _fit(camera_image("pi0", observation, name), size)
                height, width = fitted.shape[:2]
                pixels[row, column, :height, :width] = (fitted / np.float32(255.0) - 0.5) / 0.5
        tensor = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)
        return tensor.to(self.device, self.model.dtype).contiguous()

    # --- inputs -> actions ---------------------------------------------------------------------

    def act(self, observations: Seq[Observation], call: PruneCall) -> Tensor:
        """``[B, chunk, action_dim]`` actions in physical units."""
        with call.clock.stage("prepare"):
            inputs, noise = self.prepare(observations), self.noise(call.tick.tolist())
        actions = self.run(inputs, noise, call).float()
        if self.action_stats is not None:
            actions = self.action_stats.unnormalise(actions[..., : len(self.action_stats.mean)])
        return actions[..., : self.action_dim]

    def run(self, inputs: Pi0Inputs, noise: Tensor, call: PruneCall) -> Tensor:
        """What ``sample_actions`` returns for the same noise: ``[B, chunk, max_action_dim]``."""
        model, clock, total = self.model.model, call.clock, self.layout.total
        with clock.stage("vision"):
            embeds = model.embed_prefix(
                inputs.input_ids, inputs.pixel_values, inputs.pixel_attention_mask
            )
        visual, index, counts = cut_at_projector(embeds[:, :total], call)
        text, mask = embeds[:, total:], inputs.attention_mask
        behind = torch.arange(total, mask.shape[1], device=index.device).expand(len(index), -1)
        places = torch.cat([index, behind], dim=1)  # [B, P] of the uncut prefix
        left = mask.gather(1, places)
        sequence = _sequence(visual, index, counts, mask[:, total:])
        rows = RowSet(slice(1, 1 + self.model.config.chunk_size))
        run = DecoderRun(sequence, call, self._layer(call), rows)
        with self.prefix.running(run), self.expert.running(run):
            with clock.stage("prefill"):
                cache = model.vlm(
                    inputs_embeds=torch.cat([visual, text], dim=1),
                    attention_mask=left,
                    position_ids=(mask.cumsum(1) - 1).gather(1, places),
                    token_type_ids=torch.zeros_like(places),
                    use_cache=True,
                ).past_key_values
            with clock.stage("denoise"):
                return self._denoise(inputs, noise, left, cache)

    def _denoise(self, inputs: Pi0Inputs, noise: Tensor, left: Tensor, cache: Cache) -> Tensor:
        """The flow-matching loop of ``sample_actions``.

        Args:
            inputs: of the uncut prefix, which numbers the positions.
            noise: ``[B, chunk, max_action_dim]``.
            left: ``[B, P]`` which of layer 0's cached columns are no padding.
            cache: keys and values of the prefix; fewer columns from a cut on.
        """
        model, chunk = self.model, self.model.config.chunk_size
        batch, rows = len(noise), 1 + chunk
        ones = torch.ones(batch, rows, dtype=torch.bool, device=noise.device)
        numbers = torch.cat([inputs.attention_mask, ones], dim=1).cumsum(1) - 1
        # Blocks: prefix and state, then actions. A row sees its own block and what stands before.
        blocks = torch.ones(batch, left.shape[1] + rows, dtype=torch.long, device=noise.device)
        blocks[:, : left.shape[1] + 1] = 0
        attention, dt = None, -1.0 / self.steps
        for step in range(self.steps):
            time = torch.full((batch,), 1.0 + step * dt, device=noise.device)
            embeds = model.embed_action_time(inputs.state, noise, time)
            if attention is None:  # the same at every step, as the cache is cropped in between
                attention = create_causal_mask(
                    config=model.model.dit.config,
                    inputs_embeds=embeds,
                    attention_mask=torch.cat([left, ones], dim=1),
                    past_key_values=cache,
                    block_sequence_ids=blocks,
                )
            hidden = model.model.dit(
                inputs_embeds=embeds,
                attention_mask=attention,
                position_ids=numbers[:, -rows:],
                past_key_values=cache,
            ).last_hidden_state
            cache.crop(-rows)  # by count, not to a length: layers behind a cut hold fewer columns
            noise = noise + dt * model.action_out_proj(hidden[:, -chunk:])
        return noise

    def _layer(self, call: PruneCall) -> int:
        history = call.pruner.history
        asked = None if history is None else history.layer
        return max(self.shape.layers // 2 - 1, 0) if asked is None else asked


def _sequence(
    visual: Tensor, index: Tensor, counts: tuple[int, ...] | None, valid: Tensor
) -> Sequence:
    """The prefix as the hooks need it: visual tokens ``[B, N, D]`` first, then text ``[B, T]``."""
    n, length = index.shape[1], index.shape[1] + valid.shape[1]
    ahead = torch.ones_like(index, dtype=torch.bool)
    rows = {
        "last": RowSet(n + valid.sum(1, keepdim=True) - 1),
        "prompt": RowSet(slice(n, length), valid),
        "prefill": RowSet(slice(0, length), torch.cat([ahead, valid], dim=1)),
    }
    return Sequence(0, index, counts, visual, rows, causal=False)


def _fit(image: np.ndarray, size: int) -> np.ndarray:
    """The image with its longer side resized to ``size`` (bicubic), aspect kept."""
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    wanted = (max(int(width * scale), 1), max(int(height * scale), 1))
    if wanted == (width, height):
        return image
    return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BICUBIC))


def build(data: dict[str, Any]) -> Pi0Adapter:
    """From a policy config.

    ``weights`` is a folder or hub name for ``from_pretrained`` (transformers maps the names of
    lerobot's checkpoints), with ``tokenizer`` likewise; or ``random`` with ``config`` (fields of
    ``PI0Config``) for speed alone. ``state`` and ``action`` hold ``mean`` and ``std``.
    """
    known = ("weights", "tokenizer", "config", "cameras", "dt_s", "state", "action", "action_dim")
    known += ("steps", "seed", "dtype", "device")
    for key in data:
        if key not in known:
            raise did_you_mean("policy pi0", "field", key, known)
    device = data.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, data.get("dtype") or ("bfloat16" if device == "cuda" else "float32"))
    weights = data.get("weights", "random")
    if weights == "random":
        torch.manual_seed(data.get("seed", 0))
        model = PI0ForConditionalGeneration(PI0Config(**data.get("config", {})))
        tokenize = _hashed_words
    else:
        model = PI0ForConditionalGeneration.from_pretrained(
            weights, dtype=dtype, use_safetensors=True
        )
        tokenize = _tokenizer(data.get("tokenizer", weights))
    stats = {
        f"{kind}_stats": MeanStd(tuple(data[kind]["mean"]), tuple(data[kind]["std"]))
        for kind in ("state", "action")
        if data.get(kind) is not None
    }
    options = {k: data[k] for k in ("action_dim", "steps", "seed") if k in data}
    cameras, dt_s = data.get("cameras", ("camera",)), data.get("dt_s", 0.02)
    return Pi0Adapter(model.to(device, dtype), tokenize, cameras, dt_s, **stats, **options)


def _hashed_words(sentences: list[str]) -> tuple[Tensor, Tensor]:
    """Ids for random weights: words hashed into 3 to 31, start token 2 in front, newline 1."""
    return _padded([[2] + [sum(w.encode()) % 29 + 3 for w in s.split()] + [1] for s in sentences])


def _tokenizer(folder: str) -> Callable[[list[str]], tuple[Tensor, Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(sentences: list[str]) -> tuple[Tensor, Tensor]:
        rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
        return _padded([[tokenizer.bos_token_id, *row] for row in rows])

    return tokenize


def _padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids ``[B, T]`` padded right with 0, and which of them count."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, valid
