"""Profiles whose truth is known."""

from __future__ import annotations

import numpy as np

from vla_prune.tune.profile import Bucket, Profile, Subject

SUBJECT = Subject(
    "tiny", "c0ffee", "beef", "dual_level", "f00d", 2, "cpu", "float32", "sdpa", 2, "abc123"
)
TOKENS = 288
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)


def truth(tokens: float) -> dict[str, float]:
    """Stage -> median milliseconds."""
    cut = tokens < TOKENS
    return {
        "vision": 8.0,
        "projector": 0.5,
        "selection": 0.6 + 0.004 * tokens if cut else 0.1,
        "prefill": 5.0 + 0.05 * tokens + 1e-4 * tokens**2,
        "head": 1.0,
        "other": 0.3,
    }


def profile(rounds: int = 400, noise: float = 0.08, seed: int = 0, ratios=RATIOS) -> Profile:
    """Every call is late by a share of its own, sometimes much."""
    rng = np.random.default_rng(seed)
    buckets = [_bucket("dense", 1.0, rounds, noise, rng)]
    buckets += [_bucket("dual_level", ratio, rounds, noise, rng) for ratio in ratios]
    return Profile(SUBJECT, {"processor": "made up"}, TOKENS, tuple(buckets))


def _bucket(recipe: str, ratio: float, rounds: int, noise: float, rng) -> Bucket:
    tokens = round(TOKENS * ratio)
    late = 1.0 + rng.gamma(1.0, noise, size=rounds)
    late /= np.median(late)
    samples = {stage: ms * late for stage, ms in truth(tokens).items()}
    return Bucket(recipe, ratio, tokens, {"decoder.2": tokens}, samples, 100.0)
