"""What the section ``realtime`` of a run config may hold. Loads no simulator and no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vla_prune.config import PLAIN, check_keys
from vla_prune.errors import ConfigError, MissingError, did_you_mean
from vla_prune.runtime.chunks import ALIGNS, JOINS
from vla_prune.runtime.hold import HoldRule, make_hold
from vla_prune.tune.controller import ControllerConfig
from vla_prune.tune.profile import COMMITS

MODES = ("synchronous", "overlap", "asynchronous", "realtime_chunking")
LATENCIES = ("none", "profile", "live")
# Of a controller: what the real-time section says elsewhere.
OWN = ("buckets", "latency_s", "period_s", "floor_may_miss")


@dataclass(frozen=True)
class Load:
    """How the machine gets slower while it runs: a factor on every latency.

    Attributes:
        step_at_s: from here on, something else takes its share.
        step_until_s: until here.
        step: by how much.
        drift_tau_s: time constant of a warming chip that clocks down; 0 for none.
        drift: where that ends.
    """

    step_at_s: float = 0.0
    step_until_s: float = math.inf
    step: float = 1.0
    drift_tau_s: float = 0.0
    drift: float = 1.0

    def __post_init__(self) -> None:
        """Refuse times that go backwards and factors that are none."""
        if not 0.0 <= self.step_at_s < self.step_until_s or not 0 <= self.drift_tau_s < math.inf:
            raise ConfigError(
                f"realtime: load: the step goes from {self.step_at_s:g} to {self.step_until_s:g} s"
                f" and drift_tau_s is {self.drift_tau_s:g}; give times of 0 s or more, in order."
            )
        if not (0 < self.step < math.inf and 0 < self.drift < math.inf):
            raise ConfigError(
                f"realtime: load: step {self.step:g} and drift {self.drift:g} are factors on all "
                "latencies; give numbers above 0."
            )

    def factor(self, now_s: float) -> float:
        """The factor at a time of the episode."""
        made = self.step if self.step_at_s <= now_s < self.step_until_s else 1.0
        if self.drift_tau_s > 0:
            made *= 1.0 + (self.drift - 1.0) * (1.0 - math.exp(-now_s / self.drift_tau_s))
        return made


@dataclass(frozen=True)
class Setting:
    """A device that is simulated: the profile's machine, every stage times one constant.

    Attributes:
        factor: that constant.
        dense_periods: or how many replanning periods dense takes there (its median), from which
            the constant follows.
        load: fields of `Load`.
    """

    factor: float = 1.0
    dense_periods: float | None = None
    load: Any = field(default_factory=Load)

    def __post_init__(self) -> None:
        """Make an object of the load; refuse factors that are none."""
        if not isinstance(self.load, Load):
            check_keys("realtime: settings: load", Load, self.load)
            object.__setattr__(self, "load", Load(**self.load))
        for name in ("factor", "dense_periods"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"realtime: settings: {name} is {value}; give more than 0.")
        if self.dense_periods is not None and self.factor != 1.0:
            raise ConfigError(
                f"realtime: settings: factor {self.factor:g} and dense_periods "
                f"{self.dense_periods:g} both say how slow the device is; give one of them."
            )


@dataclass(frozen=True)
class RealtimeConfig:
    """How time passes.

    Attributes:
        period_s: replanning period.
        camera_s: from one picture to the next, where the camera runs by itself (``asynchronous``
            and ``realtime_chunking``); None is period_s. Of the pictures in a period one is
            thought about: the newest when the policy is free.
        deadline_s: what a new chunk may take from the picture to the actuator; None is period_s.
        execute: rows of a chunk that are played before the hold rule speaks.
        hold: what the machine does without a fresh action: a rule of `runtime.hold`.
        mode: ``synchronous`` takes a picture when the rows are over; ``overlap`` does so ``lead``
            rows before that; ``asynchronous`` thinks as soon as there is a picture, always about
            the newest; ``realtime_chunking`` too, and a chunk takes over ``prefix`` rows after its
            picture and never sooner, so that what is played meanwhile was known when it was made.
            None of them thinks more often than once a period.
        align: where a chunk begins that comes late: see `runtime.chunks`.
        join: when a chunk takes over: see `runtime.chunks`; ``replace`` for worlds of plans.
        lead: for ``overlap``.
        prefix: for ``realtime_chunking``.
        max_age_s: no row is played, and no picture thought about, at a greater age.
        transport_s: from capture to the policy.
        actuation_s: from the policy to the actuator.
        latency: of the policy: ``none``, from a ``profile``, or ``live``: what it takes here.
        profile: file that ``vla-prune profile`` wrote; or suite -> file.
        other_device: the profile stands for another device than this one; its dtype, kernel and
            threads are its own.
        commit: ``warn`` of a profile of another commit, ``refuse`` or ``ignore`` it.
        settings: name -> fields of `Setting`; rows run in each of them.
        handover: the machine is handed over with its first chunk, which costs nothing. For
            vehicles that drive when an episode begins.
        limit_s: suite -> seconds, after which an episode is over as it stands; or a list of them,
            task by task.
        ladder: keep ratios of the controller, the largest first.
        charged_as: recipe of a row -> recipe of the profile whose times it takes: for controls
            such as ``grid`` and ``random``, whose choosing costs no more, and ``blind``, which is
            charged as no visual token by the latency model.
        controller: fields of `tune.controller.ControllerConfig`, and ``percentile``: which of the
            profile's times it expects.
        hand_over: let the hold rule take over where the controller says that even the floor is too
            slow.
        seed: of the drawn latencies; all rows draw the same rounds of the profile.
    """

    period_s: float
    execute: int
    hold: Any
    mode: str = "synchronous"
    align: str = "observation"
    join: str = "replace"
    lead: int = 0
    prefix: int = 0
    max_age_s: float = math.inf
    transport_s: float = 0.0
    actuation_s: float = 0.0
    latency: str = "none"
    profile: Any = ""
    camera_s: float | None = None
    deadline_s: float | None = None
    other_device: bool = False
    commit: str = "warn"
    settings: Mapping[str, Any] = field(default_factory=dict)
    handover: bool = False
    limit_s: Mapping[str, float | Sequence[float]] = field(default_factory=dict)
    ladder: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    charged_as: Mapping[str, str] = field(default_factory=dict)
    controller: Mapping[str, Any] = field(default_factory=dict)
    hand_over: bool = True
    seed: int = 7

    def __post_init__(self) -> None:
        """Make objects of the settings; refuse what cannot be played."""
        for name, known in (
            ("mode", MODES),
            ("align", ALIGNS),
            ("join", JOINS),
            ("latency", LATENCIES),
        ):
            if getattr(self, name) not in known:
                raise did_you_mean("realtime", name, str(getattr(self, name)), known)
        if not 0 < self.period_s < math.inf or self.execute < 1 or not self.max_age_s > 0:
            raise ConfigError(
                f"realtime: period_s {self.period_s:g}, execute {self.execute} and max_age_s "
                f"{self.max_age_s:g}; all are above 0, and the period is finite."
            )
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise ConfigError(
                f"realtime: deadline_s is {self.deadline_s:g}; give more than 0, or leave it out "
                "for period_s."
            )
        if self.camera_s is not None and not 0 < self.camera_s <= self.period_s:
            raise ConfigError(
                f"realtime: camera_s is {self.camera_s:g} and period_s {self.period_s:g}; give "
                "more than 0 and no more than the period, or leave it out for that."
            )
        if not (0 <= self.transport_s < math.inf and 0 <= self.actuation_s < math.inf):
            raise ConfigError(
                f"realtime: transport_s {self.transport_s:g} and actuation_s {self.actuation_s:g} "
                "would make the clock go backwards or stop; give 0 s or more."
            )
        if not 0 <= self.lead <= self.execute or self.prefix < 0:
            raise ConfigError(
                f"realtime: lead {self.lead} and prefix {self.prefix}; lead is 0 to execute "
                f"({self.execute}), prefix 0 or more."
            )
        for name, mode in (("lead", "overlap"), ("prefix", "realtime_chunking")):
            if getattr(self, name) and self.mode != mode:
                raise ConfigError(
                    f"realtime: {name} {getattr(self, name)} does nothing in mode {self.mode!r}; "
                    f"take it out, or the mode {mode!r}."
                )
        for suite, given in self.limit_s.items():
            for seconds in given if isinstance(given, Sequence) else [given]:
                if not 0 < seconds < math.inf:
                    raise ConfigError(
                        f"realtime: limit_s: {suite} is over after {seconds:g} s; give more than "
                        "0."
                    )
        if self.commit not in COMMITS or self.seed < 0:
            raise ConfigError(
                f"realtime: commit {self.commit!r} and seed {self.seed}; commit is warn, refuse "
                "or ignore, the seed 0 or more."
            )
        if (self.latency == "profile") != bool(self.profile):
            raise ConfigError(
                f"realtime: latency is {self.latency!r} and profile {self.profile!r}; a profile "
                "goes with latency 'profile' and with nothing else."
            )
        ladder = list(self.ladder)
        if not ladder or sorted(set(ladder), reverse=True) != ladder or not 0 < ladder[-1] <= 1:
            raise ConfigError(
                f"realtime: ladder {ladder}; give keep ratios in (0, 1], the largest first."
            )
        self.hold_rule()
        check_controller(self.controller, ladder)
        if self.charged_as and self.latency != "profile":
            raise ConfigError(
                f"realtime: charged_as names recipes of a profile, and latency is "
                f"{self.latency!r}; take it out."
            )
        made = {}
        for name, data in self.settings.items():
            if not isinstance(data, Setting):
                data = {} if data is None else data
                check_keys(f"realtime: settings.{name}", Setting, data)
                data = Setting(**data)
            if data.dense_periods is not None and self.latency != "profile":
                raise ConfigError(
                    f"realtime: settings.{name}: dense_periods needs latency 'profile', not "
                    f"{self.latency!r}."
                )
            if self.latency == "none" and data != Setting():
                raise ConfigError(
                    f"realtime: settings.{name} says how slow a device is, and latency is 'none'; "
                    "take latency 'profile' or 'live', or the setting out."
                )
            made[name] = data
        object.__setattr__(self, "settings", made)

    @property
    def camera(self) -> float:
        """Seconds from one picture to the next, where the camera runs by itself."""
        return self.camera_s or self.period_s

    @property
    def deadline(self) -> float:
        """Seconds from the picture to the actuator."""
        return self.deadline_s or self.period_s

    def hold_rule(self) -> HoldRule:
        """The rule."""
        return make_hold(self.hold, "realtime: hold")

    def setting(self, name: str) -> Setting:
        """A setting; the one without a name is the profile's own machine."""
        return self.settings[name] if name else Setting()

    def limit(self, suite: str, task: int) -> float | None:
        """Seconds after which an episode of a task is over; None for never.

        Raises:
            ConfigError: the suite's limits are a list, and it ends before this task.
        """
        given = self.limit_s.get(suite)
        if not isinstance(given, Sequence):
            return given
        if task >= len(given):
            raise ConfigError(
                f"realtime: limit_s: {suite} has limits for {len(given)} tasks, and task {task} "
                "is to be played; give one for each task, or one number for all."
            )
        return given[task]

    def for_row(self, row: Any) -> RealtimeConfig:
        """The same, with the ladder of a row that has its own."""
        return self if row.ladder is None else replace(self, ladder=row.ladder)

    def mark(self, episode: Any) -> dict[str, Any]:
        """All that an episode hangs on: the fields that reach it, and a hash of its profile."""
        row, suite = episode.row, episode.suite
        fields = asdict(self.for_row(row))
        fields |= {"limit_s": self.limit(suite, episode.task), "settings": None}
        if row.driver:  # judged by the limit, and nothing else
            return {name: fields[name] for name in ("period_s", "limit_s")}
        fields["settings"] = asdict(self.setting(episode.setting))
        fields["charged_as"] = self.charged_as.get(row.recipe)
        fields["profile"] = _hash(self.profile_of(suite)) if self.profile else None
        if not row.controller:
            for name in ("ladder", "controller", "hand_over"):
                fields.pop(name)
        return fields

    def profile_of(self, suite: str) -> Path:
        """The profile of a suite's policy.

        Raises:
            ConfigError: none is given for it.
        """
        if not isinstance(self.profile, Mapping):
            return Path(self.profile)
        if suite not in self.profile:
            raise did_you_mean("realtime: profile", "suite", suite, self.profile)
        return Path(self.profile[suite])


