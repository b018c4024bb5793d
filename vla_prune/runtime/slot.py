"""The newest frame and nothing else: no queue, so that no old picture waits for its turn.

Both classes may be filled by one thread and emptied by another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from vla_prune.errors import ConfigError, did_you_mean

KEPT = 8  # frames of a camera that wait for those of the others


@dataclass
class Drops:
    """What was thrown away, and why.

    Attributes:
        overwritten: a newer one came before it was taken.
        too_old: over the age limit when it would have been taken.
        ahead: stamped further in the future than the age limit: the clocks disagree.
        out_of_order: not newer than the one before.
    """

    overwritten: int = 0
    too_old: int = 0
    ahead: int = 0
    out_of_order: int = 0

    def __str__(self) -> str:
        """For diagnostics."""
        return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in vars(self).items())


class NewestSlot:
    """Holds one item; a newer one overwrites it.

    Args:
        max_age_s: older items are never given out. Message time.
    """

    def __init__(self, max_age_s: float) -> None:
        self.max_age_s = _positive("slot", "max_age_s", max_age_s)
        self.drops = Drops()
        self._held: tuple[Any, float] | None = None
        self._newest = float("-inf")
        self._lock = Lock()

    def put(self, item: Any, stamp_s: float) -> bool:
        """Give an item and its stamp; False if it is not newer than the one before."""
        with self._lock:
            if not stamp_s > self._newest:  # also NaN
                self.drops.out_of_order += 1
                return False
            self.drops.overwritten += self._held is not None
            self._held, self._newest = (item, stamp_s), stamp_s
            return True

    def take(self, now: float) -> Any | None:
        """The item, once; None if there is none or its age is not acceptable at ``now``."""
        with self._lock:
            held, self._held = self._held, None
            if held is None:
                return None
            item, stamp = held
            if _dropped(self.drops, now - stamp, self.max_age_s):
                self._newest = min(self._newest, now)  # a stamp from the future blocks nobody
                return None
            return item

    def reset(self) -> None:
        """Forget the item and the order, as after a jump of the clock. The counts stay."""
        with self._lock:
            self._held, self._newest = None, float("-inf")


@dataclass(frozen=True)
class FrameSet:
    """One frame of every camera.

    Attributes:
        frames: camera -> frame.
        stamps_s: camera -> its stamp.
    """

    frames: Mapping[str, Any]
    stamps_s: Mapping[str, float]

    @property
    def stamp_s(self) -> float:
        """Of the oldest frame: what `Observation.stamp_s` takes."""
        return min(self.stamps_s.values())


@dataclass
class _Camera:
    max_age_s: float
    drops: Drops = field(default_factory=Drops)
    waiting: deque[tuple[Any, float]] = field(default_factory=deque)
    newest: float = float("-inf")
    ahead_s: float = 0.0  # by how much the last frame was dropped; 0 if it was not for that


class FrameSync:
    """Frames of several cameras that were taken together.

    Args:
        cameras: their names.
        tolerance_s: largest difference of stamps within a set.
        max_age_s: of every frame of a set; a number, or one per camera.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        tolerance_s: float,
        max_age_s: float | Mapping[str, float],
    ) -> None:
        if not cameras:
            raise ConfigError("frame sync: no cameras are given; name at least one.")
        if tolerance_s < 0:
            raise ConfigError(f"frame sync: tolerance_s is {tolerance_s:g}; give 0 s or more.")
        ages = max_age_s if isinstance(max_age_s, Mapping) else dict.fromkeys(cameras, max_age_s)
        for name in (*ages, *cameras):
            if name not in cameras:
                raise did_you_mean("frame sync: max_age_s", "camera", name, cameras)
            if name not in ages:
                raise ConfigError(f"frame sync: camera {name!r} has no max_age_s; give it one.")
        self.tolerance_s = tolerance_s
        self._cameras = {
            name: _Camera(_positive("frame sync", "max_age_s", ages[name])) for name in cameras
        }
        self._lock = Lock()
        self._without_s: float | None = None  # since when there is no set, message time

    @property
    def drops(self) -> Mapping[str, Drops]:
        """Camera -> what was thrown away."""
        return {name: camera.drops for name, camera in self._cameras.items()}

    def put(self, camera: str, frame: Any, stamp_s: float) -> bool:
        """Give a camera's frame; False if it is not newer than the one before."""
        if camera not in self._cameras:
            raise did_you_mean("frame sync", "camera", camera, self._cameras)
        with self._lock:
            at = self._cameras[camera]
            if not stamp_s > at.newest:
                at.drops.out_of_order += 1
                return False
            at.waiting.append((frame, stamp_s))
            at.newest = stamp_s
            if len(at.waiting) > KEPT:
                at.waiting.popleft()
                at.drops.overwritten += 1
            return True

    def take(self, now: float) -> FrameSet | None:
        """The newest complete set, once; None if there is none within tolerance and age limits.

        Frames that are older than those of a set that was given out are dropped with it.
        """
        with self._lock:
            for camera in self._cameras.values():
                self._clear(camera, now)
            found = self._match()
            if found is None:
                self._without_s = now if self._without_s is None else self._without_s
                return None
            self._without_s = None
            for name, (_, stamp) in found.items():
                camera = self._cameras[name]
                while camera.waiting and camera.waiting[0][1] <= stamp:
                    camera.drops.overwritten += camera.waiting.popleft()[1] < stamp
            return FrameSet(
                {name: frame for name, (frame, _) in found.items()},
                {name: stamp for name, (_, stamp) in found.items()},
            )

    def ages(self, now: float) -> dict[str, float]:
        """Camera -> age of the last frame that came; infinite if none ever did."""
        with self._lock:
            return {name: now - camera.newest for name, camera in self._cameras.items()}

    def silent(self, now: float) -> tuple[str, ...]:
        """The cameras whose last frame is over their age limit: those that hold a set up."""
        ages = self.ages(now)
        return tuple(n for n, camera in self._cameras.items() if ages[n] > camera.max_age_s)

    def ahead(self) -> dict[str, float]:
        """Camera -> seconds that its last frame was ahead of the clock, for those beyond limit."""
        with self._lock:
            return {n: camera.ahead_s for n, camera in self._cameras.items() if camera.ahead_s}

    def apart(self, now: float) -> float:
        """Seconds between the cameras' last frames, if that is why no set comes; else 0.

        It is only after the longest age limit without a set: until then, one may be on its way.
        """
        with self._lock:
            limit = max(camera.max_age_s for camera in self._cameras.values())
            if self._without_s is None or now - self._without_s <= limit:
                return 0.0
            stamps = [camera.newest for camera in self._cameras.values()]
            spread = max(stamps) - min(stamps)
            return spread if self.tolerance_s < spread < float("inf") else 0.0

    def reset(self) -> None:
        """Forget the frames and their order, as after a jump of the clock. The counts stay."""
        with self._lock:
            self._without_s = None
            for camera in self._cameras.values():
                camera.waiting.clear()
                camera.newest, camera.ahead_s = float("-inf"), 0.0

    @staticmethod
    def _clear(camera: _Camera, now: float) -> None:
        fresh = []
        for frame, stamp in camera.waiting:
            age = now - stamp
            if not _dropped(camera.drops, age, camera.max_age_s):
                fresh.append((frame, stamp))
            camera.ahead_s = -age if age < -camera.max_age_s else 0.0
        if len(fresh) < len(camera.waiting):
            camera.waiting = deque(fresh)
            camera.newest = min(camera.newest, now)

    def _match(self) -> dict[str, tuple[Any, float]] | None:
        """The camera that lags most leads: from its newest frame back, who is nearest to it?"""
        waiting = {name: camera.waiting for name, camera in self._cameras.items()}
        if not all(waiting.values()):
            return None
        slowest = min(waiting, key=lambda name: waiting[name][-1][1])
        for _, lead in reversed(waiting[slowest]):
            found = {
                name: min(frames, key=lambda entry: abs(entry[1] - lead))
                for name, frames in waiting.items()
            }
            stamps = [stamp for _, stamp in found.values()]
            if max(stamps) - min(stamps) <= self.tolerance_s:
                return found
        return None


def _dropped(drops: Drops, age_s: float, limit_s: float) -> bool:
    """Whether an age is beyond its limit, and counted as such."""
    drops.too_old += age_s > limit_s
    drops.ahead += age_s < -limit_s
    return not -limit_s <= age_s <= limit_s


def _positive(where: str, name: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{where}: {name} is {value}; give a number of seconds above 0.")
    return value
