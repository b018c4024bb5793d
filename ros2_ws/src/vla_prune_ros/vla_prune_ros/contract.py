"""The topic map: which topics a policy's observation is made of, and where its actions go.

A YAML in the manner of Rosetta's contracts (FIELD.md 4): ``observations``, ``tasks`` and
``actions`` with ``key``, ``topic``, ``type``, ``selector``, ``align`` and ``qos``. Where we
differ: ages and what happens without a fresh message are part of it, and an unknown key is an
error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_prune import config
from vla_prune.errors import ConfigError, did_you_mean
from vla_prune.runtime.hold import HoldRule, make_hold
from vla_prune.runtime.limits import Limits
from vla_prune_ros.checks import NUMBERS, check_hold, check_state, check_topic
from vla_prune_ros.commands import PLANS, check_names
from vla_prune_ros.qos import OUT, SENSOR_IN, Qos, read_qos

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
STATE_TYPES = tuple(NUMBERS)
TASK_TYPES = ("std_msgs/msg/String",)
COMMAND_TYPES = (
    "trajectory_msgs/msg/JointTrajectory",
    "geometry_msgs/msg/TwistStamped",
    "autoware_planning_msgs/msg/Trajectory",
    "nav_msgs/msg/Path",
    "vla_prune_msgs/msg/ActionChunk",
)
STAMPS = ("header", "receive")
DROPS = ("hold", "last")


@dataclass(frozen=True)
class Source:
    """One topic that is part of an observation.

    Attributes:
        key: ``images.CAMERA``, ``state`` or ``task``.
        topic: relative or absolute name.
        type: of its messages.
        names: for a state, which numbers of the message, in order, such as ``position.joint1``.
        max_age_s: an older message is not acted on.
        stamp: ``header`` (when it was taken) or ``receive`` (when it came; for types without one).
        drop: what a missing camera does: ``hold`` lets the machine hold, ``last`` goes on with its
            last frame up to ``last_age_s``.
        last_age_s: with ``last``, how old that frame may become.
        qos: asked of the publisher.
        shape: height and width that are expected, to judge sizes before a frame came; or None.
        rate_hz: that is expected; 0 for any.
    """

    key: str
    topic: str
    type: str
    names: tuple[str, ...] = ()
    max_age_s: float = 0.2
    stamp: str = "header"
    drop: str = "hold"
    last_age_s: float = 0.0
    qos: Qos = SENSOR_IN
    shape: tuple[int, int] | None = None
    rate_hz: float = 0.0

    @property
    def camera(self) -> str:
        """Name of the camera; empty for what is no image."""
        return self.key.removeprefix("images.") if self.key.startswith("images.") else ""


@dataclass(frozen=True)
class Sink:
    """One topic that commands go to.

    Attributes:
        topic: relative or absolute name.
        type: of its messages.
        names: of the action's dimensions, in the policy's order: joints, or ``linear.x`` and kin.
        qos: offered to subscribers; deadline and lifespan follow from the rate where not given.
        frame_id: for the headers.
    """

    topic: str
    type: str
    names: tuple[str, ...]
    qos: Qos | None = None
    frame_id: str = ""


@dataclass(frozen=True)
class Contract:
    """A robot's topics.

    Attributes:
        name: of the robot or setting.
        rate_hz: commands per second.
        sources: observations and task.
        sinks: where commands go; all get the same one.
        tolerance_s: largest difference of stamps between the frames of one observation.
        max_action_age_s: a command whose oldest image is older is replaced by the hold.
        limits: of the action's dimensions.
        hold: what is sent without a fresh action.
        instruction: until one comes over a topic.
        where: the file, for messages.
    """

    name: str
    rate_hz: float
    sources: tuple[Source, ...]
    sinks: tuple[Sink, ...]
    tolerance_s: float = 0.02
    max_action_age_s: float = 0.5
    limits: Limits = field(default_factory=Limits)
    hold: HoldRule = field(default_factory=lambda: make_hold("hold"))
    instruction: str = ""
    where: str = "contract"

    @property
    def cameras(self) -> tuple[Source, ...]:
        """The image sources, in order."""
        return tuple(s for s in self.sources if s.camera)

    @property
    def states(self) -> tuple[Source, ...]:
        """What the state is put together from, in order."""
        return tuple(s for s in self.sources if s.key == "state")

    @property
    def measured(self) -> Source | None:
        """The state topic that says where every dimension of an action stands, if one does."""
        wanted = {f"position.{name}" for name in self.names}
        return next((s for s in self.states if wanted <= set(s.names)), None)

    @property
    def task(self) -> Source | None:
        """Where the instruction comes from, if it does."""
        return next((s for s in self.sources if s.key == "task"), None)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the action's dimensions."""
        return self.sinks[0].names

    def check_policy(
        self,
        views: Sequence[str],
        state_dim: int | None,
        actions: int,
        names: Sequence[str] = (),
    ) -> None:
        """Raise one sentence if a policy does not fit.

        Args:
            views: cameras it sees.
            state_dim: numbers of the state it takes; None for none.
            actions: dimensions of its actions.
            names: what they are, as far as its config says so.
        """
        given = [s.camera for s in self.cameras]
        for view in views:
            if view not in given:
                raise did_you_mean(f"{self.where}: observations", "camera", view, given)
        named = sum(len(s.names) for s in self.states)
        if state_dim is not None and named != state_dim:
            raise ConfigError(
                f"{self.where}: the state has {named} numbers, the policy takes {state_dim}; list "
                "them in the selectors of the state sources."
            )
        if len(self.names) != actions:
            raise ConfigError(
                f"{self.where}: actions has {len(self.names)} names, the policy's actions have "
                f"{actions} dimensions; name each."
            )
        if names and tuple(names) != self.names:
            raise ConfigError(
                f"{self.where}: the machine takes {', '.join(self.names)}, and the policy says "
                f"{', '.join(names)}; take a policy of this machine."
            )


