"""Teach an image tower alone to see what stands where: looks in, tower weights out, resumable.

A policy's loss says little about sight: most frames show nothing to brake for. Here every patch
answers for itself what it shows, how far off and on which side that stands, and how the route
bends there. The heads are thrown away; the tower begins a policy (``bc --start-from``). ::

    python -m vla_prune_sim.train.tower --sights runs/sights/drive --out runs/tower/drive
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from vla_prune_sim.train.bc import CLASS_WEIGHT, warm_cosine
from vla_prune_sim.train.drive_demos import CLASSES
from vla_prune_sim.train.frames import augment
from vla_prune_sim.train.pocket import pocket_config

from vla_prune.models.vision import build_tower
from vla_prune.recon import resume

WARMUP = 100  # steps
BEND_M = 6.0  # a route that bends more is as good as gone
NAMES = ("images", "classes", "places", "lanes")


def squashed(metres: Tensor) -> Tensor:
    """Metres so that an error counts by what share of the distance it is."""
    return metres.sign() * metres.abs().log1p()


class PatchHeads(nn.Module):
    """What each patch answers: classes, place ahead and left (squashed), bend of the route.

    Args:
        width: of the tower.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.answer = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, len(CLASSES) + 3),
        )
        self.weight = torch.tensor([CLASS_WEIGHT.get(name, 1.0) for name in CLASSES])

    def losses(self, features: Tensor, looks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses of features ``[B, n, C]`` of looks whose patches are flat: ``[B, n]``."""
        logits, places, bend = self.answer(features).split([len(CLASSES), 2, 1], dim=-1)
        classes = F.cross_entropy(logits.flatten(0, 1), looks["classes"].flatten(), self.weight)
        wanted = looks["lanes"].clamp(-BEND_M, BEND_M) / BEND_M
        return {
            "class": classes,
            "place": _absolute(places, squashed(looks["places"])),
            "bend": _absolute(bend[..., 0], wanted),
        }

    def ahead_m(self, features: Tensor) -> Tensor:
        """Metres to the near end of what each patch shows, ``[B, n]``."""
        answer = self.answer(features)[..., len(CLASSES)]
        return answer.sign() * answer.abs().expm1()


def _absolute(told: Tensor, wanted: Tensor) -> Tensor:
    known = wanted.isfinite()
    return (told - wanted)[known].abs().mean() if known.any() else told.sum() * 0.0


class Looks:
    """Looks of :mod:`vla_prune_sim.train.sights` in memory; the first shard is for validation.

    Args:
        folder: of ``shard_*.safetensors``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._seen = folder, []
        self.parts: dict[str, list[Tensor]] = {name: [] for name in NAMES}
        self.refresh()
        if len(self._seen) < 2:
            raise SystemExit(f"{folder}: {len(self._seen)} shards; two are needed: make sights.")

    def refresh(self) -> int:
        """Read what has arrived since; the first shard stays for validation."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._seen:
                continue
            shard = load_file(path)
            if not self._seen:
                self.valid = shard
            else:
                for name in NAMES:
                    self.parts[name] += list(shard[name])
            self._seen.append(path)
        return len(self.parts["images"])

    def batch(self, index: np.ndarray, seed: int) -> dict[str, Tensor]:
        """Looks at ``index``: jittered images ``[B, V, 3, S, S]``, labels ``[B * V, n]``."""
        looks = {name: torch.stack([self.parts[name][i] for i in index]) for name in NAMES}
        return prepared(looks, seed)


def prepared(looks: dict[str, Tensor], seed: int | None = None) -> dict[str, Tensor]:
    """Stored looks as the heads want them; with a seed, images get gain, offset and noise."""
    images = looks["images"].permute(0, 1, 4, 2, 3).float().div_(255.0)
    if seed is not None:
        images = augment(images, 0, torch.Generator().manual_seed(seed))
    return {
        "images": images.flatten(0, 1),
        "classes": looks["classes"].long().flatten(0, 1).flatten(1),
        "places": looks["places"].flatten(0, 1).flatten(1, 2),
        "lanes": looks["lanes"].flatten(0, 1).flatten(1),
    }


class TowerTrainer:
    """A tower, its heads and its optimiser.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.looks = Looks(args.sights)
        torch.manual_seed(args.seed)
        config = pocket_config(1, tower_layers=args.layers).towers[0]
        self.tower = build_tower(config)
        self.heads = PatchHeads(config.hidden_size)
        self.modules = nn.ModuleDict({"tower": self.tower, "heads": self.heads})
        if args.start_from:
            self._start(Path(args.start_from))
        self.average = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.modules.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.02
        )
        self.step = 0
        self._resume()

    def run(self) -> None:
        """Train to the last step, with a line of progress and a checkpoint now and then."""
        args, started, first, meter = self.args, time.monotonic(), self.step, []
        while self.step < args.steps:
            meter.append(self._step())
            if self.step % args.log_every == 0 or self.step in (args.steps, args.heads_first):
                line = {k: float(np.mean([m[k] for m in meter])) for k in meter[0]}
                meter = []
                line |= self.validate() | {"step": self.step, "looks": self.looks.refresh()}
                seen = (self.step - first) * args.batch
                line["looks_per_s"] = seen / (time.monotonic() - started)
                print(json.dumps({k: round(v, 4) for k, v in line.items()}), flush=True)
                self.save()

    def _step(self) -> dict[str, float]:
        args = self.args
        rng = np.random.default_rng([args.seed, self.step])
        for group in self.optimiser.param_groups:
            group["lr"] = args.lr * warm_cosine(self.step, args.steps, WARMUP)
        index = rng.integers(len(self.looks.parts["images"]), size=args.batch)
        looks = self.looks.batch(index, int(rng.integers(1 << 31)))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            with torch.set_grad_enabled(self.step >= args.heads_first):
                features = self.tower(looks["images"])
            losses = self.heads.losses(features, looks)
        self.optimiser.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(0.998, (1 + self.step) / (10 + self.step))
        for name, value in self.modules.state_dict().items():
            self.average[name].lerp_(value, 1.0 - decay)
        return {k: float(v.detach()) for k, v in losses.items()}

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Losses of the averaged weights on the first shard, and metres off by distance."""
        current = {k: v.clone() for k, v in self.modules.state_dict().items()}
        self.modules.load_state_dict(self.average)
        looks = prepared({name: self.looks.valid[name][:400] for name in NAMES})
        features = torch.cat([self.tower(part) for part in looks["images"].split(96)])
        line = {f"valid_{k}": float(v) for k, v in self.heads.losses(features, looks).items()}
        ahead, told = looks["places"][..., 0], self.heads.ahead_m(features)
        for low, high in ((2, 8), (8, 16), (16, 32)):
            there = (ahead > low) & (ahead <= high)
            line[f"off_m_{low}_{high}"] = float((told - ahead)[there].abs().mean())
        self.modules.load_state_dict(current)
        return line

    def save(self) -> None:
        """The averaged tower as a policy names it, and what a resume needs."""
        tower = {
            k.replace("tower.", "towers.0.", 1): v.contiguous()
            for k, v in self.average.items()
            if k.startswith("tower.")
        }
        save_file(tower, self.out / "model.safetensors")
        parts = {"now": self.modules.state_dict(), "average": self.average}
        resume.write(self.out / "resume.safetensors", self.step, parts, self.optimiser)

    def _start(self, path: Path) -> None:
        towers = {k: v for k, v in load_file(path).items() if k.startswith("towers.0.")}
        known = {name.removeprefix("towers.0."): value for name, value in towers.items()}
        self.tower.load_state_dict(known, strict=False)

    def _resume(self) -> None:
        path = self.out / "resume.safetensors"
        if not path.exists():
            return
        self.step, parts = resume.read(path, self.optimiser)
        self.modules.load_state_dict(parts["now"])
        self.average = parts["average"]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=3, help="residual blocks")
    parser.add_argument("--start-from", help="model.safetensors whose tower to begin with")
    parser.add_argument("--heads-first", type=int, default=0, help="steps before the tower learns")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="faster where the CPU knows it")
    parser.add_argument("--log-every", type=int, default=100)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    TowerTrainer(args).run()


if __name__ == "__main__":
    main()
