"""Picks the budget of every cycle from how much time there is. Plain Python, no clock of its own.

A ladder of buckets, most tokens first; its last rung is the tuned floor and is never left
downwards. Each rung has an expected latency from the profile; what the machine does is that times
a load, which is measured at whatever rung runs. Going down is quick (the median of the last three
cycles), going up is slow (all of the last ``window`` cycles must have had room to spare, for
``patience`` cycles, one rung at a time), and a step up that had to be taken back doubles the
patience: under constant load the changes die out whatever the expected latencies were worth. A
hold ends as soon as the floor fits again, and if that had to be taken back, after twice as many
such cycles.
Example::

    controller = Controller(ControllerConfig((1.0, 0.5, 0.25), (0.09, 0.06, 0.04), period_s=0.1))
    state = controller.new_state()
    decision = controller.decide(state, Measurement(latency_s=0.12))
    decision.keep_ratio  # 0.5
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import floor, inf, isfinite
from statistics import median

from vla_prune.errors import ConfigError

QUICK = 3  # cycles whose median decides about going down
WORST = 100.0  # load that stands for a call that never came back
SCORE_SIGNALS = ("entropy", "disagreement")  # what an attached policy tells when asked
SIGNALS = (*SCORE_SIGNALS, "motion")


@dataclass(frozen=True)
class ControllerConfig:
    """How the budget follows the time.

    Attributes:
        buckets: keep ratios, the largest first; the last is the tuned floor.
        latency_s: expected latency at each, such as the profile's 99th percentile.
        period_s: deadline: what a cycle may take from its release on.
        margin: share of the period that stays free.
        up_margin: share that must stay free at a rung above before it is tried; larger than
            ``margin``, so that the two do not fight.
        window: cycles that are remembered.
        patience: cycles in which a rung above must have fitted.
        max_patience: what doubling ends at, so that a lighter load is found in the end.
        dwell: cycles between two steps up.
        easy: rung that is enough for the easiest scene; 0 spends all the time there is. Easy and
            hard come from ``entropy``, ``disagreement`` and ``motion``.
        entropy: entropy of the scores, ``(easy, hard)`` values; None leaves it out.
        disagreement: of action and semantic attention, likewise.
        motion: of the ego or end effector, likewise.
        motion_numbers: which numbers of an action are motion; None for all. A gripper's is none.
        floor_may_miss: let a period stand in which not even the floor fits, and hand over.
    """

    buckets: tuple[float, ...]
    latency_s: tuple[float, ...]
    period_s: float
    margin: float = 0.1
    up_margin: float = 0.2
    window: int = 8
    patience: int = 8
    max_patience: int = 256
    dwell: int = 2
    easy: int = 0
    entropy: tuple[float, float] | None = None
    disagreement: tuple[float, float] | None = None
    motion: tuple[float, float] | None = None
    motion_numbers: tuple[int, ...] | None = None
    floor_may_miss: bool = False

    def __post_init__(self) -> None:
        """Lists of a config become tuples; refuse ladders that lead nowhere."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, list | tuple):
                kind = int if f.name == "motion_numbers" else float
                object.__setattr__(self, f.name, tuple(kind(x) for x in value))
        if not 0 < self.period_s < inf:
            raise ConfigError(
                f"controller: the period is {self.period_s:g} s; give a time above 0 and finite."
            )
        buckets, latency = self.buckets, self.latency_s
        if not buckets or any(a <= b for a, b in pairwise(buckets)):
            raise ConfigError(
                f"controller: buckets {list(buckets)}; give keep ratios, each smaller than the "
                "one before."
            )
        if not 0 < buckets[-1] <= buckets[0] <= 1:
            raise ConfigError(f"controller: buckets {list(buckets)} are not all in (0, 1].")
        if len(latency) != len(buckets) or not all(0 < x < inf for x in latency):
            raise ConfigError(
                f"controller: {len(buckets)} buckets and latencies {list(latency)} s; give one "
                "above 0 for each."
            )
        if latency[-1] > self.period_s and not self.floor_may_miss:
            raise ConfigError(
                f"controller: the period is {self.period_s:g} s, and the fastest bucket "
                f"({buckets[-1]:g}) takes {latency[-1]:g} s; take a longer period or a faster "
                "policy."
            )
        if not 0 <= self.margin <= self.up_margin < 1:
            raise ConfigError(
                f"controller: margin {self.margin:g} and up_margin {self.up_margin:g}; they are "
                "shares of the period, the second at least the first and below 1."
            )
        counts = (self.window, self.patience, self.dwell)
        if min(counts) < 1 or self.max_patience < self.patience:
            raise ConfigError(
                f"controller: window {self.window}, patience {self.patience}, max_patience "
                f"{self.max_patience}, dwell {self.dwell}; all are at least 1, max_patience at "
                "least patience."
            )
        if not 0 <= self.easy < len(buckets):
            raise ConfigError(
                f"controller: easy is rung {self.easy}; there are 0 to {len(buckets) - 1}."
            )
        for name in SIGNALS:
            ends = getattr(self, name)
            if ends is not None and (len(ends) != 2 or not ends[0] < ends[1]):
                raise ConfigError(
                    f"controller: {name} {list(ends)}; give an easy value and a larger hard one."
                )