def load_contract(name: str | Path, overrides: Sequence[str] = ()) -> Contract:
    """A contract from a file, or by name from the shipped ``configs/ros``."""
    return read_contract(config.load(name, overrides, kind="ros"), str(name))


def read_contract(data: Mapping[str, Any], where: str = "contract") -> Contract:
    """A contract from plain data.

    Raises:
        ConfigError: an unknown key, a missing one, or values that cannot be.
    """
    known = (
        "name",
        "rate_hz",
        "observations",
        "tasks",
        "actions",
        "tolerance_ms",
        "max_action_age_ms",
        "limits",
        "hold",
        "instruction",
    )
    _keys(where, data, known, ("rate_hz", "observations", "actions"))
    rate = data["rate_hz"]
    if not isinstance(rate, int | float) or not rate > 0:
        raise ConfigError(f"{where}: rate_hz is {rate!r}; give commands per second, above 0.")
    sources = [
        _source(f"{where}: observations[{i}]", item)
        for i, item in enumerate(data["observations"] or [])
    ]
    sources += [
        _task(f"{where}: tasks[{i}]", item) for i, item in enumerate(data.get("tasks") or [])
    ]
    sinks = [_sink(f"{where}: actions[{i}]", item) for i, item in enumerate(data["actions"] or [])]
    if not any(s.camera for s in sources):
        raise ConfigError(f"{where}: observations names no camera; add one with key images.NAME.")
    if not sinks:
        raise ConfigError(f"{where}: actions is empty; name a topic that commands go to.")
    if len({s.names for s in sinks}) > 1:
        raise ConfigError(f"{where}: the actions have different names; all get the same command.")
    keys = [s.key for s in sources if s.key != "state"]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{where}: key {key!r} is given twice; only 'state' may be.")
    topics = [s.topic for s in sources if s.key == "state"]
    for topic in topics:
        if topics.count(topic) > 1:
            raise ConfigError(
                f"{where}: two states are taken from {topic!r}; list all of its numbers in one "
                "selector."
            )
    limits = data.get("limits") or {}
    _keys(f"{where}: limits", limits, ("low", "high", "rate"))
    for bound, values in limits.items():
        if values is not None and not _numbers(values):
            raise ConfigError(f"{where}: limits.{bound} is {values!r}; give a list of numbers.")
        if values is not None and len(values) != len(sinks[0].names):
            raise ConfigError(
                f"{where}: limits.{bound} has {len(values)} entries, the actions have "
                f"{len(sinks[0].names)} names; give one for each."
            )
    plan = next((s.type for s in sinks if s.type in PLANS), None)
    if plan is not None and limits.get("rate") is not None:
        raise ConfigError(
            f"{where}: limits.rate holds from tick to tick, and a {plan} is sent as a whole; give "
            "low and high alone."
        )
    bounds, hold = Limits(**limits), make_hold(data.get("hold", "hold"), f"{where}: hold")
    check_hold(f"{where}: hold", hold, [s.type for s in sinks], sinks[0].names, bounds)
    return Contract(
        name=str(data.get("name", "robot")),
        rate_hz=float(rate),
        sources=tuple(sources),
        sinks=tuple(sinks),
        tolerance_s=_milliseconds(where, data, "tolerance_ms", 20.0, may_be_0=True),
        max_action_age_s=_milliseconds(where, data, "max_action_age_ms", 500.0),
        limits=bounds,
        hold=hold,
        instruction=str(data.get("instruction") or ""),
        where=where,
    )


