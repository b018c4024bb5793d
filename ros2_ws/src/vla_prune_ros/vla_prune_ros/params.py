"""Every parameter of every node, as data: the nodes declare them from here, the README shows them.

A parameter that is not ``live`` needs a new ``configure``; ROS shows it as read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_prune.errors import ConfigError, VlaPruneError, did_you_mean

TYPES = {"bool": bool, "integer": int, "double": float, "string": str, "double_array": list}
ROS_OWN = ("use_sim_time", "start_type_description_service")


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: snake_case.
        type: bool, integer, double, string or double_array.
        default: its value.
        description: one sentence.
        low: smallest value, for numbers.
        high: largest.
        choices: for strings, all that can be.
        live: may change while the node is active.
    """

    name: str
    type: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    live: bool = False

    @property
    def range(self) -> str:
        """For tables."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None and self.high is None:
            return ""
        low, high = ("" if bound is None else f"{bound:g}" for bound in (self.low, self.high))
        return f"{low} .. {high}"


def _common(rate: float = 1.0) -> tuple[Parameter, ...]:
    return (
        Parameter("contract", "string", "arm", "Topic map: a file, or a name in configs/ros."),
        Parameter(
            "heartbeat_hz", "double", rate, "How often status and diagnostics are sent.", 0.1, 50.0
        ),
    )


_KEEP = Parameter(
    "keep_ratio", "double", 0.25, "Fraction of visual tokens kept.", 0.001, 1.0, live=True
)
_MODEL = (
    Parameter("policy", "string", "", "Policy config: a file, or a name in configs/policy."),
    Parameter("recipe", "string", "dual_level", "Recipe: a file, or a name in configs/recipe."),
    Parameter(
        "buckets",
        "double_array",
        [1.0, 0.5, 0.25, 0.125],
        "Budgets that are warmed up; keep_ratio picks the largest that is not above it.",
    ),
    Parameter("warmup_calls", "integer", 3, "Calls per bucket in configure.", 1, 100),
)

_CLOCK_RATE = Parameter(
    "clock_rate",
    "double",
    1.0,
    "Message seconds per second that are no jump of the clock: the rate of a replay or a "
    "simulation.",
    0.01,
    100.0,
)

PARAMETERS: Mapping[str, tuple[Parameter, ...]] = {
    "pruner_node": (
        *_common(5.0),
        *_MODEL,
        _KEEP,
        Parameter("instruction", "string", "", "What to do, until a task comes.", live=True),
        Parameter(
            "max_rate_hz", "double", 30.0, "Observations per second.", 0.1, 240.0, live=True
        ),
        _CLOCK_RATE,
    ),
    "policy_node": (
        *_common(5.0),
        *_MODEL,
        _KEEP,
        Parameter(
            "input",
            "string",
            "images",
            "What it acts on: camera images (fused), or a pruner's visual tokens (split).",
            choices=("images", "tokens"),
        ),
        Parameter("instruction", "string", "", "What to do, until a task comes.", live=True),
        Parameter("max_rate_hz", "double", 30.0, "Calls per second.", 0.1, 240.0, live=True),
        Parameter(
            "controller",
            "string",
            "",
            "A tuned.yaml of 'vla-prune tune': its ladder replaces buckets, the time there is "
            "picks each call's budget, and a keep_ratio that is set later is the most.",
        ),
        Parameter(
            "deadline_ms",
            "double",
            0.0,
            "With a controller: time from a picture to its chunk; 0 takes the file's.",
            0.0,
            60000.0,
            live=True,
        ),
        Parameter("time_stages", "bool", False, "Measure stage times; waits for the device."),
        _CLOCK_RATE,
    ),
    "command_node": (
        *_common(5.0),
        Parameter("execute", "integer", 8, "Rows of a chunk that are played at most.", 1, 1000),
        Parameter(
            "join",
            "string",
            "replace",
            "How a new chunk takes over.",
            choices=("replace", "append", "blend"),
        ),
        Parameter(
            "align",
            "string",
            "observation",
            "What row 0 belongs to: the observation, the arrival of the chunk, or that less the "
            "time in which rows were played since the observation.",
            choices=("observation", "arrival", "played"),
        ),
        Parameter(
            "max_action_age_ms",
            "double",
            0.0,
            "Older actions are replaced by the hold; 0 takes the contract's.",
            0.0,
            60000.0,
            live=True,
        ),
        Parameter(
            "deadline_ms",
            "double",
            0.0,
            "A tick has to end within this time; 0 for one period.",
            0.0,
            60000.0,
            live=True,
        ),
        Parameter(
            "limit_scale",
            "double",
            1.0,
            "Share of the contract's rate limits that is allowed; plans have none.",
            0.01,
            1.0,
            live=True,
        ),
        Parameter(
            "heartbeat_timeout_ms",
            "double",
            1000.0,
            "Without a sign of life of the policy for so long: hold; longer than the time "
            "between two of its heartbeats.",
            50.0,
            60000.0,
            live=True,
        ),
        _CLOCK_RATE,
    ),
    "overlay_node": (
        *_common(),
        Parameter("camera", "string", "", "Which camera; empty for the first of the contract."),
        Parameter("max_rate_hz", "double", 5.0, "Pictures per second.", 0.1, 60.0, live=True),
        Parameter("scale", "integer", 1, "Enlargement of the picture.", 1, 8, live=True),
    ),
    "replay_node": (
        *_common(),
        Parameter("bag", "string", "", "Folder of a rosbag2 recording (sqlite3 or MCAP)."),
        Parameter(
            "topics",
            "string",
            "contract",
            "What is played: the contract's observations and task, /clock and /tf; or all, "
            "commands too.",
            choices=("contract", "all"),
        ),
        Parameter("rate", "double", 1.0, "Recorded seconds per second.", 0.01, 100.0),
        Parameter("loop", "bool", False, "Begin again at the end; the clock jumps back."),
        Parameter("publish_clock", "bool", True, "Send /clock in the recording's time."),
    ),
    "sim_bridge": (
        *_common(),
        Parameter(
            "world",
            "string",
            "vla_prune_sim.drive.world:DriveWorld",
            "module:Class of a world.",
        ),
        Parameter("options", "string", "{}", "Its arguments, as YAML."),
        Parameter("suite", "string", "drive", "Suite of tasks."),
        Parameter("task", "integer", 0, "Task, or scene.", 0, 100000),
        Parameter("state", "integer", 0, "Initial state.", 0, 1000000),
        Parameter("seed", "integer", 0, "Of the episode.", 0, 2147483647),
        Parameter("driver", "string", "", "Replay: a reference driver moves it, commands do not."),
        Parameter("rate", "double", 1.0, "Simulated seconds per second.", 0.01, 100.0),
        Parameter("loop", "bool", True, "Begin the next episode at the end of one."),
    ),
}


def table(node: str) -> Mapping[str, Parameter]:
    """Name -> parameter of one node."""
    if node not in PARAMETERS:
        raise did_you_mean("parameters", "node", node, PARAMETERS)
    return {p.name: p for p in PARAMETERS[node]}


def check(node: str, name: str, value: Any, active: bool = False) -> None:
    """Raise one sentence if a node cannot take a value now.

    Args:
        node: name of the node.
        name: of the parameter.
        value: that is wished.
        active: whether the node is configured, so that only live parameters may change.

    Raises:
        ConfigError: unknown, of another type, out of range, or not live.
    """
    known = table(node)
    if name not in known:
        raise did_you_mean(node, "parameter", name, known)
    p = known[name]
    where = f"{node}: parameter {name!r}"
    if active and not p.live:
        raise ConfigError(f"{where} changes with a new configure alone; clean the node up first.")
    wanted = TYPES[p.type]
    fits = isinstance(value, int | float) if p.type == "double" else isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and p.type != "bool"):
        raise ConfigError(f"{where} is {value!r}; give a {p.type}.")
    if p.choices and value not in p.choices:
        raise did_you_mean(node, f"value of {name!r}", str(value), p.choices)
    numbers = value if isinstance(value, list) else [value]
    for bound, beyond in ((p.low, lambda v: v < p.low), (p.high, lambda v: v > p.high)):
        if bound is not None and any(not (v == v) or beyond(v) for v in numbers):
            raise ConfigError(f"{where} is {value:g}; its range is {p.range}.")


def check_given(node: str, given: Mapping[str, Any]) -> list[str]:
    """Look at a parameter file's values before they are declared, which ends in rclpy's traceback.

    Args:
        node: name of the node.
        given: name -> value of all that the file has for it, under wildcards others' too.

    Returns:
        Sentences about names that none of our nodes knows and ROS does not either; ROS ignores
        them.

    Raises:
        ConfigError: as :func:`check` does, and an integer for a double.
    """
    known, all_known = table(node), {p.name for kind in PARAMETERS.values() for p in kind}
    unknown = []
    for name, value in given.items():
        if name in known:
            check(node, name, value)
            numbers = value if isinstance(value, list) else [value]
            if known[name].type.startswith("double") and any(type(n) is int for n in numbers):
                raise ConfigError(
                    f"{node}: parameter {name!r} is {value!r}; write {_dotted(value)}."
                )
        elif name not in (*all_known, *ROS_OWN) and not name.startswith("qos_overrides."):
            unknown.append(str(did_you_mean(node, "parameter", name, known)))
    return unknown


def _dotted(value: Any) -> str:
    return str([float(n) for n in value] if isinstance(value, list) else float(value))


def check_all(node: str, values: Mapping[str, Any]) -> None:
    """Raise one sentence for the first value that a node cannot take.

    What a parameter file gives comes without :func:`check`: ROS looks at types and ranges alone.

    Raises:
        ConfigError: as :func:`check` does.
    """
    for name, value in values.items():
        check(node, name, value)


def apply(
    wished: Mapping[str, Any], now: Mapping[str, Any], change: Callable[[str, Any], Any]
) -> None:
    """Change all or nothing.

    Args:
        wished: name -> new value.
        now: name -> value in force, of those at least.
        change: takes a name and a value; raises :class:`VlaPruneError` to refuse it.

    Raises:
        VlaPruneError: one was refused; what was changed before it is as it was.
    """
    done: list[str] = []
    try:
        for name, value in wished.items():
            change(name, value)
            done.append(name)
    except VlaPruneError:
        for name in done:
            change(name, now[name])
        raise


def defaults(node: str) -> dict[str, Any]:
    """Name -> default of one node."""
    return {p.name: p.default for p in PARAMETERS[node]}


def markdown(node: str) -> str:
    """The table of one node, as it stands in the README of vla_prune_bringup."""
    lines = ["| parameter | type | default | range | live | what |", "|---|---|---|---|---|---|"]
    for p in PARAMETERS[node]:
        default = repr(p.default) if p.type == "string" else str(p.default).lower()
        live = "yes" if p.live else ""
        lines.append(
            f"| `{p.name}` | {p.type} | {default} | {p.range} | {live} | {p.description} |"
        )
    return "\n".join(lines)