def check_controller(fields: Mapping[str, Any], ladder: Sequence[float]) -> None:
    """Refuse a controller's fields that are unknown, wrong, or follow from elsewhere."""
    for name in OWN:
        if name in fields:
            raise ConfigError(
                f"realtime: controller: {name} follows from ladder, profile, deadline and "
                "simulation; leave it out."
            )
    own = {"buckets": (), "latency_s": (), "period_s": 1.0}
    given = {name: value for name, value in fields.items() if name != "percentile"}
    check_keys("realtime: controller", ControllerConfig, own | given)
    percentile = fields.get("percentile", 99)
    if not isinstance(percentile, int | float) or not 0 <= percentile <= 100:
        raise ConfigError(
            f"realtime: controller: percentile {percentile!r}; give a number from 0 to 100."
        )
    ControllerConfig(tuple(ladder), (1e-9,) * len(ladder), 1.0, **given)


def _hash(file: Path) -> str:
    if not file.is_file():
        raise MissingError(
            f"realtime: profile {file}: no such file; write it with 'vla-prune profile POLICY "
            f"--out {file}'."
        )
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def settings(realtime: RealtimeConfig | None, row: Any) -> list[str]:
    """The settings that a row runs in; one without a name for drivers: no latency reaches them."""
    if realtime is None or row.driver or not realtime.settings:
        return [""]
    return list(row.settings or realtime.settings)


