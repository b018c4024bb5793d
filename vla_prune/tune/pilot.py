"""A controller at work: asked before each call of a policy, told afterwards. No torch.

The same in simulation and on a robot. Example::

    pilot = Pilot(Controller(config))
    decision = pilot.choose(lateness_s=now - picture.stamp_s)
    chunk = policy.act_one(picture, state, bucket=decision.rung)
    pilot.learn(decision.rung, seconds, chunk)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vla_prune.config import check_keys
from vla_prune.errors import ConfigError
from vla_prune.tune.controller import (
    SCORE_SIGNALS,
    Controller,
    ControllerConfig,
    Decision,
    Measurement,
)
from vla_prune.types import ActionChunk


class Pilot:
    """One machine's controller.

    Args:
        controller: what decides. It expects what the machine does without a load; a load it has
            to notice.
        late_s: what goes by after a call, such as actuation.

    Attributes:
        handed_over: calls at which even the floor was too slow.
    """

    def __init__(self, controller: Controller, late_s: float = 0.0) -> None:
        self.controller, self.late_s = controller, late_s
        self.state = controller.new_state()
        self._period_s = controller.config.period_s
        self.handed_over = 0
        self._last = Measurement()

    @property
    def reads_signals(self) -> bool:
        """Whether the policy has to be attached with ``signals``."""
        config = self.controller.config
        return any(getattr(config, name) is not None for name in SCORE_SIGNALS)

    def set_period(self, seconds: float) -> None:
        """Another deadline from the next call on; 0 for the one that it began with.

        Raises:
            ConfigError: the fastest bucket takes longer; the old one stays in force.
        """
        config = replace(self.controller.config, period_s=seconds or self._period_s)
        self.controller = Controller(config)

    def choose(self, lateness_s: float) -> Decision:
        """What the next call runs at.

        Args:
            lateness_s: how old its picture is.
        """
        last = replace(self._last, lateness_s=lateness_s + self.late_s)
        self._last = Measurement()  # a call that is refused tells nothing, least of all this again
        decision = self.controller.decide(self.state, last)
        self.handed_over += decision.hand_over
        return decision

    def learn(self, rung: int, seconds: float, chunk: ActionChunk) -> None:
        """What the call took; how far its first row goes stands for how much moves.

        A call that cut nothing, such as those that fill a recipe's history, took what the uncut
        rung takes; without one it says nothing of the load.

        Args:
            rung: the bucket it ran at, as ``choose`` said.
            seconds: what it took, from picture to actions.
            chunk: what came out.
        """
        numbers = self.controller.config.motion_numbers
        row = chunk.actions[0] if numbers is None else chunk.actions[0][list(numbers)]
        seen = {"motion": float(np.linalg.norm(row)), **chunk.signals}
        buckets = self.controller.config.buckets
        if chunk.kept or buckets[rung] == 1.0:
            self._last = Measurement(seconds, rung=rung, **seen)
        elif buckets[0] == 1.0:
            self._last = Measurement(seconds, rung=0, **seen)
        else:
            self._last = Measurement(**seen)


def read_controller(where: str, data: Mapping[str, Any]) -> Controller:
    """The controller of a ``tuned.yaml``, as ``vla-prune tune`` writes it, or of its own section.

    Args:
        where: for messages.
        data: as read.

    Raises:
        ConfigError: there is none, or one of its fields is wrong.
    """
    section = data.get("controller", data)
    if not isinstance(section, Mapping) or "buckets" not in section:
        raise ConfigError(
            f"{where}: there is no section 'controller'; give the tuned.yaml that "
            "'vla-prune tune' wrote."
        )
    check_keys(f"{where}: controller", ControllerConfig, section)
    return Controller(ControllerConfig(**section))
