"""What a machine does without a fresh action. Every embodiment declares it; nothing is guessed.

A rule is asked once, when the actions that may be played end, and answers with rows to play from
then on, one every ``dt_s``; the last of them is repeated for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vla_prune.errors import ConfigError, ShapeError, did_you_mean
from vla_prune.fields import check_keys

MOST_ROWS = 10_000  # of a stop; a plan that no machine drives brakes harder


class HoldRule(Protocol):
    """Rows for the time in which no fresh action is there."""

    def after(
        self, last: np.ndarray | None, ahead: np.ndarray, playable: int, dt_s: float
    ) -> np.ndarray | None:
        """Rows ``[n, A]``, n at least 1; None if nothing can be commanded.

        Args:
            last: ``[A]`` the action played last; None if there was none.
            ahead: ``[m, A]`` rows of the running chunk that were not played; maybe none.
            playable: how many of them may still be played; the others only show the way.
            dt_s: seconds between two rows.
        """
        ...


@dataclass(frozen=True)
class Hold:
    """Stand still.

    Attributes:
        action: the embodiment's action that moves nothing, such as zeros for delta control. None
            repeats the last action, as position control wants it, and commands nothing before the
            first one.
        keep: dimensions that go on as they were, such as a gripper's.
    """

    action: tuple[float, ...] | None = None
    keep: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Lists of a config become tuples; refuse kept dimensions that the action lacks."""
        object.__setattr__(self, "keep", tuple(self.keep))
        if self.action is None:
            return
        object.__setattr__(self, "action", tuple(float(x) for x in self.action))
        for dimension in self.keep:
            if not 0 <= dimension < len(self.action):
                raise ConfigError(
                    f"hold: keep names dimension {dimension}, the action has {len(self.action)}; "
                    f"choose from 0 to {len(self.action) - 1}."
                )

    def after(
        self, last: np.ndarray | None, ahead: np.ndarray, playable: int, dt_s: float
    ) -> np.ndarray | None:
        """One row."""
        if self.action is None:
            return None if last is None else last[None]
        if last is not None and len(last) != len(self.action):
            raise ShapeError(
                f"hold: the hold action has {len(self.action)} numbers, the policy's have "
                f"{len(last)}; declare the hold of this machine."
            )
        row = np.array(self.action, dtype=np.float32 if last is None else last.dtype)
        if last is not None and self.keep:
            row[list(self.keep)] = last[list(self.keep)]
        return row[None]


@dataclass(frozen=True)
class ContinueChunk:
    """Play on what the chunk still has, then follow another rule.

    Attributes:
        then: what follows behind the chunk's end.
    """

    then: HoldRule = field(default_factory=Hold)

    def after(
        self, last: np.ndarray | None, ahead: np.ndarray, playable: int, dt_s: float
    ) -> np.ndarray | None:
        """The rows that may be played, and those of ``then``."""
        rows = ahead[:playable]
        rest = self.then.after(rows[-1] if len(rows) else last, ahead[playable:], 0, dt_s)
        if not len(rows):
            return rest
        return rows if rest is None else np.concatenate([rows, rest])


@dataclass(frozen=True)
class Brake:
    """Bring a vehicle to a standstill along its plan.

    For actions that are steps ``(x, y)`` between waypoints in one fixed frame, metres per
    ``dt_s``. Lengths shrink by a constant deceleration, or as the plan's do if they shrink faster;
    the way is the plan's, and straight on behind its end.

    Attributes:
        deceleration: m/s^2.
        size: numbers in an action, known before there is one.
    """

    deceleration: float = 3.0
    size: int = 2

    def __post_init__(self) -> None:
        """Refuse a brake that never stops."""
        if not 0 < self.deceleration < math.inf or self.size < 1:
            raise ConfigError(
                f"brake: deceleration {self.deceleration:g} m/s^2 and size {self.size}; both must "
                "be above 0."
            )

    def after(
        self, last: np.ndarray | None, ahead: np.ndarray, playable: int, dt_s: float
    ) -> np.ndarray | None:
        """Shorter and shorter steps, then a zero."""
        if last is None or not np.any(last):
            return np.zeros((1, self.size if last is None else len(last)), np.float32)
        length = float(np.linalg.norm(np.asarray(last, float)))
        loss = max(self.deceleration * dt_s**2, length / MOST_ROWS)
        planned = np.linalg.norm(np.asarray(ahead, float), axis=1)
        lengths, next_loss = [], loss / 2  # the speed falls within the first interval, too
        while length > 0:
            length, next_loss = max(0.0, length - next_loss), loss
            if len(lengths) < len(planned):  # a plan that brakes harder is followed
                length = min(length, float(planned[len(lengths)]))
            lengths.append(length)
        rows = np.diff(_along(last, ahead, np.cumsum([0.0, *lengths])), axis=0)
        return rows.astype(last.dtype)


HOLDS: dict[str, type] = {"continue_chunk": ContinueChunk, "hold": Hold, "brake": Brake}


def make_hold(item: str | Mapping[str, Any], where: str = "hold") -> HoldRule:
    """A rule from a name or from ``{name: ..., its fields}``; ``then`` may hold another one.

    Raises:
        ConfigError: unknown name or field.
    """
    if not isinstance(item, str | Mapping):
        raise ConfigError(
            f"{where}: {item!r} is no rule; give one of {', '.join(HOLDS)}, or a mapping with its "
            "'name'."
        )
    data = {"name": item} if isinstance(item, str) else dict(item)
    name = str(data.pop("name", None))
    if name not in HOLDS:
        raise did_you_mean(where, "rule", name, HOLDS)
    check_keys(f"{where} ({name})", HOLDS[name], data)
    if "then" in data:
        data["then"] = make_hold(data["then"], f"{where}.then")
    return HOLDS[name](**data)


def _along(last: np.ndarray, ahead: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Points ``[n, A]`` on the path of the rows ahead, and straight on behind it."""
    steps = np.asarray(ahead, dtype=float)
    steps = steps[np.linalg.norm(steps, axis=1) > 1e-9]
    final = steps[-1] if len(steps) else np.asarray(last, dtype=float)
    reach = final / np.linalg.norm(final) * (distances[-1] + 1.0)
    steps = np.concatenate([steps, reach[None]])
    corners = np.cumsum(np.concatenate([np.zeros_like(reach)[None], steps]), axis=0)
    way = np.cumsum([0.0, *np.linalg.norm(steps, axis=1)])
    return np.stack([np.interp(distances, way, column) for column in corners.T], axis=1)
