"""Camera messages to one synchronised set of pictures; only what is used is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from vla_prune.errors import ConfigError
from vla_prune.runtime.slot import FrameSync
from vla_prune_ros.contract import Source
from vla_prune_ros.convert import picture
from vla_prune_ros.stamps import seconds


@dataclass(frozen=True)
class Views:
    """Pictures that belong together.

    Attributes:
        images: camera -> ``[H, W, 3]`` uint8 RGB.
        stamps_s: camera -> its stamp.
    """

    images: Mapping[str, np.ndarray]
    stamps_s: Mapping[str, float]

    @property
    def stamp_s(self) -> float:
        """Of the oldest."""
        return min(self.stamps_s.values())


class Cameras:
    """The cameras of a contract.

    Those with ``drop: hold`` are synchronised and hold everything up when one falls silent. Those
    with ``drop: last`` lend their last frame up to ``last_age_s``; its age counts as the
    observation's.

    Args:
        sources: of the contract.
        tolerance_s: largest difference of stamps between synchronised cameras.
    """

    def __init__(self, sources: Sequence[Source], tolerance_s: float) -> None:
        leading = [s for s in sources if s.drop == "hold"]
        if not leading:
            raise ConfigError(
                "cameras: all have drop 'last', so none says when to look; give one 'hold'."
            )
        self.sources = {s.camera: s for s in sources}
        self.sync = FrameSync(
            [s.camera for s in leading], tolerance_s, {s.camera: s.max_age_s for s in leading}
        )
        self._lent: dict[str, tuple[Any, float]] = {}
        self._lock = Lock()

    def put(self, camera: str, message: Any, now: float) -> bool:
        """Give a camera's message; False if it is not newer than the one before."""
        source = self.sources[camera]
        stamp = now if source.stamp == "receive" else seconds(message.header.stamp)
        if source.drop == "hold":
            return self.sync.put(camera, message, stamp)
        with self._lock:
            if camera in self._lent and stamp <= self._lent[camera][1]:
                return False
            self._lent[camera] = (message, stamp)
            return True

    def take(self, now: float) -> Views | None:
        """The newest complete set, once, decoded; None if there is none.

        Raises:
            ShapeError: a frame of it is broken; the set is gone, the next may be whole.
        """
        found = self.sync.take(now)
        if found is None or self._silent_lenders(now):
            return None
        messages, stamps = dict(found.frames), dict(found.stamps_s)
        with self._lock:
            for camera, (message, stamp) in self._lent.items():
                messages[camera], stamps[camera] = message, stamp
        order = [camera for camera in self.sources if camera in messages]
        images = {camera: picture(messages[camera], f"camera {camera}") for camera in order}
        return Views(images, {camera: stamps[camera] for camera in order})

    def silent(self, now: float) -> str:
        """Which cameras hold everything up and why, in words; empty if none does."""
        ages = self.sync.ages(now)
        late = {name: -ahead for name, ahead in self.sync.ahead().items()}
        late |= {name: ages[name] for name in self.sync.silent(now)} | self._silent_lenders(now)
        apart = self.sync.apart(now)
        if late or not apart:
            return "; ".join(_why(f"camera {name}", age) for name, age in late.items())
        return (
            f"no frames of {', '.join(ages)} belong together: the last are {1e3 * apart:.0f} ms "
            f"apart, tolerance_ms is {1e3 * self.sync.tolerance_s:g}."
        )

    def reset(self) -> None:
        """Forget all frames, as after a jump of the clock."""
        self.sync.reset()
        with self._lock:
            self._lent.clear()

    def _silent_lenders(self, now: float) -> dict[str, float]:
        with self._lock:
            stamps = {name: stamp for name, (_, stamp) in self._lent.items()}
        ages = {
            s.camera: now - stamps.get(s.camera, float("-inf"))
            for s in self.sources.values()
            if s.drop == "last"
        }
        return {n: a for n, a in ages.items() if not abs(a) <= self.sources[n].last_age_s}


def _why(camera: str, age_s: float) -> str:
    if age_s < 0:
        return f"{camera} is ahead of this clock by {-age_s:.2f} s; synchronise the clocks"
    return f"{camera} {f'silent for {age_s:.2f} s' if age_s < 1e6 else 'has sent nothing yet'}"