@dataclass(frozen=True)
class Measurement:
    """What the last cycle told. Seconds; nothing has to be known.

    Attributes:
        latency_s: execution of the last call; infinite if it failed, None if there was none.
        lateness_s: what went by before it could start: transport, queueing, release lateness.
        rung: that the call ran at; None for the last decision's.
        entropy: of the scores.
        disagreement: of action and semantic attention.
        motion: of the ego or end effector.
    """

    latency_s: float | None = None
    lateness_s: float = 0.0
    rung: int | None = None
    entropy: float | None = None
    disagreement: float | None = None
    motion: float | None = None


@dataclass
class State:
    """What a controller remembers; plain data that the caller owns. A reset is a new one.

    Attributes:
        rung: the bucket that runs now.
        hand_over: whether the machine holds because even the floor misses.
        loads: measured over expected latency of the last cycles, newest last.
        lates: lateness of the last cycles.
        hard: difficulty of the last cycles.
        room: for each rung, for how many cycles it has fitted with room to spare.
        patience: how many are needed now.
        since_up: cycles since the last step up.
        hold_patience: in how many cycles the floor has to fit before a hold ends.
        hold_room: in how many it has.
        since_hold: cycles since the last hold.
    """

    rung: int
    hand_over: bool = False
    loads: deque[float] = field(default_factory=deque)
    lates: deque[float] = field(default_factory=deque)
    hard: deque[float] = field(default_factory=deque)
    room: list[int] = field(default_factory=list)
    patience: int = 1
    since_up: int = 0
    hold_patience: int = 1
    hold_room: int = 0
    since_hold: int = 0


@dataclass(frozen=True)
class Decision:
    """What the next cycle runs at.

    Attributes:
        rung: place on the ladder.
        keep_ratio: its bucket.
        hand_over: the hold rule has to take over; the policy goes on at the floor, so that an end
            of the load is seen.
        expected_s: latency that is expected of it under the measured load.
        slack_s: what that leaves of the period; negative for a miss.
        difficulty: 0 for the easiest scene, 1 for the hardest or an unknown one.
        reason: ``keep``, ``load`` (down), ``room`` (up), ``easy`` (down) or ``floor`` (hold).
    """

    rung: int
    keep_ratio: float
    hand_over: bool
    expected_s: float
    slack_s: float
    difficulty: float
    reason: str


