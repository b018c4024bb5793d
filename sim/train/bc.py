r"""Behaviour cloning of pocket policies: demonstrations in, safetensors out, resumable.

Besides the L1 loss on the action chunk (OpenVLA-OFT, arXiv 2502.19645) three helpers speed up
learning from few frames and are thrown away afterwards: each visual token's class, from the
decoder's output and from the tower alone (does the patch show the target? another car?), and a few
offsets (from the hand to the target; to the car in front). Part of the steps see a random
subset of the visual tokens, which makes them cheaper; the model card says so, because it also
makes a policy less afraid of pruning. Patches of the classes in ``--spare`` are never dropped
while there are others: who is told to brake for a child should be shown the child.

Example::

    python -m vla_prune_sim.train.bc --demos runs/demos/libero_spatial --out
    runs/pocket/libero_spatial \\
        --suite libero_spatial --steps 6000
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from vla_prune_sim.train.features import FeatureCache
from vla_prune_sim.train.frames import Batch, FrameSet
from vla_prune_sim.train.keyframes import draw, surprise
from vla_prune_sim.train.pocket import pocket_config, word_tokenizer

from vla_prune.adapters.openvla import OpenVLAAdapter, hashed_words
from vla_prune.adapters.projector import PROJECTOR, cut_at_projector
from vla_prune.budgets import ConstantBudget
from vla_prune.models.actions import Statistics
from vla_prune.models.openvla import OpenVLA, OpenVLAInputs
from vla_prune.pruner import Cut, Pruner
from vla_prune.recon import resume
from vla_prune.selectors import TopKSelector
from vla_prune.tokens import TokenView
from vla_prune.types import PolicyState

GRIPPER = 6  # its place in a manipulator's action; driving plans are shorter
# Patches that are few and matter most weigh most; those not named here weigh 1.
CLASS_WEIGHT = {"background": 0.25, "target": 3.0, "robot": 0.5, "road": 0.25, "person": 3.0}


class Helpers(nn.Module):
    """Auxiliary heads that exist only during training.

    Args:
        tower: width of the vision features.
        width: width of the decoder.
        words: vocabulary size.
        classes: names of the patch classes.
        offsets: how many there are.
    """

    def __init__(
        self, tower: int, width: int, words: int, classes: Sequence[str], offsets: int
    ) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, tower, mode="mean", padding_idx=0)
        self.tower_class = nn.Sequential(
            nn.LayerNorm(tower), nn.Linear(tower, tower), nn.GELU(), nn.Linear(tower, len(classes))
        )
        self.token_class = nn.Linear(width, len(classes))
        self.offset = nn.Linear(width, offsets)
        self.weight = torch.tensor([CLASS_WEIGHT.get(name, 1.0) for name in classes])

    def tower_loss(self, features: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
        """Patch classes from the tower's features and the words alone, before any attention."""
        modulated = features * (1.0 + self.words(ids)[:, None])
        return self.class_loss(self.tower_class(modulated), labels)

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of patch classes ``[B, n, classes]`` against ``[B, n]``."""
        weight = self.weight.to(logits.device)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight=weight)


@dataclass(frozen=True)
class Drawn:
    """A scorer that says what the trainer drew.

    Attributes:
        scores: ``[B, M]`` of all visual tokens.
    """

    scores: Tensor
    needs: ClassVar[frozenset[str]] = frozenset()

    def score(self, view: TokenView) -> Tensor:
        """``[B, N]``."""
        return self.scores.gather(1, view.index)


@dataclass(frozen=True)
class Dropout:
    """Token dropout where a recipe would cut, by the same engine.

    A policy that lost tokens at its projector alone is not yet used to losing them in the middle
    of the decoder.

    Attributes:
        adapter: of the policy that is trained.
        keep: share of each view's tokens that stays.
        layer: the decoder layer in front of which the others go; 0 is the projector.
    """

    adapter: OpenVLAAdapter
    keep: float
    layer: int = 0

    def decode(
        self, features: Tensor, ids: Tensor, proprio: Tensor, mask: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, OpenVLAInputs, Tensor]:
        """Last hidden states, where things stand in them, and grid indices of the kept tokens.

        Args:
            features: ``[B, M, E]`` of the towers.
            ids: ``[B, T]`` words.
            proprio: ``[B, P]`` normalised state.
            mask: ``[B, T]`` which words there are.
            scores: ``[B, M]`` the highest stay; None keeps all.
        """
        model = self.adapter.model
        site = f"decoder.{self.layer}" if self.layer else PROJECTOR.name
        cuts = ()
        if scores is not None:
            cuts = (Cut(site, (Drawn(scores),), TopKSelector(), ConstantBudget(self.keep)),)
        states = [PolicyState() for _ in ids]
        call = Pruner(cuts).begin(states, self.adapter.layout, features.device)
        visual, index, counts = cut_at_projector(model.projector(features), call)
        inputs = model.build_inputs(visual, ids, proprio, mask, index + model.visual_offset)
        run = self.adapter.decoder_run(inputs, (visual, index, counts), call)
        with ExitStack() as stack:
            self.adapter.attach(stack)
            stack.enter_context(self.adapter.hooks.running(run))
            hidden = model.decode(inputs)
        removed = inputs.embeds.shape[1] - hidden.shape[1]
        rows = tuple(row - removed for row in inputs.action_rows)
        return hidden, replace(inputs, action_rows=rows), call.kept.get(site, index)


def quantile_error(predicted: Tensor, wanted: Tensor, quantile: float) -> Tensor:
    """Absolute errors ``[..., A]``, the first number's weighed so that its quantile is learned.

    An expert who knows more than its pictures tell now brakes and now does not in what looks the
    same. The median drives on; a lower quantile of the way ahead brakes (Koenker, Bassett 1978).

    Args:
        predicted: ``[..., A]``.
        wanted: ``[..., A]``.
        quantile: in (0, 1); 0.5 is the plain absolute error.
    """
    error = predicted - wanted
    weight = torch.ones_like(error)
    weight[..., 0] = torch.where(error[..., 0] > 0, 2 * (1 - quantile), 2 * quantile)
    return weight * error.abs()


class Trainer:
    """One policy, its optimiser and its place in the data; everything a resume needs.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "settings.json").write_text(json.dumps(vars(args), indent=1))
        self.train, self.valid = FrameSet(args.demos), FrameSet(args.demos, held_out=True)
        self.weight = self._weight()
        words = self.out / "policy" / "tokenizer.json"
        self.tokenizer = (
            Tokenizer.from_file(str(words))
            if words.exists()
            else word_tokenizer(self.train.sentences)
        )
        torch.manual_seed(args.seed)
        state, chunk, _, offsets = self.train.rows[0]
        self.config = pocket_config(
            self.tokenizer.get_vocab_size(),
            self.train.views,
            *chunk.shape,
            len(state),
            tower_layers=args.tower_layers,
        )
        self.statistics = self._statistics()
        self.model = OpenVLA(self.config, self.statistics).to(self.device)
        self.adapter = OpenVLAAdapter(self.model, hashed_words)
        tower = sum(t.hidden_size for t in self.config.towers)
        width = self.config.llm["hidden_size"]
        known = self.tokenizer.get_vocab_size(), self.train.classes, len(offsets)
        self.helpers = Helpers(tower, width, *known).to(self.device)
        unknown = set(args.spare) - set(self.train.classes)
        if unknown:
            raise SystemExit(
                f"--spare: no patch class {', '.join(sorted(unknown))}; "
                f"these demonstrations know {', '.join(self.train.classes)}."
            )
        self.spared = torch.tensor([float(name in args.spare) for name in self.train.classes])
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            _groups(self.model, self.helpers), lr=args.lr, betas=(0.9, 0.95), fused=True
        )
        self.step = 0
        if args.start_from:
            self._start(Path(args.start_from))
        self._resume()
        self.cache = None
        if args.freeze_tower:
            tower = {k: v for k, v in self.average.items() if k.startswith("towers.")}
            self.model.load_state_dict(tower, strict=False)
            self.cache = FeatureCache(self.train, self._frozen)

    def run(self) -> None:
        """Train to the last step, with a line of progress, checkpoints and a learning curve."""
        args, started, first = self.args, time.monotonic(), self.step
        meter: list[dict[str, float]] = []
        while self.step < args.steps:
            for group in self.optimiser.param_groups:
                group["lr"] = args.lr * warm_cosine(self.step, args.steps, args.warmup)
            meter.append(self._step())
            self.step += 1
            self._update_average()
            if self.step % args.log_every == 0:
                rate = (self.step - first) * args.batch / (time.monotonic() - started)
                line = {
                    key: float(np.mean([m[key] for m in meter if key in m])) for key in meter[-1]
                }
                line |= {"step": self.step, "frames": len(self.train), "samples_per_s": rate}
                meter = []
                if self.step % args.save_every == 0 or self.step == args.steps:
                    line |= self.validate()
                    self.save()
                    known = len(self.train)
                    if self.train.refresh() > known:
                        self.weight = self._weight()
                    self.valid.refresh()
                print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
                with (self.out / "curve.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")

    def _step(self) -> dict[str, float]:
        rng = np.random.default_rng([self.args.seed, self.step])
        torch.manual_seed(int(rng.integers(1 << 31)))  # so that a resumed run draws the same noise
        index = draw(rng, self.weight, self.args.batch, self.args.keyframes)
        batch, features = self._batch(index, int(rng.integers(1 << 31)))
        keep = float(rng.choice(self.args.keep))
        if self.step >= self.args.steps * (1.0 - self.args.dense_tail):
            keep = 1.0
        layers = self.args.drop_layer
        layer = int(rng.choice(layers)) if len(layers) > 1 else layers[0]
        self.model.train()
        pretraining = self.step < self.args.pretrain and features is None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.args.bf16):
            losses = (
                self.tower_losses(batch)
                if pretraining
                else self.losses(batch, keep, rng, layer, features)
            )
        loss = sum(losses.values())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [*self.model.parameters(), *self.helpers.parameters()]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(
                f"step {self.step}: the gradient is not finite; "
                f"the last good checkpoint is in {self.out}."
            )
        self.optimiser.step()
        return {key: float(value.detach()) for key, value in losses.items()}

    def _batch(self, index: np.ndarray, seed: int) -> tuple[Batch, Tensor | None]:
        """Frames, and their visual features where the tower learns no more."""
        if self.cache is None:
            return self.train.batch(index, self.args.shift, seed), None
        return self.cache.batch(index)

    def _frozen(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.args.bf16):
            return self.model.vision_features(images.to(self.device)).float().cpu()

    def tower_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The first steps: the tower alone learns what patches show, many times cheaper."""
        ids, _ = self._words(batch)
        features = self.model.vision_features(batch.images.to(self.device))
        return {"tower": self.helpers.tower_loss(features, ids, batch.labels.to(self.device))}

    def losses(
        self,
        batch: Batch,
        keep: float = 1.0,
        rng: np.random.Generator | None = None,
        layer: int = 0,
        features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All losses of one batch, with a random ``keep`` share of the visual tokens.

        Args:
            batch: frames.
            keep: share that stays; 1 keeps all.
            rng: of the draw.
            layer: the decoder layer in front of which the others go; 0 is the projector.
            features: ``[B, M, E]`` of a frozen tower, in place of the batch's pictures.
        """
        model, device = self.model, self.device
        ids, mask = self._words(batch)
        labels = batch.labels.to(device)
        losses = {}
        if features is None:
            features = model.vision_features(batch.images.to(device))
            losses["tower"] = 0.1 * self.helpers.tower_loss(features, ids, labels)
        features = features.to(device)
        proprio = self.statistics.normalise_proprio(None, batch.proprio.to(device))
        if model.training:
            proprio = proprio + self.args.state_noise * torch.randn_like(proprio)
        chosen = None
        if keep < 1.0:
            chosen = torch.from_numpy(rng.random(labels.shape, dtype=np.float32)).to(device)
            chosen = chosen + self.spared.to(device)[labels]
        dropout = Dropout(self.adapter, keep, layer)
        hidden, inputs, kept = dropout.decode(features, ids, proprio, mask, chosen)
        labels = labels.gather(1, kept)
        predicted = model.predict_chunk(hidden, inputs).float()
        wanted = self.statistics.normalise(None, batch.actions.to(device)).clamp(-1.5, 1.5)
        error = quantile_error(predicted, wanted, self.args.quantile)
        losses["action"] = error[..., :GRIPPER].mean()
        if error.shape[-1] > GRIPPER:
            losses["gripper"] = 0.25 * error[..., GRIPPER].mean()
        start = inputs.visual_slots[0]
        tokens = hidden[:, start : start + kept.shape[1]]
        losses["token"] = 0.15 * self.helpers.class_loss(self.helpers.token_class(tokens), labels)
        offsets = self.helpers.offset(hidden[:, inputs.action_rows[0]]).float()
        losses["offset"] = 0.3 * (offsets - 10.0 * batch.offsets.to(device)).abs().mean()
        return losses

    @torch.inference_mode()
    def validate(self, batches: int = 6) -> dict[str, float]:
        """Losses of the averaged weights on held-out demonstrations, dense."""
        if not len(self.valid):
            return {}
        current = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(batches):
            batch = self.valid.batch(rng.integers(len(self.valid), size=32))
            rows.append({k: float(v) for k, v in self.losses(batch).items()})
        self.model.load_state_dict(current)
        return {f"valid_{key}": float(np.mean([row[key] for row in rows])) for key in rows[0]}

    def save(self) -> None:
        """Averaged weights as a policy folder, and everything a resume needs beside it."""
        current = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.save_pretrained(self.out / "policy")
        self.tokenizer.save(str(self.out / "policy" / "tokenizer.json"))
        self.model.load_state_dict(current)
        parts = {"model": current, "average": self.average, "helpers": self.helpers.state_dict()}
        resume.write(self.out / "resume.safetensors", self.step, parts, self.optimiser)

    def _start(self, path: Path) -> None:
        """Begin with another policy's weights, or with the tower alone, as far as they fit."""
        mine = self.model.state_dict()
        found = load_file(path)
        taken = {k: v for k, v in found.items() if k in mine and v.shape == mine[k].shape}
        self.model.load_state_dict(taken, strict=False)
        self.average |= {name: value.clone().to(self.device) for name, value in taken.items()}
        print(f"{len(taken)} of {len(mine)} tensors begin as in {path}", flush=True)

    def _resume(self) -> None:
        path = self.out / "resume.safetensors"
        if not path.exists():
            return
        self.step, parts = resume.read(path, self.optimiser)
        self.model.load_state_dict(parts["model"], strict=False)
        self.average = {k: v.to(self.device) for k, v in parts["average"].items()}
        self.helpers.load_state_dict(parts["helpers"])
        print(f"resumed at step {self.step}", flush=True)

    def _statistics(self) -> Statistics:
        """Action and state ranges of the demonstrations; kept from the first start on."""
        path = self.out / "policy" / "dataset_statistics.json"
        if path.exists():
            return Statistics.load(path)
        actions = np.concatenate([row[1] for row in self.train.rows])
        states = np.stack([row[0] for row in self.train.rows])
        entry = {"action": _range(actions), "proprio": _range(states)}
        # The gripper's two positions stay as they are.
        entry["action"]["mask"] = [number != GRIPPER for number in range(actions.shape[-1])]
        return Statistics({self.args.suite: entry})

    def _weight(self) -> np.ndarray:
        states, chunks, *_ = zip(*self.train.rows, strict=True)
        return surprise(np.stack(states), np.stack(chunks))

    def _words(self, batch: Batch) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer.encode_batch(batch.instructions)
        ids = torch.tensor([e.ids for e in encoded], device=self.device)
        mask = torch.tensor([e.attention_mask for e in encoded], device=self.device)
        return ids, mask.bool()

    def _update_average(self) -> None:
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1.0 - decay)


