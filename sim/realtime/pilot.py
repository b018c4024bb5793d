"""The run-time controller of an episode: it expects what the profile says of the device.

On a device on which not even the floor fits it hands over.
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.realtime.config import RealtimeConfig, Setting
from vla_prune_sim.realtime.latency import device_factor
from vla_prune_sim.realtime.profiles import Rounds

from vla_prune.tune.controller import Controller, ControllerConfig
from vla_prune.tune.pilot import Pilot


def make_pilot(realtime: RealtimeConfig, rounds: Rounds, setting: Setting) -> Pilot:
    """One episode's controller.

    Args:
        realtime: with the ladder and the controller's fields, and ``percentile`` (99): of the
            profile's times, which are expected.
        rounds: of the profile.
        setting: the device.

    Raises:
        ConfigError: a field that cannot be.
    """
    fields = dict(realtime.controller)
    percentile = float(fields.pop("percentile", 99))
    factor = device_factor(rounds.dense, setting, realtime.period_s)
    expected = [
        factor * float(np.percentile(rounds.at(keep), percentile)) for keep in realtime.ladder
    ]
    config = ControllerConfig(
        tuple(realtime.ladder),
        tuple(expected),
        period_s=realtime.deadline,
        floor_may_miss=True,
        **fields,
    )
    return Pilot(Controller(config), realtime.actuation_s)
