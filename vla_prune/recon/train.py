"""Training of the reconstructor: frozen encoder, cached features, resumable to the bit.

Example::

    train(load("pocket_drive"), build_adapter("pocket_drive"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_prune import config as configs
from vla_prune.adapters.encoder import encoder_of
from vla_prune.errors import (
    CheckpointError,
    ConfigError,
    MissingError,
    ShapeError,
    check_least,
    did_you_mean,
)
from vla_prune.models import checkpoint
from vla_prune.models.checkpoint import open_tensors
from vla_prune.recon import resume
from vla_prune.recon.cache import Cached, build_cache
from vla_prune.recon.checkpoint import read_config, save_reconstructor
from vla_prune.recon.frames import DataConfig
from vla_prune.recon.losses import LossConfig, Reconstruction
from vla_prune.recon.metrics import average_precision
from vla_prune.recon.model import DecoderConfig, ReconConfig, grid_places

RESUME, WEIGHTS, CURVE = "resume.safetensors", "reconstructor", "curve.jsonl"
FREE = ("steps", "log_every", "save_every", "out", "cache")  # may change between two starts
INITS = ("random", "host")
CHOICES = ("best", "last")
SAMPLE = 400  # training frames that choose the best checkpoint
Report = Callable[[str, int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class TrainConfig:
    """One training, as it stands in ``configs/recon``.

    Attributes:
        policy: whose vision encoder it is for.
        data: which frames.
        out: folder of checkpoints; weights are written to ``out/reconstructor``.
        cache: folder of cached features; shared by trainings on the same frames and encoder.
        model: fields of :class:`ReconConfig` but ``hidden``, which follows the encoder.
        decoder: fields of :class:`DecoderConfig`.
        loss: fields of :class:`LossConfig`.
        init: of the pruner's layer: ``random``, or ``host``: a copy of the policy's decoder layer
            0, where widths agree. The paper does not say; copying starts from features that the
            host knows how to read, random weights need no host.
        steps: of the optimiser. The paper: 10 epochs.
        batch: pictures a step, over all devices. The paper does not say.
        lr: highest rate; cosine down to 0 after ``warmup`` steps. 2e-5 in the paper, from
            pretrained layers; small random ones need more.
        pace: the pruner's rate as a share of the decoder's. The paper names one rate for both. A
            decoder that lags does not yet tell which tokens a picture needs, and the scorer then
            settles on others: with one rate, token average precision on pocket-drive fell from
            0.98 to below 0.5 while the loss stood; at a fifth it was 0.90 by then (both with a
            ``filler_std`` of 0.5).
        choose: whose weights are for use: ``best``, the checkpoint's that finds the foreground
            best on a sample of its own *training* frames, or ``last``. The loss does not say: what
            can be guessed from its neighbours is drawn as well from either half of the tokens, so
            scores of sky and walls drift. The paper does not say.
        warmup: steps of linear rise; the paper names none.
        weight_decay: AdamW's, on matrices alone. The paper does not say.
        clip: greatest norm of the gradient.
        bf16: autocast; float32 otherwise.
        seed: of weights and batches.
        log_every: steps.
        save_every: steps between checkpoints and validations.
    """

    policy: str
    data: DataConfig
    out: str
    cache: str
    model: ReconConfig
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    init: str = "random"
    steps: int = 2000
    batch: int = 32
    lr: float = 2e-5
    pace: float = 1.0
    choose: str = "best"
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0
    log_every: int = 25
    save_every: int = 250

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        if self.init not in INITS:
            raise ConfigError(f"recon: init {self.init!r} is unknown; known: host, random.")
        if self.choose not in CHOICES:
            raise did_you_mean("recon", "choose", self.choose, CHOICES)
        check_least("recon", 1, steps=self.steps, batch=self.batch)
        check_least("recon", 1, log_every=self.log_every, save_every=self.save_every)
        check_least("recon", 0, above=True, lr=self.lr, pace=self.pace, clip=self.clip)
        check_least("recon", 0, warmup=self.warmup, weight_decay=self.weight_decay, seed=self.seed)


def train_config(where: str, data: Mapping[str, Any], hidden: int) -> TrainConfig:
    """From plain data.

    Args:
        where: the file, for messages.
        data: of the YAML.
        hidden: width of the encoder's tokens.
    """
    made = {"model": {}} | dict(data)
    configs.check_keys(where, TrainConfig, made)
    if isinstance(made["model"], Mapping):
        if "hidden" in made["model"]:
            raise ConfigError(
                f"{where}: model: hidden is {made['model']['hidden']!r}, but follows the policy's "
                f"encoder, whose tokens are {hidden} wide; leave it out."
            )
        made["model"] = {**made["model"], "hidden": hidden}
    for name, cls in (
        ("data", DataConfig),
        ("model", ReconConfig),
        ("decoder", DecoderConfig),
        ("loss", LossConfig),
    ):
        part = made.get(name, {})
        configs.check_keys(f"{where}: {name}", cls, part)
        made[name] = cls(**part)
    return TrainConfig(**made)


def train(config: TrainConfig, adapter: Any, report: Report | None = None) -> dict[str, float]:
    """Train to the last step, or on from the last checkpoint.

    Returns what the weights for use showed on held-out frames.

    Args:
        config: all settings.
        adapter: of the policy, for its encoder.
        report: called with what is going on, how far, of how much, and the latest figures.

    Raises:
        ShapeError: the loss is not finite; the last good checkpoint stays.
        CheckpointError: ``out`` holds a training with other settings.
    """
    report = report or (lambda *_: None)
    return Trainer(config, adapter, report).run()


class Trainer:
    """One reconstructor, its optimiser and its place in the data; everything a resume needs."""

    def __init__(self, config: TrainConfig, adapter: Any, report: Report) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingError(
                "training needs accelerate; pip install 'vla-prune[train]'."
            ) from error
        self.config, self.report = config, report
        self.accelerator = Accelerator(mixed_precision="bf16" if config.bf16 else "no")
        self.out = Path(config.out)
        self.encoder = encoder_of(adapter)
        with self.accelerator.main_process_first():
            self.chosen = build_cache(
                Path(config.cache),
                config.data,
                adapter,
                lambda share: report("caching features", round(share * 1000), 1000, {}),
            )
        self.frames = Cached(Path(config.cache), "train")
        self.held_out = Cached(Path(config.cache), "held_out")
        torch.manual_seed(config.seed)
        network = Reconstruction(config.model, config.decoder, config.loss, self.encoder)
        if config.init == "host":
            copy_host_layer(network, adapter)
        groups = _groups(network.pruner, config.weight_decay, config.pace)
        groups += _groups(network.decoders, config.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
        self.network, self.optimiser = self.accelerator.prepare(network, optimiser)
        self.step = 0
        self._check_settings()
        self._resume()
        self._cut_curve()

    @property
    def plain(self) -> Reconstruction:
        """The network without what accelerate put around it."""
        return self.accelerator.unwrap_model(self.network)

    def run(self) -> dict[str, float]:
        """All steps that are left; the held-out figures of the weights for use."""
        config, meter = self.config, []
        while self.step < config.steps:
            meter.append(self._step())
            self.step += 1
            last = self.step == config.steps
            if self.step % config.log_every == 0 or last:
                line = {key: float(np.mean([row[key] for row in meter])) for key in meter[0]}
                meter = []
                if self.step % config.save_every == 0 or last:
                    told = self.validate()
                    line |= {f"held_out_{key}": value for key, value in told.items()}
                    self._save(told)
                self._log(line)
                self.report("training", self.step, config.steps, line)
            elif self.step % config.save_every == 0:
                told = self.validate()
                self._save(told)
        self.accelerator.wait_for_everyone()
        return read_config(self.out / WEIGHTS)["about"]["held_out"]

    def _step(self) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        rng = np.random.default_rng([config.seed, self.step])
        index = rng.integers(len(self.frames), size=config.batch)
        share = index[accelerator.process_index :: accelerator.num_processes]
        batch = [part.to(accelerator.device) for part in self.frames.batch(share)]
        for group in self.optimiser.param_groups:
            rate = config.lr * group["pace"]
            group["lr"] = rate * _schedule(self.step, config.steps, config.warmup)
        self.network.train()
        told = self.network(*batch)
        loss = told.pop("loss")
        told.pop("scores")
        self.optimiser.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(self.network.parameters(), config.clip)
        # After the backward pass gradients are those of all devices, so all stop together.
        if not bool(torch.isfinite(norm)) or not bool(torch.isfinite(loss)):
            kept = (
                f"the last good checkpoint, of step {self._saved()}, is kept in {self.out}"
                if (self.out / RESUME).is_file()
                else "there is no checkpoint yet"
            )
            raise ShapeError(
                f"recon: the loss or its gradient is not finite at step {self.step} (loss "
                f"{float(loss.detach()):g}); {kept}. Lower 'lr', or look for broken frames."
            )
        self.optimiser.step()
        return {"loss": float(loss.detach()), **{k: float(v.detach()) for k, v in told.items()}}

    @torch.no_grad()
    def validate(self, batch: int = 32) -> dict[str, float]:
        """Losses, foreground ratio and token average precision on held-out frames."""
        if not len(self.held_out):
            return {}
        network = self.plain.eval()
        rows, scores, labels = [], [], []
        for start in range(0, len(self.held_out), batch):
            index = np.arange(start, min(start + batch, len(self.held_out)))
            parts = [p.to(self.accelerator.device) for p in self.held_out.batch(index)]
            with self.accelerator.autocast():
                told = network(*parts)
            scores.append(told.pop("scores").float().cpu())
            labels.append(parts[3].cpu())
            rows.append(({k: float(v) for k, v in told.items()}, len(index)))
        weight = [count for _, count in rows]
        result = {
            key: float(np.average([row[key] for row, _ in rows], weights=weight))
            for key in rows[0][0]
        }
        return result | {"token_ap": average_precision(torch.cat(scores), torch.cat(labels))}

    @torch.no_grad()
    def trained_ap(self, batch: int = 32) -> float:
        """Token average precision on a sample of the training frames, which may choose.

        Args:
            batch: frames of one pass.
        """
        pruner, encoder = self.plain.eval().pruner, self.encoder
        count = min(SAMPLE, len(self.frames))
        sample = np.linspace(0, len(self.frames) - 1, count).round().astype(int)
        scores, labels = [], []
        for start in range(0, count, batch):
            tokens, _, _, part = self.frames.batch(sample[start : start + batch])
            tokens = tokens.to(self.accelerator.device)
            places = grid_places(len(tokens), encoder.rows, encoder.cols, tokens.device)
            with self.accelerator.autocast():
                scores.append(pruner(tokens, places).float().cpu())
            labels.append(part)
        return average_precision(torch.cat(scores), torch.cat(labels))

    # --- files ----------------------------------------------------------------------------------

    def _log(self, line: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            with (self.out / CURVE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **line}) + "\n")

    def _save(self, told: Mapping[str, float]) -> None:
        """Weights for use, and beside them everything that a resume needs."""
        if not self.accelerator.is_main_process:
            return
        about = {
            "policy": self.config.policy,
            "objective": self.config.loss.objective,
            "source": self.config.data.source,
            "foreground": list(self.config.data.foreground),
            "frames": len(self.frames),
            "steps": self.step,
            "trained_ap": self.trained_ap(),
            "held_out": dict(told),
        }
        if self.config.choose == "last" or not about["trained_ap"] < self._best():
            save_reconstructor(self.out / WEIGHTS, self.plain.pruner, self.encoder, about)
        network = {"network": self.plain.state_dict()}
        resume.write(self.out / RESUME, self.step, network, self.optimiser)

    def _best(self) -> float:
        """What the weights for use reached, if this training wrote some and they still stand."""
        there = self.out / RESUME, self.out / WEIGHTS / checkpoint.CONFIG
        if not all(path.is_file() for path in there):
            return 0.0
        return read_config(self.out / WEIGHTS)["about"]["trained_ap"]

    def _saved(self) -> str:
        with open_tensors(self.out / RESUME) as file:
            return file.metadata()["step"]

    def _resume(self) -> None:
        path = self.out / RESUME
        if not path.is_file():
            return
        self.step, parts = resume.read(path, self.optimiser)
        self.plain.load_state_dict(parts["network"])

    def _cut_curve(self) -> None:
        """Take off what was logged behind the checkpoint, which comes again."""
        path = self.out / CURVE
        if self.accelerator.is_main_process and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= self.step]
            path.write_text("".join(kept), encoding="utf-8")

    def _check_settings(self) -> None:
        """A folder belongs to one training."""
        now = json.loads(json.dumps(asdict(self.config) | {"frames": self.chosen}))
        path = self.out / "settings.json"
        if path.is_file() and (self.out / RESUME).is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            for name in now:
                if name not in FREE and there.get(name) != now[name]:
                    raise CheckpointError(
                        f"{self.out}: holds a training with {name} {there.get(name)}, this one "
                        f"has {now[name]}; name another 'out' or delete the folder."
                    )
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()


def copy_host_layer(network: Reconstruction, adapter: Any) -> None:
    """Begin with the host decoder's layer 0; biases that it lacks stay zero.

    Raises:
        ConfigError: it has other sizes.
    """
    layer = network.pruner.layer.layer
    own, host = layer.state_dict(), adapter.hooks.decoder.layers[0].state_dict()
    for name, tensor in own.items():
        missing = name not in host and not name.endswith("bias")
        if missing or (name in host and host[name].shape != tensor.shape):
            found = "none" if missing else list(host[name].shape)
            raise ConfigError(
                f"recon: init 'host' needs a decoder layer of the pruner's sizes, but {name} is "
                f"{found} in {adapter.name} and {list(tensor.shape)} in the pruner; change the "
                "model's sizes, or use init 'random'."
            )
    layer.load_state_dict({k: v.to(own[k]) for k, v in host.items() if k in own}, strict=False)


def _groups(network: torch.nn.Module, decay: float, pace: float = 1.0) -> list[dict]:
    """Weight decay on matrices only."""
    matrix = lambda p: p.dim() > 1 and p.shape[0] > 1  # noqa: E731 the query and scorer are rows
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if matrix(p) == big], "weight_decay": rate, "pace": pace}
        for big, rate in ((True, decay), (False, 0.0))
    ]


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear rise, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + cos(pi * (step - warmup) / max(1, steps - warmup)))