def _groups(*modules: nn.Module) -> list[dict]:
    """Weight decay on matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def warm_cosine(step: int, steps: int, warmup: int) -> float:
    """The learning rate's share at a step: up in a line, down to a fiftieth in half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress))


def _range(values: np.ndarray) -> dict[str, list[float]]:
    flat = values.reshape(-1, values.shape[-1])
    low, high = np.quantile(flat, 0.01, axis=0), np.quantile(flat, 0.99, axis=0)
    high = np.maximum(high, low + 1e-3)
    return {"q01": low.tolist(), "q99": high.tolist()}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--pretrain", type=int, default=800)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.5, 0.5, 1.0])
    parser.add_argument("--spare", nargs="*", default=[], help="patch classes never dropped")
    parser.add_argument(
        "--drop-layer",
        type=int,
        nargs="+",
        default=[0],
        help="decoder layer that dropout precedes; one of several at each step",
    )
    parser.add_argument("--dense-tail", type=float, default=0.1)
    parser.add_argument(
        "--keyframes", type=float, default=0.0, help="share of frames drawn by how surprising"
    )
    parser.add_argument(
        "--quantile", type=float, default=0.5, help="of the way ahead; lower is more careful"
    )
    parser.add_argument("--shift", type=int, default=2)
    parser.add_argument("--state-noise", type=float, default=0.02, help="on the state in [-1, 1]")
    parser.add_argument(
        "--freeze-tower", action="store_true", help="train the rest: twice as fast, no jitter"
    )
    parser.add_argument(
        "--start-from", help="model.safetensors of a policy, or of a tower, to begin with"
    )
    parser.add_argument("--tower-layers", type=int, default=1, help="residual blocks of the tower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--save-every", type=int, default=250)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    Trainer(args).run()


if __name__ == "__main__":
    main()