class Controller:
    """Decides; remembers nothing itself.

    Args:
        config: ladder, deadline and temper.
    """

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config

    def new_state(self) -> State:
        """At the first rung that is expected to fit with room to spare, else at the floor."""
        c, last = self.config, len(self.config.buckets) - 1
        fitting = (j for j, s in enumerate(c.latency_s) if s <= (1 - c.up_margin) * c.period_s)
        state = State(next(fitting, last), room=[0] * (last + 1), patience=c.patience)
        state.loads, state.lates = deque(maxlen=c.window), deque(maxlen=c.window)
        state.hard = deque(maxlen=c.window)
        state.since_up, state.since_hold = c.patience + QUICK + 1, c.max_patience
        return state

    def decide(self, state: State, measurement: Measurement) -> Decision:
        """The next cycle's bucket; the state is updated in place. Never raises."""
        c, last = self.config, len(self.config.buckets) - 1
        self._remember(state, measurement)
        state.since_up += 1
        load, late = self._quick(state)
        quick = [load * s + late for s in c.latency_s]
        self._count_room(state)
        fits = next((j for j, s in enumerate(quick) if s <= (1 - c.margin) * c.period_s), last)
        enough = self._enough(max(state.hard))
        reason = "keep"
        if fits > state.rung:
            self._step_down(state, fits, late)
            reason = "load"
        elif enough > state.rung and not state.hand_over:
            state.rung, reason = state.rung + 1, "easy"
        elif self._may_rise(state, enough):
            state.rung, state.since_up, reason = state.rung - 1, 0, "room"
        state.hand_over = state.rung == last and self._holds(state, quick[last])
        state.since_hold = 0 if state.hand_over else state.since_hold + 1
        if state.hand_over:
            reason = "floor"
        expected = quick[state.rung]
        return Decision(
            state.rung,
            c.buckets[state.rung],
            state.hand_over,
            expected,
            c.period_s - expected,
            state.hard[-1],
            reason,
        )

    def _holds(self, state: State, seconds: float) -> bool:
        """Whether a floor that takes so long leaves the machine to the hold rule."""
        c = self.config
        if not state.hand_over:
            if seconds <= c.period_s:
                return False
            soon = state.since_hold < c.max_patience
            state.hold_patience = min(2 * state.hold_patience, c.max_patience) if soon else 1
            state.hold_room = 0
            return True
        if seconds <= (1 - c.up_margin) * c.period_s:
            return False
        if seconds <= self._taken_back_at():
            state.hold_room += 1
        elif seconds > c.period_s:
            state.hold_room = 0
        return state.hold_room < state.hold_patience

    def _taken_back_at(self) -> float:
        """Expected seconds at which the hold ends: with the margin free, or half of what is left.

        A floor whose own latency takes more than that share must come back without a load, too.
        """
        c = self.config
        halfway = (c.latency_s[-1] + c.period_s) / 2
        return min(c.period_s, max((1 - c.margin) * c.period_s, halfway))

    def _remember(self, state: State, measurement: Measurement) -> None:
        latency, late = measurement.latency_s, measurement.lateness_s
        # Below zero a clock went backwards: that says nothing about the load.
        if latency is not None and not latency < 0:
            rung = state.rung if measurement.rung is None else measurement.rung
            load = latency / self.config.latency_s[min(max(rung, 0), len(state.room) - 1)]
            state.loads.append(load if load < WORST else WORST)  # NaN counts as lost, too
        if not late < 0:
            state.lates.append(min(late, WORST) if late == late else WORST)
        state.hard.append(self._difficulty(measurement))

    def _quick(self, state: State) -> tuple[float, float]:
        """Load and lateness that the step down goes by."""
        load = median(list(state.loads)[-QUICK:]) if state.loads else 1.0
        late = median(list(state.lates)[-QUICK:]) if state.lates else 0.0
        return load, late

    def _count_room(self, state: State) -> None:
        """How long each rung has fitted by the worst of the window."""
        load, late = max(state.loads, default=1.0), max(state.lates, default=0.0)
        allowed = (1 - self.config.up_margin) * self.config.period_s
        for rung, seconds in enumerate(self.config.latency_s):
            fits = load * seconds + late <= allowed
            state.room[rung] = state.room[rung] + 1 if fits else 0

    def _may_rise(self, state: State, enough: int) -> bool:
        if state.rung <= enough or state.hand_over or state.since_up < self.config.dwell:
            return False
        return state.room[state.rung - 1] >= state.patience

    def _step_down(self, state: State, rung: int, late: float) -> None:
        """To a rung that fits. Only what is measured there may lead further down."""
        c = self.config
        # A step up that is taken back soon was a mistake; one that lasted was none.
        soon = state.since_up <= c.patience + QUICK
        state.patience = min(2 * state.patience, c.max_patience) if soon else c.patience
        left = (1 - c.margin) * c.period_s - late
        if state.since_up <= QUICK and left > 0:
            rung = state.rung + 1  # where it came from: that did fit, whatever the load says
        if rung < len(c.buckets) - 1:
            most = left / c.latency_s[rung]
            loads = [min(load, most) for load in state.loads]
            state.loads.clear()
            state.loads.extend(loads)
        state.rung, state.room = rung, [0] * len(c.buckets)

    def _difficulty(self, measurement: Measurement) -> float:
        """The largest of the signals, each from 0 (easy) to 1 (hard); unknown is hard."""
        found = []
        for name in SIGNALS:
            ends, value = getattr(self.config, name), getattr(measurement, name)
            if ends is None:
                continue
            known = value is not None and isfinite(value)
            share = (value - ends[0]) / (ends[1] - ends[0]) if known else 1.0
            found.append(min(max(share, 0.0), 1.0))
        return max(found, default=1.0)

    def _enough(self, difficulty: float) -> int:
        """The lowest rung that such a scene may run at, though there were time for more."""
        return floor(self.config.easy * (1.0 - difficulty))
