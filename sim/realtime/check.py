"""All that a real-time table can be refused for, before its first episode. Loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from vla_prune_sim.play import pruner_of
from vla_prune_sim.realtime.pilot import make_pilot
from vla_prune_sim.realtime.profiles import Rounds, checked

from vla_prune.build import build_adapter
from vla_prune.config import PLAIN
from vla_prune.errors import ConfigError
from vla_prune.tune.controller import SCORE_SIGNALS

if TYPE_CHECKING:
    from vla_prune_sim.rollout import Episode, Row, RunConfig


def check(config: RunConfig, todo: Sequence[Episode]) -> None:
    """Read every profile that these episodes need, and build every controller once.

    Raises:
        MissingError: a profile is not there.
        ConfigError: one is of something else, lacks a budget, or a controller cannot be built.
    """
    realtime = config.realtime
    if realtime.latency != "profile":
        return
    torch.set_num_threads(config.threads)
    known: dict[str, Rounds] = {}
    played = {(e.suite, e.row, e.setting): None for e in todo if not e.row.driver}
    for suite, row, setting in played:
        if suite not in known:
            adapter = build_adapter(config.suites[suite].policy)
            known[suite] = checked(config, suite, adapter)
        rounds = known[suite]
        rounds.of(row.recipe, realtime.charged_as)
        if row.recipe in realtime.charged_as and row.recipe not in PLAIN:
            _check_sites(row, rounds.recipe, config.cut_layer)
        if row.controller:
            pilot = make_pilot(realtime.for_row(row), rounds, realtime.setting(setting))
            if pilot.reads_signals and not rounds.signals:
                raise ConfigError(
                    f"realtime: controller: {' and '.join(SCORE_SIGNALS)} cost time, and the "
                    "profile was measured without them; profile with --signals."
                )
        elif row.keep_ratio != 1.0:
            rounds.at(row.keep_ratio)


def _check_sites(row: Row, charged: str, cut_layer: int | None) -> None:
    """Refuse times of a recipe that cuts somewhere else: what lies before its cut runs in full."""
    ours, theirs = (
        [cut.site for cut in pruner_of(replace(row, recipe=recipe), cut_layer).cuts]
        for recipe in (row.recipe, charged)
    )
    if ours != theirs:
        raise ConfigError(
            f"realtime: charged_as: {row.recipe} cuts at {', '.join(ours)} and {charged} at "
            f"{', '.join(theirs)}, so its times would be too short or too long; take a recipe "
            "that cuts at the same place."
        )
