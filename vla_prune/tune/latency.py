"""How long a call takes at budgets that were not measured. Numpy only.

Every stage is ``a + b k + c k^2`` milliseconds for ``k`` visual tokens behind the cut, with no
coefficient below zero (projections and feed-forward are linear in the tokens, attention is
quadratic, ALGORITHMS.md 1.6). A percentile lies ``d + e * median`` above the median: bad luck that
comes once a call, and bad luck that lasts as long as the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np

from vla_prune.cost import amdahl_ceiling
from vla_prune.errors import ConfigError
from vla_prune.tune.profile import PERCENTILES, Bucket, Profile

TOTAL = "total"
LEAST = 3  # buckets that a fit takes


@dataclass(frozen=True)
class StageModel:
    """One stage.

    Attributes:
        curve: ``(a, b, c)`` of the median.
        tails: percentile -> ``(d, e)`` of its distance from the median.
        uncut: percentile -> milliseconds as measured where nothing is cut; None if the curve holds
            there, too.
    """

    curve: tuple[float, float, float]
    tails: Mapping[int, tuple[float, float]]
    uncut: Mapping[int, float] | None = None

    def at(self, tokens: float, percentile: int = 50) -> float:
        """Milliseconds."""
        a, b, c = self.curve
        median = a + b * tokens + c * tokens**2
        if percentile == 50:
            return median
        d, e = self.tails[percentile]
        return median + d + e * median


@dataclass(frozen=True)
class LatencyModel:
    """A policy on a machine, fitted to its profile by :func:`fit`.

    Attributes:
        stages: stage, and ``total`` -> its model. Percentiles of the whole call are fitted to the
            call: those of its stages do not add up.
        visual_tokens: of an uncut call.
        ceiling: speed-up over dense if the language model's pass took no time (as in ``bench``).
        errors: percentile -> tokens -> relative error of the whole call at a bucket that the fit
            did not see, all but the smallest and the largest. Empty with fewer than five buckets.
        stage_errors_ms: stage -> tokens -> milliseconds by which its median was missed there.
    """

    stages: Mapping[str, StageModel]
    visual_tokens: int
    ceiling: float
    errors: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    stage_errors_ms: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def predict(
        self, tokens: float, percentile: int = 50, calls: Mapping[str, float] | None = None
    ) -> float:
        """Milliseconds of a call.

        Args:
            tokens: visual tokens behind the cut.
            percentile: 50, 95 or 99.
            calls: stage -> how often it runs in proportion to the profile, such as ``{"denoise":
                0.5}`` for half the denoising steps.

        Raises:
            ConfigError: another percentile, more tokens than there are, or an unknown stage.
        """
        self._check(tokens, percentile, calls or {})
        total = self._stage(TOTAL, tokens, percentile)
        for stage, share in (calls or {}).items():
            total += (share - 1.0) * self._stage(stage, tokens, 50)
        return total

    def stage(self, name: str, tokens: float, percentile: int = 50) -> float:
        """Milliseconds of one stage, arguments as in :meth:`predict`."""
        self._check(tokens, percentile, {name: 1.0})
        return self._stage(name, tokens, percentile)

    def worst_error(self, percentile: int) -> float:
        """Largest relative error at unseen buckets; NaN if none was left out."""
        found = self.errors.get(percentile, {})
        return max(map(abs, found.values())) if found else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = {
            name: {"curve": list(m.curve), "tails": {str(p): list(t) for p, t in m.tails.items()}}
            for name, m in self.stages.items()
        }
        errors = {f"p{p}": {str(k): e for k, e in at.items()} for p, at in self.errors.items()}
        missed = {s: {str(k): e for k, e in at.items()} for s, at in self.stage_errors_ms.items()}
        return {
            "stages": stages,
            "ceiling": self.ceiling,
            "left_out_errors": errors,
            "left_out_stage_errors_ms": missed,
        }

    def _stage(self, name: str, tokens: float, percentile: int) -> float:
        model = self.stages[name]
        if model.uncut is not None and tokens >= self.visual_tokens:
            return model.uncut[percentile]
        return model.at(tokens, percentile)

    def _check(self, tokens: float, percentile: int, calls: Mapping[str, float]) -> None:
        if percentile not in PERCENTILES:
            raise ConfigError(
                f"latency: percentile {percentile} is not fitted; choose from "
                f"{', '.join(map(str, PERCENTILES))}."
            )
        if not 0 <= tokens <= self.visual_tokens:
            raise ConfigError(
                f"latency: {tokens:g} tokens; this policy has 0 to {self.visual_tokens}."
            )
        for stage in calls:
            if stage not in self.stages:
                raise ConfigError(
                    f"latency: stage {stage!r} was not measured; there is "
                    f"{', '.join(self.stages)}."
                )


def fit(profile: Profile) -> LatencyModel:
    """The model of a profile's recipe.

    Raises:
        ConfigError: fewer than three buckets.
    """
    ladder = sorted(profile.ladder, key=lambda bucket: bucket.tokens)
    if len({bucket.tokens for bucket in ladder}) < LEAST:
        raise ConfigError(
            f"latency: {len(ladder)} buckets are too few to fit a curve; profile at least {LEAST} "
            "keep ratios."
        )
    errors: dict[int, dict[int, float]] = {}
    missed: dict[str, dict[int, float]] = {}
    if len(ladder) >= LEAST + 2:
        for out in ladder[1:-1]:
            others = [b for b in ladder if b is not out]
            for name in profile.stages:
                made = _fit_stage(name, others, profile.visual_tokens).at(out.tokens)
                seen = float(np.median(out.samples_ms[name]))
                missed.setdefault(name, {})[out.tokens] = made - seen
            total = _fit_total(others, profile.visual_tokens)
            for p in PERCENTILES:
                seen = float(np.percentile(out.total_ms(), p))
                errors.setdefault(p, {})[out.tokens] = total.at(out.tokens, p) / seen - 1.0
    stages = {name: _fit_stage(name, ladder, profile.visual_tokens) for name in profile.stages}
    dense = profile.dense.summary()
    ceiling = amdahl_ceiling(dense[TOTAL]["median"], dense["prefill"]["median"])
    return LatencyModel(
        {**stages, TOTAL: _fit_total(ladder, profile.visual_tokens)},
        profile.visual_tokens,
        ceiling,
        errors,
        missed,
    )


def _fit_stage(name: str, ladder: Sequence[Bucket], visual_tokens: int) -> StageModel:
    """One stage. Selection does something else, or nothing, where nothing is cut."""
    times = {bucket.tokens: bucket.samples_ms[name] for bucket in ladder}
    if name != "selection" or visual_tokens not in times or len(times) <= LEAST:
        return _fitted(times)
    uncut = times.pop(visual_tokens)
    return replace(_fitted(times), uncut=_percentiles(uncut))


def _fit_total(ladder: Sequence[Bucket], visual_tokens: int) -> StageModel:
    """The whole call; as measured where nothing is cut.

    The curve goes on to there as if something were selected, or it would bend where that begins.
    """
    times = {bucket.tokens: bucket.total_ms() for bucket in ladder}
    selection = _fit_stage("selection", ladder, visual_tokens)
    if selection.uncut is None:
        return _fitted(times)
    uncut = times[visual_tokens]
    unselected = max(0.0, selection.at(visual_tokens) - selection.uncut[50])
    return replace(
        _fitted({**times, visual_tokens: uncut + unselected}), uncut=_percentiles(uncut)
    )


def _percentiles(times: np.ndarray) -> dict[int, float]:
    return {p: float(np.percentile(times, p)) for p in PERCENTILES}


def _fitted(times: Mapping[int, np.ndarray]) -> StageModel:
    """Tokens -> ``[R]`` milliseconds, as curve and tails; relative errors are made small."""
    tokens = np.array(list(times), dtype=float)
    medians = np.array([np.median(t) for t in times.values()])
    curve = least_squares(np.stack([tokens**0, tokens, tokens**2], axis=1), medians)
    tails = {}
    for p in PERCENTILES[1:]:
        above = np.array([np.percentile(t, p) for t in times.values()]) - medians
        design = np.stack([medians**0, medians], axis=1)
        tails[p] = tuple(least_squares(design, above, medians + above))
    return StageModel(tuple(curve), tails)


def least_squares(
    design: np.ndarray, values: np.ndarray, scale: np.ndarray | None = None
) -> list[float]:
    """Non-negative least squares of few columns: the best of all subsets that stay feasible.

    Args:
        design: ``[n, m]``.
        values: ``[n]``.
        scale: ``[n]`` size of what an error is relative to; the values if None.
    """
    size = np.abs(values if scale is None else scale)
    weight = 1.0 / np.maximum(size, 1e-3 * max(float(size.max()), 1e-9))
    # Columns of one size, so that tokens squared do not drown the constant.
    norms = np.maximum(np.abs(design).max(axis=0), 1e-12)
    a, b = design / norms * weight[:, None], values * weight
    best, found = float(b @ b), np.zeros(design.shape[1])
    for count in range(1, design.shape[1] + 1):
        for columns in combinations(range(design.shape[1]), count):
            part = np.linalg.lstsq(a[:, columns], b, rcond=None)[0]
            left = a[:, columns] @ part - b
            if (part >= 0).all() and float(left @ left) < best - 1e-12:
                best, found = float(left @ left), np.zeros(design.shape[1])
                found[list(columns)] = part
    return [float(x) for x in found / norms]
