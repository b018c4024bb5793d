"""Measures a policy: stage times over a list of buckets, in turns.

Every round runs every bucket once, each round beginning with the next one, so that drift of the
machine hits all alike. On CUDA the stages are device events (:class:`~vla_prune.clock.StageClock`)
and a call ends when the device has; calls are not captured into graphs, as the profile says.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import torch
from torch import nn

from vla_prune import build, config, report
from vla_prune.adapters.base import Adapter
from vla_prune.adapters.encoder import fingerprint
from vla_prune.bench import blank_observation
from vla_prune.config import PLAIN
from vla_prune.errors import ConfigError
from vla_prune.policy import attach
from vla_prune.pruner import Pruner
from vla_prune.tune import latency
from vla_prune.tune.profile import (
    MAX_ROUNDS,
    NEEDED,
    Bucket,
    Profile,
    Subject,
    recipe_hash,
    writable,
)
from vla_prune.types import Observation, PolicyState

BUCKETS = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True)
class ProfileConfig:
    """What is measured.

    Attributes:
        policy: a policy config by name or path.
        recipe: whose buckets.
        buckets: keep ratios; dense is measured in any case.
        rounds: timed calls of each bucket.
        warmup: calls of each bucket before that, beside those that fill its history.
        cut_layer: moves the decoder cut, for decoders of another depth.
        threads: CPU threads; 0 leaves torch's choice.
        overrides: ``a.b=c`` on the policy config.
        signals: read the controller's score signals, too, which costs a call that cuts nothing.
    """

    policy: str
    recipe: str = "dual_level"
    buckets: Sequence[float] = BUCKETS
    rounds: int = 60
    warmup: int = 3
    cut_layer: int | None = None
    threads: int = 0
    overrides: Sequence[str] = ()
    signals: bool = False

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        ratios = list(self.buckets)
        if not ratios or len(set(ratios)) < len(ratios) or not all(0 < r <= 1 for r in ratios):
            raise ConfigError(
                f"profile: buckets {ratios}; give different keep ratios in (0, 1], at least one."
            )
        if not 1 <= self.rounds <= MAX_ROUNDS or self.warmup < 0:
            raise ConfigError(
                f"profile: {self.rounds} rounds and {self.warmup} warm-up calls; give 1 to "
                f"{MAX_ROUNDS} and 0 or more."
            )
        if self.threads < 0:
            raise ConfigError(
                f"profile: threads {self.threads}; give 1 or more, or 0 for torch's choice."
            )
        if self.recipe in PLAIN:
            raise ConfigError(
                f"profile: recipe {self.recipe!r} has no buckets; name one that prunes. Dense is "
                "measured in any case."
            )


@dataclass
class _Running:
    """One bucket, with the times it gathers."""

    recipe: str
    pruner: Pruner
    keep_ratio: float
    signals: bool = False
    state: PolicyState = field(default_factory=PolicyState)
    calls: list[dict[str, float]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    memory_mb: float = 0.0
    rows: int = 0


def measure(
    settings: ProfileConfig, progress: Callable[[float], None] = lambda share: None
) -> Profile:
    """The profile of a policy on this machine."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    adapter = build.build_adapter(settings.policy, settings.overrides)
    observation = blank_observation(adapter, 0)
    layer = settings.cut_layer
    name = settings.recipe
    running = [_Running("dense", build.build_recipe("dense"), 1.0)]
    for keep in sorted(settings.buckets, reverse=True):
        pruner = build.build_recipe(name, keep, cut_layer=layer)
        running.append(_Running(name, pruner, keep, settings.signals))
    clocks = [clocks_mhz()]
    for bucket in running:
        history = bucket.pruner.history
        for _ in range((history.window if history else 0) + settings.warmup):
            _call(adapter, bucket, observation)
    for number in range(settings.rounds):
        first = number % len(running)
        for bucket in running[first:] + running[:first]:
            bucket.calls.append(_call(adapter, bucket, observation))
        progress((number + 1) / settings.rounds)
    clocks.append(clocks_mhz())
    stages = _stages(call for bucket in running for call in bucket.calls)
    return Profile(
        subject_of(adapter, settings),
        machine(adapter) | {"clocks_mhz": clocks, "rounds": settings.rounds},
        adapter.layout.total,
        tuple(_bucket(adapter, bucket, stages) for bucket in running),
        chunk_rows=running[0].rows,
    )


