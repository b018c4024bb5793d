"""Quality of service as plain data: what a topic asks for, and whether two ends can talk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vla_prune.errors import ConfigError, did_you_mean

RELIABILITY = ("best_effort", "reliable")
DURABILITY = ("volatile", "transient_local")


@dataclass(frozen=True)
class Qos:
    """Quality of service of one end of a topic.

    Attributes:
        reliability: best_effort or reliable.
        depth: messages that are kept for a slow reader.
        durability: volatile or transient_local (late readers get the last message).
        deadline_ms: longest time between two messages; 0 for none.
        lifespan_ms: a message not delivered by then is thrown away; 0 for never.
    """

    reliability: str = "reliable"
    depth: int = 1
    durability: str = "volatile"
    deadline_ms: float = 0.0
    lifespan_ms: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown words and impossible numbers."""
        if self.reliability not in RELIABILITY:
            raise did_you_mean("qos", "reliability", str(self.reliability), RELIABILITY)
        if self.durability not in DURABILITY:
            raise did_you_mean("qos", "durability", str(self.durability), DURABILITY)
        if self.depth < 1 or self.deadline_ms < 0 or self.lifespan_ms < 0:
            raise ConfigError(
                f"qos: depth {self.depth}, deadline_ms {self.deadline_ms:g} and lifespan_ms "
                f"{self.lifespan_ms:g}; depth is 1 or more, the times 0 (none) or more."
            )


SENSOR_IN = Qos("best_effort", 1)
OUT = Qos("reliable", 1)
LATCHED = Qos("reliable", 1, "transient_local")


def command_qos(period_s: float) -> Qos:
    """For commands: a reader hears of a missed one, and none is delivered late."""
    return Qos("reliable", 1, "volatile", deadline_ms=2e3 * period_s, lifespan_ms=2e3 * period_s)


def read_qos(where: str, data: dict[str, Any] | None, default: Qos) -> Qos:
    """A :class:`Qos` from a config; missing keys as in ``default``."""
    known = [f.name for f in fields(Qos)]
    if data is not None and not isinstance(data, Mapping):
        raise ConfigError(f"{where}: qos is {data!r}; write a mapping of {', '.join(known)}.")
    for key in data or {}:
        if key not in known:
            raise did_you_mean(f"{where}: qos", "field", str(key), known)
    values = {name: getattr(default, name) for name in known}
    try:
        return Qos(**values | dict(data or {}))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"{where}: qos {dict(data)} cannot be ({error}); give numbers."
        ) from error


def conflict(offered: Qos, asked: Qos) -> str:
    """Why a reader that asks so gets nothing from a writer that offers so; empty if they match.

    The rules are those of DDS: the offer must be at least what is asked.
    """
    if asked.reliability == "reliable" and offered.reliability == "best_effort":
        return "the reader asks for reliable, the writer offers best_effort"
    if asked.durability == "transient_local" and offered.durability == "volatile":
        return "the reader asks for transient_local, the writer offers volatile"
    if asked.deadline_ms and not 0 < offered.deadline_ms <= asked.deadline_ms:
        given = f"{offered.deadline_ms:g} ms" if offered.deadline_ms else "none"
        return (
            f"the reader asks for a deadline of {asked.deadline_ms:g} ms, the writer gives {given}"
        )
    return ""
