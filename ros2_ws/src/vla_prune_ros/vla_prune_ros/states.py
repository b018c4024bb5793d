"""State messages to numbers: a contract's selectors, and the state of several topics at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_prune.errors import ShapeError
from vla_prune_ros.contract import Source
from vla_prune_ros.stamps import seconds


def pick(message: Any, names: Sequence[str], where: str = "state") -> np.ndarray:
    """``[len(names)]`` float32 out of a state message.

    A ``JointState`` is asked by ``position.JOINT``, ``velocity.JOINT`` or ``effort.JOINT``,
    whatever the order of its joints; an array by ``data.NUMBER``; anything else by its fields,
    such as ``twist.twist.linear.x``; ``yaw`` after a path to a quaternion gives its heading.

    Raises:
        ShapeError: the message lacks a number, a name leads to none, or it is not finite.
    """
    values = [_number(message, name, where) for name in names]
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise ShapeError(f"{where}: {name} is {value}; the message is not used.")
    return np.array(values, np.float32)


def _number(message: Any, name: str, where: str) -> float:
    try:
        return _one(message, name, where)
    except (TypeError, AttributeError, ValueError) as error:
        raise ShapeError(
            f"{where}: {name!r} leads to no number of the message ({error}); name one, such as "
            "twist.twist.linear.x, or yaw after a quaternion."
        ) from error


def _one(message: Any, name: str, where: str) -> float:
    head, _, rest = name.partition(".")
    joints = getattr(message, "name", None)
    if joints is not None and head in ("position", "velocity", "effort"):
        joints, numbers = list(joints), getattr(message, head)
        if rest not in joints or joints.index(rest) >= len(numbers):
            raise ShapeError(
                f"{where}: the joint state has no {name!r}; its joints are {', '.join(joints)}."
            )
        return float(numbers[joints.index(rest)])
    value = message
    for part in name.split("."):
        if part == "yaw":
            x, y, z, w = value.x, value.y, value.z, value.w
            return math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))
        if part.isdigit():
            if int(part) >= len(value):
                raise ShapeError(f"{where}: {name!r} is beyond the {len(value)} numbers.")
            value = value[int(part)]
        elif hasattr(value, part):
            value = getattr(value, part)
        else:
            raise ShapeError(f"{where}: the message has no {name!r} (no field {part!r}).")
    return float(value)


class StateKeeper:
    """The newest state of every state topic, joined in the contract's order.

    Args:
        sources: of the contract's state.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._held: dict[str, tuple[np.ndarray, float]] = {}

    def put(self, source: Source, message: Any, now: float) -> float:
        """Read a message; returns its stamp. Raises :class:`ShapeError` as :func:`pick` does."""
        header = getattr(message, "header", None)
        stamp = now if source.stamp == "receive" or header is None else seconds(header.stamp)
        self._held[source.topic] = (pick(message, source.names, source.topic), stamp)
        return stamp

    def stale(self, now: float) -> Mapping[str, float]:
        """Topic -> age in seconds of those that are missing (infinite) or over their limit."""
        ages = {s: now - self._held.get(s.topic, (None, -math.inf))[1] for s in self.sources}
        return {s.topic: age for s, age in ages.items() if not abs(age) <= s.max_age_s}

    def join(self) -> np.ndarray | None:
        """``[P]`` float32; None without state topics. Ask :meth:`stale` before."""
        if not self.sources:
            return None
        return np.concatenate([self._held[s.topic][0] for s in self.sources])

    def reset(self) -> None:
        """Forget everything."""
        self._held.clear()