def _source(where: str, data: Mapping[str, Any]) -> Source:
    known = ("key", "topic", "type", "selector", "align", "qos", "image", "rate_hz")
    _keys(where, data, known, ("key", "topic", "type"))
    key = str(data["key"]).removeprefix("observation.")
    image = key.startswith("images.") and len(key) > len("images.")
    if not image and key != "state":
        raise ConfigError(f"{where}: key {key!r} is unknown; write images.CAMERA or state.")
    _type(where, data["type"], IMAGE_TYPES if image else STATE_TYPES)
    align = data.get("align") or {}
    _keys(f"{where}: align", align, ("strategy", "stamp", "max_age_ms", "drop", "last_age_ms"))
    strategy = align.get("strategy", "hold")
    if strategy != "hold":
        raise ConfigError(
            f"{where}: align.strategy {strategy!r} is unknown; 'hold' takes the newest message "
            "within its age limit."
        )
    stamp, drop = align.get("stamp", "header"), align.get("drop", "hold")
    if stamp not in STAMPS:
        raise did_you_mean(f"{where}: align", "stamp", str(stamp), STAMPS)
    if drop not in DROPS:
        raise did_you_mean(f"{where}: align", "drop", str(drop), DROPS)
    max_age = _milliseconds(f"{where}: align", align, "max_age_ms", 200.0)
    names = _names(where, data.get("selector"))
    if not image and not names:
        raise ConfigError(f"{where}: a state needs selector.names, the numbers of it in order.")
    if not image:
        check_state(where, data["type"], names)
    picture, rate = data.get("image") or {}, data.get("rate_hz", 0.0)
    _keys(f"{where}: image", picture, ("shape",))
    shape = picture.get("shape")
    if shape is not None and not (_numbers(shape) and len(shape) == 2):
        raise ConfigError(f"{where}: image.shape is {shape!r}; give [height, width].")
    if not _numbers([rate]) or not rate >= 0:
        raise ConfigError(f"{where}: rate_hz is {rate!r}; give messages per second, or 0 for any.")
    return Source(
        key,
        _topic(where, data["topic"]),
        data["type"],
        names,
        max_age,
        stamp,
        drop,
        _milliseconds(f"{where}: align", align, "last_age_ms", 1e3 * max_age),
        read_qos(where, data.get("qos"), SENSOR_IN),
        None if shape is None else (int(shape[0]), int(shape[1])),
        float(rate),
    )


def _task(where: str, data: Mapping[str, Any]) -> Source:
    _keys(where, data, ("key", "topic", "type", "qos"), ("topic", "type"))
    _type(where, data["type"], TASK_TYPES)
    return Source(
        "task",
        _topic(where, data["topic"]),
        data["type"],
        stamp="receive",
        max_age_s=float("inf"),
        qos=read_qos(where, data.get("qos"), OUT),
    )


def _sink(where: str, data: Mapping[str, Any]) -> Sink:
    _keys(where, data, ("key", "publish", "selector"), ("publish", "selector"))
    publish = data["publish"]
    _keys(f"{where}: publish", publish, ("topic", "type", "qos", "frame_id"), ("topic", "type"))
    _type(where, publish["type"], COMMAND_TYPES)
    names = _names(where, data["selector"])
    if not names:
        raise ConfigError(f"{where}: selector.names is empty; name each dimension of the action.")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: selector.names has a name twice; each names one dimension.")
    check_names(publish["type"], names, f"{where}: selector.names")
    qos = publish.get("qos")
    return Sink(
        _topic(f"{where}: publish", publish["topic"]),
        publish["type"],
        names,
        None if qos is None else read_qos(where, qos, OUT),
        str(publish.get("frame_id", "")),
    )


def _keys(where: str, data: Any, known: Sequence[str], needed: Sequence[str] = ()) -> None:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: this is {data!r}; write a mapping of {', '.join(known)}.")
    for key in data:
        if key not in known:
            raise did_you_mean(where, "field", str(key), known)
    for key in needed:
        if key not in data:
            raise ConfigError(f"{where}: field {key!r} is missing; it has no default.")


def _type(where: str, given: Any, known: Sequence[str]) -> None:
    if given not in known:
        raise did_you_mean(where, "type", str(given), known)


def _topic(where: str, given: Any) -> str:
    check_topic(where, str(given))
    return str(given)


def _names(where: str, selector: Any) -> tuple[str, ...]:
    """Of a selector; empty without one."""
    _keys(f"{where}: selector", selector or {}, ("names",))
    names = (selector or {}).get("names") or []
    if not isinstance(names, list | tuple):
        raise ConfigError(f"{where}: selector.names is {names!r}; give a list of names.")
    return tuple(str(name) for name in names)


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in values
    )


def _milliseconds(
    where: str, data: Mapping[str, Any], key: str, default: float, may_be_0: bool = False
) -> float:
    value = data.get(key, default)
    if not _numbers([value]) or not (value > 0 or (may_be_0 and value == 0)):
        least = "0 or more milliseconds" if may_be_0 else "milliseconds above 0"
        raise ConfigError(f"{where}: {key} is {value!r}; give {least}.")
    return float(value) / 1e3
