"""What a policy call costs in simulated time: nothing, what a profile says, or what it takes here.

A profile holds rounds in which all buckets took turns. A call draws one round by its seed and
takes the time of the bucket that it kept, all stages of that round together, so that what is slow
together stays so and all rows of a table meet the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from vla_prune_sim.realtime.config import Load, Setting

from vla_prune.errors import ConfigError

NEAR = 1  # tokens by which rounding may set a call apart from a bucket that was measured


class Latency(Protocol):
    """Seconds of policy calls."""

    def seconds(self, tokens: int, now_s: float, taken_s: float) -> float:
        """What a call costs.

        Args:
            tokens: visual tokens that it kept.
            now_s: when it began, time of the episode.
            taken_s: what it took on this machine.
        """
        ...


class NoLatency:
    """Thinking takes no time."""

    def seconds(self, tokens: int, now_s: float, taken_s: float) -> float:
        """Zero."""
        return 0.0


class LiveLatency:
    """What it takes here, times the setting's factor. Not repeatable.

    Args:
        setting: the device and its load.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def seconds(self, tokens: int, now_s: float, taken_s: float) -> float:
        """The time that was taken."""
        return taken_s * self.setting.factor * self.setting.load.factor(now_s)


class ProfileLatency:
    """Draws from a profile, every stage times one constant.

    Args:
        rounds: tokens kept -> ``[R]`` seconds of a call in each round.
        factor: the device's one constant, see `device_factor`.
        load: of the device.
        seed: of the rounds that are drawn; an episode's.
    """

    def __init__(
        self, rounds: Mapping[int, np.ndarray], factor: float, load: Load, seed: list[int]
    ) -> None:
        self.rounds, self.factor, self.load = rounds, factor, load
        self._rng = np.random.default_rng(seed)

    def seconds(self, tokens: int, now_s: float, taken_s: float) -> float:
        """A round of the bucket."""
        draw = self._rng.random()
        bucket = min(self.rounds, key=lambda known: abs(known - tokens))
        if abs(bucket - tokens) > NEAR:
            raise ConfigError(
                f"realtime: a call kept {tokens} tokens, and the profile has buckets of "
                f"{', '.join(map(str, sorted(self.rounds)))}; profile that keep ratio, too."
            )
        samples = self.rounds[bucket]
        drawn = float(samples[int(draw * len(samples))])
        return drawn * self.factor * self.load.factor(now_s)


def device_factor(dense_s: np.ndarray, setting: Setting, period_s: float) -> float:
    """The one constant of a setting: given, or such that dense takes so many periods."""
    if setting.dense_periods is None:
        return setting.factor
    return setting.dense_periods * period_s / float(np.median(dense_s))