def check_rows(
    realtime: RealtimeConfig | None, rows: Sequence[Any], suites: Sequence[str]
) -> None:
    """Refuse rows that real time cannot play, or that only it can, and a suite without a limit."""
    if realtime is not None and realtime.limit_s:
        for suite in suites:
            if suite not in realtime.limit_s:
                raise did_you_mean("realtime: limit_s", "suite", suite, realtime.limit_s)
    for row in rows:
        if realtime is None:
            if row.controller or row.settings or row.tuned:
                raise ConfigError(
                    f"run: rows: {row.name} has a controller, settings or a tuned file, which are "
                    "of real time; add a section 'realtime'."
                )
            continue
        if row.control != "none":
            raise ConfigError(
                f"run: rows: control {row.control!r} is not played in real time; take the section "
                "'realtime' out, or the row."
            )
        plain = row.recipe in ("", *PLAIN) and not row.tuned
        if row.controller and (realtime.latency != "profile" or plain):
            raise ConfigError(
                f"run: rows: {row.name} with a controller and latency {realtime.latency!r}; a "
                "controller picks keep ratios of a recipe that prunes, by a profile."
            )
        for name in row.settings or ():
            if name not in realtime.settings:
                raise did_you_mean("run: rows", "setting", name, realtime.settings)
    if realtime is not None:
        _check_paired(realtime, rows)


def _check_paired(realtime: RealtimeConfig, rows: Sequence[Any]) -> None:
    """Refuse a row in a setting that dense does not run in."""
    dense = {name for row in rows if row.recipe == "dense" for name in settings(realtime, row)}
    for row in rows:
        alone = [name for name in settings(realtime, row) if name and name not in dense]
        if alone:
            raise ConfigError(
                f"run: rows: {row.name} runs in {alone[0]!r} and no row 'dense' does; every row "
                "is paired with it, so add the setting to one."
            )
