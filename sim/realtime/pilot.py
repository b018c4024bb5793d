"""The run-time controller in the loop: asked before every call, told afterwards."""

from __future__ import annotations

import numpy as np
from vla_prune_sim.realtime.config import RealtimeConfig, Setting
from vla_prune_sim.realtime.latency import device_factor
from vla_prune_sim.realtime.profiles import Rounds

from vla_prune.config import check_keys
from vla_prune.errors import ConfigError
from vla_prune.tune.controller import Controller, ControllerConfig, Measurement
from vla_prune.types import ActionChunk

OWN = ("buckets", "latency_s", "period_s")  # what the real-time section says elsewhere


class Pilot:
    """One episode's controller.

    It expects what the profile says of the device without a load; a load it has to notice.

    Args:
        realtime: with the ladder and the controller's fields, and ``percentile`` (99): of the
            profile's times, which are expected.
        rounds: of the profile.
        setting: the device.

    Attributes:
        handed_over: calls at which even the floor was too slow.
    """

    def __init__(self, realtime: RealtimeConfig, rounds: Rounds, setting: Setting) -> None:
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
        self.controller = Controller(
            ControllerConfig(
                tuple(realtime.ladder), tuple(expected), period_s=realtime.deadline, **fields
            )
        )
        self.state = self.controller.new_state()
        self.late_s = realtime.actuation_s
        self.handed_over = 0
        self._last = Measurement()

    def choose(self, lateness_s: float) -> tuple[int, bool]:
        """The rung of the next call, and whether the hold rule takes over.

        Args:
            lateness_s: how old its picture is.
        """
        last = self._last
        decision = self.controller.decide(
            self.state,
            Measurement(last.latency_s, lateness_s + self.late_s, last.rung, motion=last.motion),
        )
        self.handed_over += decision.hand_over
        return decision.rung, decision.hand_over

    def learn(self, rung: int, seconds: float, chunk: ActionChunk) -> None:
        """What the call took; how far its first row goes stands for how much moves.

        A call that cut nothing, such as those that fill a recipe's history, took what the uncut
        rung takes; without one it says nothing of the load.
        """
        motion = float(np.linalg.norm(chunk.actions[0]))
        buckets = self.controller.config.buckets
        if chunk.kept or buckets[rung] == 1.0:
            self._last = Measurement(seconds, rung=rung, motion=motion)
        elif buckets[0] == 1.0:
            self._last = Measurement(seconds, rung=0, motion=motion)
        else:
            self._last = Measurement(motion=motion)
