"""What a contract cannot say: told when it is read, not at the first message or fault."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vla_prune.errors import ConfigError
from vla_prune.runtime.hold import Brake, ContinueChunk, Hold, HoldRule
from vla_prune.runtime.limits import Limits
from vla_prune_ros.commands import PLAN, PLANS

POSE = r"(position\.[xyz]|orientation\.([xyzw]|yaw))"
TWIST = r"(linear|angular)\.[xyz]"
COVARIANCE = r"covariance\.([12]?\d|3[0-5])"
# state type -> the numbers that it has, and one for messages
NUMBERS = {
    "sensor_msgs/msg/JointState": (r"(position|velocity|effort)\..+", "position.joint1"),
    "nav_msgs/msg/Odometry": (
        rf"pose\.(pose\.{POSE}|{COVARIANCE})|twist\.(twist\.{TWIST}|{COVARIANCE})",
        "twist.twist.linear.x",
    ),
    "geometry_msgs/msg/TwistStamped": (rf"twist\.{TWIST}", "twist.linear.x"),
    "geometry_msgs/msg/PoseStamped": (rf"pose\.{POSE}", "pose.orientation.yaw"),
    "std_msgs/msg/Float64MultiArray": (r"data\.\d+", "data.0"),
    "std_msgs/msg/Float32MultiArray": (r"data\.\d+", "data.0"),
}
TOPIC = re.compile(r"(~/|/)?[A-Za-z_{][\w{}]*(/[A-Za-z_{][\w{}]*)*")


def check_topic(where: str, topic: str) -> None:
    """Raise one sentence if ROS takes no topic of this name.

    Raises:
        ConfigError: it does not.
    """
    if TOPIC.fullmatch(topic) is None:
        raise ConfigError(
            f"{where}: topic {topic!r} is no name for ROS; write words of letters, digits and _ "
            "with / between them, no digit first."
        )


def check_state(where: str, kind: str, names: Sequence[str]) -> None:
    """Raise one sentence if a state message of type ``kind`` cannot have a number.

    Which joints there are, and how long an array is, its messages alone can say.

    Raises:
        ConfigError: the first name that leads to none.
    """
    pattern, example = NUMBERS[kind]
    for name in names:
        if re.fullmatch(pattern, name) is None:
            raise ConfigError(
                f"{where}: selector.names: a {kind} has no number {name!r}; name one such as "
                f"{example}."
            )


def check_hold(
    where: str, rule: HoldRule, kinds: Sequence[str], names: Sequence[str], limits: Limits
) -> None:
    """Raise one sentence if a rule would not bring this machine to rest.

    Args:
        where: for messages.
        rule: of the contract.
        kinds: types of the commands.
        names: of the action's dimensions.
        limits: of the action's dimensions.

    Raises:
        ConfigError: another number of dimensions than the actions have, a rest that the limits
            do not let through, or a machine that it keeps moving.
    """
    while isinstance(rule, ContinueChunk):
        rule = rule.then
    steps = tuple(names) == PLAN[1]
    if isinstance(rule, Brake) and not steps:
        raise ConfigError(
            f"{where}: brake shortens the steps dx and dy, and the actions are "
            f"{', '.join(names)}; take hold."
        )
    if isinstance(rule, Hold) and rule.action is None:
        moving = [k for k in kinds if k.endswith("/TwistStamped") or (steps and k in PLANS)]
        if moving:
            raise ConfigError(
                f"{where}: hold without an action repeats the last one, and a {moving[0]} then "
                "moves the machine on; take brake for steps, or hold with the action that moves "
                "nothing."
            )
        return
    rest = np.zeros(rule.size) if isinstance(rule, Brake) else np.array(rule.action)
    if len(rest) != len(names):
        raise ConfigError(
            f"{where}: its action has {len(rest)} numbers, the actions have {len(names)} names; "
            "give one for each."
        )
    if limits.limit(rest).changed.any():
        raise ConfigError(
            f"{where}: limits.low and limits.high do not let its action {rest.tolist()} through, "
            "so the machine would never rest; widen them."
        )
