"""The run-time controller of an episode: it expects what the profile says of the device."""

from __future__ import annotations

import numpy as np
from vla_prune_sim.realtime.config import RealtimeConfig, Setting
from vla_prune_sim.realtime.latency import device_factor
from vla_prune_sim.realtime.profiles import Rounds

from vla_prune.config import check_keys
from vla_prune.errors import ConfigError
from vla_prune.tune.controller import Controller, ControllerConfig
from vla_prune.tune.pilot import Pilot

OWN = ("buckets", "latency_s", "period_s")  # what the real-time section says elsewhere


def make_pilot(realtime: RealtimeConfig, rounds: Rounds, setting: Setting) -> Pilot:
    """One episode's controller.

    Args:
        realtime: with the ladder and the controller's fields, and ``percentile`` (99): of the
            profile's times, which are expected.
        rounds: of the profile.
        setting: the device.

    Raises:
        ConfigError: a field that is unknown, or follows from elsewhere.
    """
    fields = dict(realtime.controller)
    percentile = float(fields.pop("percentile", 99))
    check_keys("realtime: controller", ControllerConfig, {**fields, **dict.fromkeys(OWN)})
    for name in OWN:
        if name in fields:
            raise ConfigError(
                f"realtime: controller: {name} follows from ladder, profile and deadline; "
                "leave it out."
            )
    factor = device_factor(rounds.dense, setting, realtime.period_s)
    expected = [
        factor * float(np.percentile(rounds.at(keep), percentile)) for keep in realtime.ladder
    ]
    config = ControllerConfig(
        tuple(realtime.ladder), tuple(expected), period_s=realtime.deadline, **fields
    )
    return Pilot(Controller(config), realtime.actuation_s)
