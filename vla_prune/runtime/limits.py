"""What may be sent to actuators: magnitude and rate, per dimension; never NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_prune.errors import ActionError, ConfigError


@dataclass(frozen=True)
class Limited:
    """An action after its limits.

    Attributes:
        action: ``[A]``; None if it was refused, and the hold has to be used.
        changed: ``[A]`` bool, which dimensions were limited.
        refused: why, in a sentence; empty if it was not.
    """

    action: np.ndarray | None
    changed: np.ndarray
    refused: str = ""


@dataclass(frozen=True)
class Limits:
    """Bounds of an embodiment, in units of its actions.

    Attributes:
        low: smallest values, one per dimension; None for no bound.
        high: largest values.
        rate: largest change per second, either way.
    """

    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    rate: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that leave nothing."""
        sizes = set()
        for name in ("low", "high", "rate"):
            values = getattr(self, name)
            if values is None:
                continue
            object.__setattr__(self, name, tuple(float(v) for v in values))
            if any(np.isnan(v) for v in getattr(self, name)):
                raise ConfigError(f"limits: {name} {list(values)} holds NaN; give numbers.")
            sizes.add(len(values))
        if len(sizes) > 1:
            raise ConfigError(
                f"limits: low, high and rate have {sorted(sizes)} entries; give one for each "
                "dimension of an action."
            )
        if self.low and self.high and any(a > b for a, b in zip(self.low, self.high, strict=True)):
            raise ConfigError(f"limits: low {self.low} is above high {self.high} somewhere.")
        if self.rate and min(self.rate) <= 0:
            raise ConfigError(f"limits: rate {self.rate} must be above 0, units per second.")

    def limit(
        self,
        action: np.ndarray,
        previous: np.ndarray | None = None,
        dt_s: float = 0.0,
        strict: bool = False,
    ) -> Limited:
        """The nearest action that may be sent.

        Args:
            action: ``[A]``.
            previous: what was sent before; None leaves the rate out, as for the first one.
            dt_s: seconds since then.
            strict: raise what would be refused.

        Raises:
            ActionError: refused, and ``strict``.
        """
        given = np.asarray(action)
        refused = self._why_not(given)
        if refused and strict:
            raise ActionError(refused)
        if refused:
            return Limited(None, np.zeros(given.shape, dtype=bool), refused)
        made = given
        if self.rate is not None and previous is not None:
            most = np.asarray(self.rate) * max(dt_s, 0.0)
            made = np.clip(made, previous - most, previous + most)
        made = np.clip(made, self.low, self.high) if self.low or self.high else made
        made = made.astype(given.dtype)
        return Limited(made, made != given)

    def _why_not(self, action: np.ndarray) -> str:
        size = next((len(v) for v in (self.low, self.high, self.rate) if v is not None), None)
        if action.ndim != 1 or (size is not None and len(action) != size):
            wanted = "one row of numbers" if size is None else f"{size} numbers"
            return (
                f"limits: an action of shape {action.shape} came, {wanted} can be sent; the hold "
                "is used."
            )
        bad = np.flatnonzero(~np.isfinite(action))
        if len(bad):
            return (
                f"limits: dimension {', '.join(map(str, bad))} of the action is not finite; the "
                "hold is used, and the policy's weights and inputs want a look."
            )
        return ""
