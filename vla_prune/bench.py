"""Dense against pruned in one run: the same model, kernel, dtype, batch and warm-up.

What is measured: one policy call end to end, and its stages. Dense and all variants take turns; a
``speedup`` is the median over the rounds of dense time by variant time, so that drift of the
machine cancels. ``ideal`` is the ratio of multiply-accumulates of the language model's pass, a
recipe's foreground network counted with its own; ``ceiling`` what this policy would gain if that
pass took no time at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from vla_prune import build, report
from vla_prune.adapters.base import Adapter
from vla_prune.cost import amdahl_ceiling, prefill_macs, tokens_per_layer
from vla_prune.errors import ConfigError
from vla_prune.policy import attach
from vla_prune.pruner import Pruner
from vla_prune.recon.bind import bind, scoring_macs
from vla_prune.types import ActionChunk, Observation, PolicyState


@dataclass(frozen=True)
class BenchConfig:
    """What ``configs/bench/*.yaml`` may hold.

    Attributes:
        policy: a policy config by name or path.
        recipes: compared with dense, each at each keep ratio.
        keep_ratios: fractions kept.
        repeats: timed calls of each variant.
        warmup: calls of each variant before that, beside those that fill its history.
        batch: observations per call.
        cut_layer: moves decoder cuts, for decoders of another depth.
        threads: CPU threads; 0 leaves torch's choice.
        seed: of the first observation; the next ones of a batch count up.
    """

    policy: str
    recipes: list[str]
    keep_ratios: list[float] = field(default_factory=lambda: [0.25])
    repeats: int = 15
    warmup: int = 2
    batch: int = 1
    cut_layer: int | None = None
    threads: int = 0
    seed: int = 0


@dataclass
class Variant:
    """One recipe at one keep ratio, with the states and times it gathers."""

    pruner: Pruner
    keep_ratio: float
    states: list[PolicyState]
    total_ms: list[float] = field(default_factory=list)
    stages: list[Mapping[str, float]] = field(default_factory=list)
    chunk: ActionChunk | None = None


def run(
    config: BenchConfig, progress: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """All rows and the machine, as the JSON document that ``vla-prune bench`` prints last."""
    if config.repeats < 1 or not config.recipes:
        raise ConfigError("bench: give at least one recipe and one repeat.")
    if config.threads:
        torch.set_num_threads(config.threads)
    adapter = build.build_adapter(config.policy)
    observations = [blank_observation(adapter, config.seed + row) for row in range(config.batch)]
    variants = [_variant("dense", 1.0, config)]
    for recipe in config.recipes:
        if recipe != "dense":
            variants += [_variant(recipe, keep, config) for keep in config.keep_ratios]
    rounds = config.warmup + config.repeats
    for variant in variants:
        _fill_history(adapter, variant, observations)
    for number in range(rounds):
        for variant in variants:
            _time_call(adapter, variant, observations, keep=number >= config.warmup)
        progress((number + 1) / rounds)
    rows = [_row(adapter, variant, variants[0]) for variant in variants]
    told = report.provenance(config.seed)
    told["machine"] |= {"device": str(adapter.device), "policy": adapter.name}
    return {"rows": rows, **told}


def blank_observation(adapter: Adapter, seed: int) -> Observation:
    """Seeded noise in the shape that the adapter's policy takes."""
    make = getattr(adapter, "example_observation", None)
    return make(seed) if make else Observation({}, "bench")


def _variant(recipe: str, keep: float, config: BenchConfig) -> Variant:
    pruner = build.build_recipe(
        recipe, keep if recipe != "dense" else None, cut_layer=config.cut_layer
    )
    return Variant(pruner, keep, [PolicyState() for _ in range(config.batch)])


def _fill_history(adapter: Adapter, variant: Variant, observations: list[Observation]) -> None:
    history = variant.pruner.history
    with attach(variant.pruner, adapter) as policy:
        for _ in range(history.window if history else 0):
            policy.act(observations, variant.states)


def _time_call(
    adapter: Adapter, variant: Variant, observations: list[Observation], keep: bool
) -> None:
    with attach(variant.pruner, adapter, time_stages=True) as policy:
        _wait(adapter)
        start = time.perf_counter()
        chunk = policy.act(observations, variant.states)[0]
        _wait(adapter)
        total = (time.perf_counter() - start) * 1e3
    if keep:
        variant.total_ms.append(total)
        variant.stages.append(chunk.stage_ms)
        variant.chunk = chunk


def _wait(adapter: Adapter) -> None:
    if adapter.device.type == "cuda":
        torch.cuda.synchronize()


def _row(adapter: Adapter, variant: Variant, dense: Variant) -> dict[str, Any]:
    kept = {site: len(index) for site, index in variant.chunk.kept.items()}
    lengths = tokens_per_layer(adapter.shape, adapter.layout.total, adapter.other_tokens, kept)
    full = tokens_per_layer(adapter.shape, adapter.layout.total, adapter.other_tokens, {})
    [bound] = bind([variant.pruner], adapter)
    macs = prefill_macs(adapter.shape, lengths) + scoring_macs(bound, adapter.layout, kept)
    dense_macs = prefill_macs(adapter.shape, full)
    median, dense_median = float(np.median(variant.total_ms)), float(np.median(dense.total_ms))
    dense_prefill = _stage(dense, "prefill", 50)
    return {
        "recipe": variant.pruner.name,
        "keep_ratio": variant.keep_ratio,
        "tokens": min([adapter.layout.total, *kept.values()]),
        "median_ms": median,
        "p95_ms": float(np.percentile(variant.total_ms, 95)),
        "stages_ms": {name: _stage(variant, name, 50) for name in variant.stages[0]},
        "stages_p95_ms": {name: _stage(variant, name, 95) for name in variant.stages[0]},
        "speedup": float(np.median(np.divide(dense.total_ms, variant.total_ms))),
        "ideal": dense_macs / macs,
        "ceiling": amdahl_ceiling(dense_median, dense_prefill),
        "macs": macs,
        "selection_fraction": _stage(variant, "selection", 50) / max(dense_prefill, 1e-9),
    }


def _stage(variant: Variant, name: str, percentile: int) -> float:
    return float(np.percentile([stages.get(name, 0.0) for stages in variant.stages], percentile))
