"""What ``configs/tune/*.yaml`` may hold, and what the command line adds. Loads no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.spans import numbers

from vla_prune.config import check_keys
from vla_prune.errors import ConfigError
from vla_prune.tune.profile import PERCENTILES

UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Rung:
    """One round of successive halving: where all candidates that are left play.

    Attributes:
        tasks: numbers, or a text such as ``0-9``; those of the rung before among them, so that
            nothing is played twice.
        states: likewise.
    """

    tasks: Any
    states: Any

    def __post_init__(self) -> None:
        """Spell texts out."""
        for name in ("tasks", "states"):
            found = numbers(getattr(self, name), f"tune: rungs: {name}")
            object.__setattr__(self, name, found)
            if not found:
                raise ConfigError(
                    f"tune: rungs: {name} names none; give numbers such as 0-9, the smaller one "
                    "first."
                )

    @property
    def places(self) -> int:
        """Episodes of each candidate."""
        return len(self.tasks) * len(self.states)


@dataclass(frozen=True)
class TuneConfig:
    """Where and how a policy is tuned.

    Attributes:
        world: simulator, as in a run config.
        suite: of the world.
        rungs: fields of `Rung`, one after the other.
        realtime: fields of `realtime.config.RealtimeConfig` that are the embodiment's: hold, mode,
            execute and so on. Period, deadline, profile and device come from the command line.
        keep_ratios: candidates; None for all that the profile has.
        survive: share of the candidates that go on to the next rung, at least one.
        floor: share of the recommended budget's score that the fallback ladder's last rung keeps.
        cut_layer: moves the recipe's decoder cut; None for where the profile has it.
        execute: as in a run config, which reference rows of worlds of plans need.
        seed: of the simulator's draws.
        workers: as in a run config.
        threads: torch threads in each worker; 0 for one, whatever the profile was measured with.
        sim: handed to the world.
    """

    world: str
    suite: str
    rungs: Sequence[Any]
    realtime: Mapping[str, Any]
    keep_ratios: Sequence[float] | None = None
    survive: float = 0.5
    floor: float = 0.9
    cut_layer: int | None = None
    execute: int = 8
    seed: int = 7
    workers: int = 0
    threads: int = 0
    sim: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make objects of the rungs; refuse what cannot find anything."""
        rungs = []
        for number, data in enumerate(self.rungs):
            if not isinstance(data, Rung):
                check_keys(f"tune: rungs[{number}]", Rung, data)
                data = Rung(**data)
            rungs.append(data)
        object.__setattr__(self, "rungs", tuple(rungs))
        if not rungs:
            raise ConfigError("tune: rungs is empty; give at least one round of tasks and states.")
        for before, after in pairwise(rungs):
            if not (
                set(before.tasks) <= set(after.tasks) and set(before.states) <= set(after.states)
            ):
                raise ConfigError(
                    "tune: rungs: a rung lacks places of the one before, so the scores of one "
                    "candidate would not be of the same scenes; let each hold the last."
                )
        if not 0 < self.survive < 1 or not 0 < self.floor <= 1:
            raise ConfigError(
                f"tune: survive {self.survive:g} is a share below 1 and floor {self.floor:g} one "
                "of at most 1; both are above 0."
            )
        if self.threads < 0 or self.workers < 0:
            raise ConfigError(
                f"tune: threads {self.threads} and workers {self.workers}; give 1 or more, or 0 "
                "for one thread each and for as many workers as there are cores."
            )
        for name in ("period_s", "deadline_s", "latency", "profile", "settings", "ladder"):
            if name in self.realtime:
                raise ConfigError(
                    f"tune: realtime: {name} is what tune is asked about; take it out of the "
                    "config and give --period, --deadline and --profile."
                )
        given = {"period_s": 1.0, **self.realtime}
        check_keys("tune: realtime", RealtimeConfig, given)
        RealtimeConfig(**given)


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        policy: a policy config.
        profile: file.
        period_s: replanning period.
        deadline_s: from the picture to the actuator; None for the period.
        percentile: of the calls that meet it.
        factor: the device that is tuned for takes that times the profile's time.
        other_device: the profile stands for another device than this one.
        commit: ``warn`` or ``refuse`` a profile of another commit.
        max_age_s: largest 99th percentile of the age at the actuator, mean over episodes.
        min_score: least score.
        keep_ratios: candidates, in place of the config's.
    """

    policy: str
    profile: str
    period_s: float
    deadline_s: float | None = None
    percentile: int = 99
    factor: float = 1.0
    other_device: bool = False
    max_age_s: float | None = None
    min_score: float | None = None
    keep_ratios: Sequence[float] | None = None
    commit: str = "warn"

    def __post_init__(self) -> None:
        """Refuse what no budget can meet."""
        if self.percentile not in PERCENTILES:
            raise ConfigError(
                f"tune: percentile {self.percentile} is not fitted; choose from "
                f"{', '.join(map(str, PERCENTILES))}."
            )
        if not 0 < self.factor < math.inf:
            raise ConfigError(f"tune: factor {self.factor:g}; a device takes more than no time.")
        if self.keep_ratios is not None:
            check_candidates(self.keep_ratios)

    @property
    def deadline(self) -> float:
        """Seconds."""
        return self.deadline_s or self.period_s


def check_candidates(ratios: Sequence[float]) -> None:
    """Refuse an empty list, and what is no keep ratio."""
    if not ratios:
        raise ConfigError(
            "tune: the list of candidates is empty; give keep ratios that the profile has, such "
            "as --keep 0.5,0.25, or leave it out for all of them."
        )
    if not all(0 < ratio <= 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
        raise ConfigError(
            f"tune: candidates {list(ratios)}; give different keep ratios in (0, 1]."
        )


def seconds(text: str, where: str) -> float:
    """``100ms``, ``0.1s`` or ``0.1`` as seconds.

    Raises:
        ConfigError: it is no time above 0.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*([a-z]*)\s*", text)
    try:
        value = float(found[1]) * UNITS[found[2]]
    except (TypeError, ValueError, KeyError):
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"tune: {where} {text!r} is no time; write it like 100ms or 0.1s.")
    return value
