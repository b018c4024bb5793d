"""What a driver that reads and writes text is told, and what it answers: no model, no pruning.

The ego's frame everywhere: x forward, y left, metres, origin where the observation was made.
Example::

    EgoState(("speed", "x_1.0", "y_1.0")).said(np.array([5.0, -4.9, 0.1]))
    waypoints("[(2.5, 0.0), (5.0, 0.1), ...]")  # [6, 2]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_prune.errors import ActionError, ConfigError, ShapeError, did_you_mean

WAYPOINTS = 6  # 3 s
STEP_S = 0.5
TURNS = ("straight", "left", "right")
MEASURED = ("speed", "acceleration", "yaw_rate", "steering")
UNSAID = "-"
DRIVE_STATE = (*MEASURED, "x_1.0", "y_1.0", *TURNS, UNSAID)  # of VlaPrune/Drive-v0

# The wording of the published data set's waypoint questions (Impromptu-VLA, data_qa_generate).
_VIEWS = (
    "You are an autonomous driving agent. You have access to {views}. Your task is to do your "
    "best to predict future waypoints for the vehicle over the next 3 timesteps, given the "
    "vehicle's intent inferred from the images. Provided are the previous ego vehicle status "
    "recorded over the last {{history_s}} seconds (at {{interval_s}}-second intervals). This "
    "includes the x and y coordinates of the ego vehicle. Positive x means forward direction "
    "while positive y means leftwards. The data is presented in the format [x, y]: {{status}}\n"
    "Instruction: {{instruction}}.\n"
)

FARTHEST_M = 250.0  # of a waypoint, in three seconds
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+))"
_PAIR = re.compile(rf"[\[(]\s*{_NUMBER}\s*,\s*{_NUMBER}\s*[\])]")
# A place that is none: two words in brackets of which one means to be a number.
_ODD_PAIR = re.compile(
    r"[\[(](?=[^\[\]()]*(?:\d|nan|inf))\s*[\w.+-]+\s*,\s*[\w.+-]+\s*[\])]", re.IGNORECASE
)
_BETWEEN = re.compile(r"[\s,;]*")


def driver_prompt(cameras: Sequence[str]) -> str:
    """The question: ``<image>`` for each camera in order, then the fields that are filled in.

    The published questions are the same but for the instruction, which they do not have.
    """
    views = [f"{name.removeprefix('CAM_').replace('_', ' ').lower()} view" for name in cameras]
    if len(views) == 1:
        return _VIEWS.format(views=f"a {views[0]} camera image of a vehicle <image>")
    listed = [f"({n}) {view} <image>" for n, view in enumerate(views, start=1)]
    several = "multi-view camera images of a vehicle: " + ", ".join(listed)
    return _VIEWS.format(views=several)


@dataclass(frozen=True)
class EgoState:
    """How the numbers of ``Observation.state`` are told.

    Attributes:
        names: what each entry is: ``speed`` (m/s), ``acceleration`` (m/s^2, forward),
            ``yaw_rate`` (rad/s, left is positive), ``steering`` (rad, left is positive),
            ``x_T`` and ``y_T`` (metres, where the ego was T seconds ago, its present frame),
            ``straight``, ``left``, ``right`` (1 for the route's next turn), or ``-`` for an entry
            that is not told. There is no name for the future.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse names that mean nothing."""
        for name in self.names:
            if name not in (*MEASURED, *TURNS, UNSAID) and not re.fullmatch(
                r"[xy]_\d+(\.\d+)?", name
            ):
                raise did_you_mean(
                    "ego state", "entry", name, (*MEASURED, *TURNS, UNSAID, "x_1.0", "y_1.0")
                )
        said = [name for name in self.names if name != UNSAID]
        past = {axis: {n[2:] for n in said if n.startswith(f"{axis}_")} for axis in "xy"}
        if len(set(said)) != len(said) or past["x"] != past["y"]:
            raise ConfigError(
                f"ego state: {', '.join(self.names)}: give each entry once, and x and y of every "
                "past place."
            )

    @property
    def history(self) -> list[str]:
        """Seconds ago of the past places, as they are spelled, oldest first."""
        return sorted((n[2:] for n in self.names if n.startswith("x_")), key=float, reverse=True)

    @property
    def history_s(self) -> float:
        """Seconds that the past places go back."""
        return float(self.history[0]) if self.history else 0.0

    @property
    def interval_s(self) -> float:
        """Seconds between past places, the present one included; the published 0.5 without any."""
        times = [*map(float, self.history), 0.0]
        gaps = [before - after for before, after in itertools.pairwise(times)]
        return min(gaps, default=STEP_S)

    def said(self, state: np.ndarray | None) -> str:
        """The status sentence of one state ``[P]``.

        Raises:
            ShapeError: another length than the names, or not finite.
        """
        values = self._values(state)
        entries = [
            f"(t-{float(t):.1f}s) [{_two(values[f'x_{t}'])}, {_two(values[f'y_{t}'])}]"
            for t in self.history
        ]
        now = ["(t-0.0s) [0.0, 0.0]"]
        if "acceleration" in values:
            sideways = values.get("speed", 0.0) * values.get("yaw_rate", 0.0)
            forward = values["acceleration"]
            now.append(f"Acceleration: X {_two(forward)}, Y {_two(sideways)} m/s^2")
        if "speed" in values:
            now.append(f"Velocity: {_two(values['speed'])} m/s")
        if "steering" in values:
            angle = _two(values["steering"])
            now.append(f"Steering angle: {angle} (positive: left turn, negative: right turn)")
        return ", ".join([*entries, *now])

    def turn(self, state: np.ndarray | None) -> str | None:
        """The route's next turn; None if the state does not tell one."""
        values = self._values(state)
        turns = [name for name in TURNS if name in values]
        return max(turns, key=values.__getitem__) if turns else None

    def _values(self, state: np.ndarray | None) -> dict[str, float]:
        given = 0 if state is None else np.size(state)
        if given != len(self.names):
            raise ShapeError(
                f"the state has {given} entries, this policy takes {len(self.names)} "
                f"({', '.join(self.names) or 'none'}); give the state that it is told of."
            )
        numbers = np.zeros(0) if state is None else np.asarray(state, np.float64).reshape(-1)
        if not np.isfinite(numbers).all():
            raise ShapeError("the state has NaN or infinite entries; give finite numbers.")
        return dict(zip(self.names, numbers.tolist(), strict=True))


def waypoints(text: str) -> np.ndarray:
    """The places in an answer: ``[6, 2]`` float32 metres, every 0.5 s, ego frame.

    Six pairs ``[x, y]`` or ``(x, y)`` in a row, from the first pair on; in the published form
    they stand between ``<PLANNING>`` and ``</PLANNING>`` behind a sentence. More than six are the
    seconds after the third, and are left away.

    Raises:
        ActionError: fewer than six, one that cannot be read before them, or one that no car can
            reach. Nothing is made up for what is missing.
    """
    body = text.rpartition("<PLANNING>")[2]
    found: list[tuple[float, float]] = []
    pair = _PAIR.search(body)
    odd = _ODD_PAIR.search(body[: pair.start()]) if pair else None
    while pair and len(found) < WAYPOINTS:
        found.append((float(pair[1]), float(pair[2])))
        pair = _PAIR.match(body, _BETWEEN.match(body, pair.end()).end())
    places = np.array(found, np.float32).reshape(-1, 2)
    shown = text if len(text) <= 160 else f"{text[:80]} ... {text[-60:]}"
    if odd:
        raise ActionError(
            f"the answer {shown!r} has {odd[0]} before its first waypoint; it is no action."
        )
    if (np.abs(places) > FARTHEST_M).any():
        raise ActionError(
            f"the answer {shown!r} has a waypoint beyond {FARTHEST_M:g} m, farther than a car "
            "gets in three seconds; it is no action."
        )
    if len(places) < WAYPOINTS or not np.isfinite(places).all():
        raise ActionError(
            f"the answer {shown!r} has {len(found)} waypoints in a row, {WAYPOINTS} finite ones "
            "are needed; it is no action."
        )
    return places


def steps_between(places: np.ndarray) -> np.ndarray:
    """The way of each half second instead of the places: ``[6, 2]`` metres, ego frame.

    The axes stay those of the present pose for all six.
    """
    return np.diff(places, axis=0, prepend=np.zeros((1, 2), places.dtype))


def _two(value: float) -> str:
    """Two decimals at most, ``0.0`` for what rounds to zero from below."""
    return str(round(value, 2) + 0.0)