def run(
    settings: ProfileConfig, output: Path, progress: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Measure, fit and save; what ``vla-prune profile`` tells."""
    writable(output)
    profile = measure(settings, progress)
    rows = []
    for bucket in profile.buckets:
        found = bucket.summary()
        told = {name: getattr(bucket, name) for name in ("recipe", "keep_ratio", "tokens")}
        stages = {stage: found[stage]["median"] for stage in profile.stages}
        rows.append({**told, **stages, **found["total"], "memory_mb": bucket.memory_mb})
    model, notes = None, []
    try:
        fitted = latency.fit(profile)
        model = fitted.as_dict()
        if not fitted.errors:
            notes.append("the model's error is not known: that takes five buckets or more.")
        for p in fitted.errors:
            notes.append(
                f"p{p} at buckets that the model did not see: off by at most "
                f"{100 * fitted.worst_error(p):.1f}%."
            )
    except ConfigError as error:
        notes.append(str(error))
    profile.save(output, latency_model=model)
    return {
        "policy": profile.subject.policy,
        "profile": str(output),
        "stages": list(profile.stages),
        "rows": rows,
        "latency_model": model,
        "notes": notes,
    }


def keep_ratios(text: str) -> tuple[float, ...]:
    """Comma-separated numbers.

    Raises:
        ConfigError: one is no number.
    """
    try:
        return tuple(float(item) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise ConfigError(
            f"profile: --buckets {text!r}; give keep ratios in (0, 1] with commas between them, "
            "such as 1.0,0.5,0.25."
        ) from error


def subject_of(adapter: Adapter, settings: ProfileConfig) -> Subject:
    """What a profile of this adapter is about; to check a loaded profile against."""
    module = _module(adapter)
    data = config.load(settings.policy, settings.overrides, kind="policy")
    told = json.dumps({k: v for k, v in data.items() if k not in ("device", "dtype", "name")})
    return Subject(
        Path(settings.policy).stem,
        hashlib.sha256(told.encode()).hexdigest()[:16],
        fingerprint(module.state_dict().items()),
        settings.recipe,
        recipe_hash(settings.recipe),
        settings.cut_layer,
        adapter.device.type,
        str(next(module.parameters()).dtype).removeprefix("torch."),
        _attention(module),
        torch.get_num_threads(),
        report.commit(),
        settings.signals,
    )


def machine(adapter: Adapter) -> dict[str, Any]:
    """What a profile names beside its subject."""
    versions = {"transformers": version("transformers"), "python": python_version()}
    told = {"device": str(adapter.device), "calls": "eager, not captured into graphs"}
    return report.machine() | versions | told


def clocks_mhz() -> dict[str, float]:
    """CPU (mean over cores) and GPU clock now, as far as they can be read here."""
    found = {}
    folder = Path("/sys/devices/system/cpu")
    read = [_number(p, 1e-3) for p in folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    if not any(read):
        with suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            read = [float(x.split(":")[1]) for x in lines if x.startswith("cpu MHz")]
    if any(read):
        found["cpu"] = round(float(np.mean([value for value in read if value])), 1)
    if torch.cuda.is_available():
        with suppress(Exception):  # needs a package of NVIDIA's that torch does not bring
            found["gpu"] = float(torch.cuda.clock_rate())
    return found


def _call(adapter: Adapter, bucket: _Running, observation: Observation) -> dict[str, float]:
    """Stage -> milliseconds of one call; ``other`` is what no stage claims."""
    cuda = adapter.device.type == "cuda"
    with attach(bucket.pruner, adapter, time_stages=True, signals=bucket.signals) as policy:
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        chunk = policy.act_one(observation, bucket.state)
        if cuda:
            torch.cuda.synchronize()
        total = (time.perf_counter() - start) * 1e3
    bucket.rows = len(chunk.actions)
    kept = {site: len(index) for site, index in chunk.kept.items()}
    # A recipe that looks at everything again now and then cuts nothing in such a call.
    bucket.kept = min((found for found in (kept, bucket.kept) if found), key=_sum, default={})
    used = torch.cuda.max_memory_allocated() / 2**20 if cuda else _resident_mb()
    bucket.memory_mb = max(bucket.memory_mb, used)
    stages = {stage: max(0.0, ms) for stage, ms in chunk.stage_ms.items()}
    return stages | {"other": max(0.0, total - sum(stages.values()))}


def _sum(kept: dict[str, int]) -> int:
    return sum(kept.values())


def _stages(calls: Iterable[dict[str, float]]) -> list[str]:
    """All that occurred, in the order of a call, ``other`` last."""
    order = ["prepare", "vision", "projector", "selection", "prefill", "denoise", "decode", "head"]
    seen = {*NEEDED}.union(*calls)
    return [s for s in order if s in seen] + sorted(seen - {*order, "other"}) + ["other"]


def _bucket(adapter: Adapter, bucket: _Running, stages: list[str]) -> Bucket:
    samples = {
        stage: np.array([call.get(stage, 0.0) for call in bucket.calls]) for stage in stages
    }
    tokens = min([adapter.layout.total, *bucket.kept.values()])
    return Bucket(bucket.recipe, bucket.keep_ratio, tokens, bucket.kept, samples, bucket.memory_mb)


def _module(adapter: Adapter) -> nn.Module:
    """The network, however the adapter calls it."""
    for name in ("model", "decoder"):
        if isinstance(getattr(adapter, name, None), nn.Module):
            return getattr(adapter, name)
    raise ConfigError(f"profile: {adapter.name} has no model to hash; its adapter keeps none.")


def _attention(module: nn.Module) -> str:
    """The kernel's name in transformers, the first that a part of the network is set to."""
    for part in module.modules():
        found = getattr(getattr(part, "config", None), "_attn_implementation", None)
        if found:
            return str(found)
    return "unknown"


def _resident_mb() -> float:
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the peak, elsewhere than on Linux
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def _number(path: Path, factor: float) -> float:
    with suppress(OSError, ValueError):
        return float(path.read_text(encoding="utf-8")) * factor
    return 0.0
