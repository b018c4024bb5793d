"""Profiles as real time needs them: seconds of whole calls, round by round."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_prune.errors import ConfigError
from vla_prune.tune.latency import LEAST, fit
from vla_prune.tune.profile import Profile

if TYPE_CHECKING:
    from vla_prune_sim.rollout import RunConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounds:
    """Seconds of calls; round ``i`` of all buckets was measured in one turn.

    Attributes:
        dense: ``[R]`` of the policy without a recipe.
        recipe: whose buckets these are.
        ladder: tokens kept -> ``[R]``; where none is cut, reading for the history included.
        ratios: keep ratio -> ``[R]`` of the recipe.
        signals: whether reading the controller's score signals is in them.
    """

    dense: np.ndarray
    recipe: str
    ladder: Mapping[int, np.ndarray]
    ratios: Mapping[float, np.ndarray]
    signals: bool = False

    def of(self, recipe: str, charged_as: Mapping[str, str]) -> Mapping[int, np.ndarray]:
        """Tokens kept -> seconds, for a row of a table.

        Args:
            recipe: the row's.
            charged_as: recipe of a row -> that of the profile whose times it takes.

        Raises:
            ConfigError: the profile is of another recipe.
        """
        if recipe == "dense":
            return {max(self.ladder): self.dense}
        if charged_as.get(recipe, recipe) != self.recipe:
            raise ConfigError(
                f"run: rows: recipe {recipe!r} is to be played in real time, and the profile is "
                f"of {self.recipe!r}; profile that recipe, take the row out, or say that a "
                f"control takes those times: realtime: charged_as: {{{recipe}: {self.recipe}}}."
            )
        return self.ladder

    def at(self, keep_ratio: float) -> np.ndarray:
        """``[R]`` of the recipe at a keep ratio.

        Raises:
            ConfigError: it was not measured.
        """
        if keep_ratio not in self.ratios:
            raise ConfigError(
                f"realtime: keep ratio {keep_ratio:g} is not in the profile, which has "
                f"{', '.join(f'{known:g}' for known in self.ratios)}; profile it, too."
            )
        return self.ratios[keep_ratio]


def rounds(profile: Profile) -> Rounds:
    """Of a profile; dense stands for an uncut call where the ladder has none.

    A call without a visual token takes as much less than the smallest bucket as the latency model
    says, round by round, where there are buckets enough for one.
    """
    dense = profile.dense.total_ms() / 1e3
    ladder = {bucket.tokens: bucket.total_ms() / 1e3 for bucket in profile.ladder}
    ratios = {bucket.keep_ratio: bucket.total_ms() / 1e3 for bucket in profile.ladder}
    ladder = {profile.visual_tokens: dense} | ladder
    if len(profile.ladder) >= LEAST:
        model, least = fit(profile), min(ladder)
        ladder = {0: ladder[least] * (model.predict(0) / model.predict(least))} | ladder
    return Rounds(dense, profile.subject.recipe, ladder, ratios, profile.subject.signals)


def checked(config: RunConfig, suite: str, adapter: Any) -> Rounds:
    """The profile of a suite's policy, if it speaks for what is to be run.

    Raises:
        MissingError: no such file.
        ConfigError: it is of another policy, recipe, cut, dtype, kernel or thread count.
    """
    from vla_prune.tune.measure import ProfileConfig, subject_of  # loads torch

    realtime = config.realtime
    profile = Profile.load(realtime.profile_of(suite))
    settings = ProfileConfig(
        config.suites[suite].policy, profile.subject.recipe, cut_layer=config.cut_layer
    )
    now = subject_of(adapter, settings)
    for said in profile.check(now, realtime.other_device, realtime.commit):
        log.warning("%s", said)
    return rounds(profile)
