"""Topic maps: the shipped ones are read, mistakes are named."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from vla_prune_ros import wire
from vla_prune_ros.contract import load_contract, read_contract
from vla_prune_ros.states import pick

from vla_prune import config
from vla_prune.errors import ConfigError
from vla_prune.runtime.hold import Brake

from .scene import contract, contract_data

PATH = {
    "publish": {"topic": "plan", "type": "nav_msgs/msg/Path"},
    "selector": {"names": ["dx", "dy"]},
}
SHIPPED = sorted(path.stem for path in (config.configs_folder() / "ros").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_contract_is_whole(name: str) -> None:
    made = load_contract(name)
    assert made.cameras
    assert made.sinks
    assert made.task is not None


def test_shipped_contracts_are_found() -> None:
    assert {"arm", "vehicle", "autoware", "libero"} <= set(SHIPPED)
    assert isinstance(load_contract("autoware").hold, Brake)  # through 'extends'


def test_what_is_read() -> None:
    made = contract()
    assert [source.camera for source in made.cameras] == ["image", "wrist"]
    assert made.states[0].names == tuple(f"position.j{i}" for i in range(5))
    assert made.cameras[0].max_age_s == 0.15
    assert made.cameras[0].qos.reliability == "best_effort"
    assert made.cameras[0].qos.depth == 1
    assert (made.rate_hz, made.max_action_age_s, made.names) == (20.0, 0.3, ("j0", "j1"))


def mistake(*path: Any, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(contract_data())
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (mistake("rate_hz", value=0), "rate_hz is 0; give commands per second"),
        (mistake("obervations", value=[]), "did you mean 'observations'"),
        (mistake("observations", value=[]), "names no camera"),
        (mistake("actions", value=[]), "actions is empty"),
        (mistake("observations", 0, "tpic", value="x"), "did you mean 'topic'"),
        (
            mistake("observations", 0, "type", value="sensor_msgs/msg/Imag"),
            "did you mean 'sensor_msgs/msg/Image'",
        ),
        (mistake("observations", 0, "key", value="video.front"), "write images.CAMERA or state"),
        (mistake("observations", 1, "key", value="images.image"), "'images.image' is given twice"),
        (mistake("observations", 0, "align", "stamp", value="heder"), "did you mean 'header'"),
        (mistake("observations", 0, "align", "drop", value="lst"), "did you mean 'last'"),
        (
            mistake("observations", 0, "align", "strategy", value="nearest"),
            "'hold' takes the newest",
        ),
        (mistake("observations", 0, "align", "max_age_ms", value=-1), "give milliseconds above 0"),
        (
            mistake("observations", 0, "qos", value={"reliability": "relable"}),
            "did you mean 'reliable'",
        ),
        (mistake("observations", 0, "qos", value={"dept": 2}), "did you mean 'depth'"),
        (mistake("observations", 0, "qos", value={"depth": 0}), "depth is 1 or more"),
        (mistake("observations", 2, "selector", value={}), "needs selector.names"),
        (mistake("actions", 0, "selector", "names", value=["a", "a"]), "has a name twice"),
        (
            mistake("actions", 0, "publish", "type", value="geometry_msgs/msg/Twist"),
            "did you mean 'geometry_msgs/msg/TwistStamped'",
        ),
        (
            mistake("actions", 0, "publish", "type", value="geometry_msgs/msg/TwistStamped"),
            r"actions\[0\]: selector.names: a twist has no 'j0'",
        ),
        (
            mistake("actions", 0, "publish", "type", value="nav_msgs/msg/Path"),
            r"actions\[0\]: selector.names: a path cannot be made of j0, j1",
        ),
        (
            mistake("actions", 0, value=PATH),
            "limits.rate holds from tick to tick, and a nav_msgs/msg/Path is sent as a whole",
        ),
        (
            mistake("observations", 1, value=contract_data()["observations"][2]),
            "two states are taken from 'joint_states'",
        ),
        (mistake("limits", "low", value=[-1]), "limits.low has 1 entries, the actions have 2"),
        (mistake("limits", "rates", value=[1, 1]), "did you mean 'rate'"),
        (mistake("hold", value="holt"), "did you mean 'hold'"),
        (
            mistake("hold", value={"name": "hold", "action": [0, 0, 0]}),
            "hold: its action has 3 numbers, the actions have 2 names",
        ),
        (
            mistake("hold", value={"name": "hold", "action": ["a", 0]}),
            "it takes a list of numbers or null",
        ),
        (
            mistake("hold", value={"name": "hold", "action": [2, 0]}),
            r"do not let its action \[2.0, 0.0\] through",
        ),
        (
            mistake("hold", value="brake"),
            "brake shortens the steps dx and dy, and the actions are j0",
        ),
        (
            mistake("observations", 2, "selector", "names", 0, value="positon.j0"),
            r"observations\[2\]: selector.names: a sensor_msgs/msg/JointState has no number "
            "'positon.j0'",
        ),
        (mistake("observations", 2, "selector", "names", value="position.j0"), "a list of names"),
        (mistake("observations", 2, "selector", "name", value=["j0"]), "did you mean 'names'"),
        (mistake("observations", 0, "topic", value="front/1/image raw"), "is no name for ROS"),
        (mistake("observations", 0, "image", value={"shape": [480]}), r"give \[height, width\]"),
        (mistake("observations", 0, "rate_hz", value="fast"), "rate_hz is 'fast'"),
        (mistake("observations", 0, "qos", value={"depth": "2"}), "qos .* cannot be"),
        (mistake("actions", 0, "publish", "topic", value="/joints/"), "publish: topic '/joints/'"),
        (mistake("limits", "low", value=-1), "limits.low is -1; give a list of numbers"),
        (mistake("limits", "low", value=[-1, "x"]), "give a list of numbers"),
        (mistake("tolerance_ms", value=-1), "tolerance_ms is -1; give 0 or more"),
        (mistake("tasks", 0, "type", value="std_msgs/msg/Int32"), "Known: std_msgs/msg/String"),
        (mistake("observations", 0, value="front"), "write a mapping"),
    ],
)
def test_mistakes_are_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_contract(data, "small.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("geometry_msgs/msg/TwistStamped", ["linear.x", "angular.z"]),
        ("nav_msgs/msg/Path", ["dx", "dy"]),
    ],
)
def test_a_hold_that_drives_on_is_refused(kind: str, names: list[str]) -> None:
    """A velocity or a step that is repeated is no standstill."""
    action = {"publish": {"topic": "move", "type": kind}, "selector": {"names": names}}
    moves = contract_data() | {"actions": [action], "limits": {}}
    for hold in ("hold", {"name": "continue_chunk", "then": "hold"}):
        with pytest.raises(ConfigError, match=f"a {kind} then moves the machine on"):
            read_contract(moves | {"hold": hold}, "small.yaml")
    read_contract(moves | {"hold": {"name": "hold", "action": [0, 0]}})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("nav_msgs/msg/Odometry", "pose.pose.orientation.yaw", "pose.position.x"),
        ("nav_msgs/msg/Odometry", "twist.covariance.35", "twist.covariance.36"),
        ("geometry_msgs/msg/TwistStamped", "twist.angular.z", "twist.angular.w"),
        ("geometry_msgs/msg/PoseStamped", "pose.position.z", "pose.position.yaw"),
        ("std_msgs/msg/Float64MultiArray", "data.12", "data.x"),
        ("std_msgs/msg/Float32MultiArray", "data.0", "values.0"),
        ("sensor_msgs/msg/JointState", "effort.arm/j.1", "joint1"),
    ],
)
def test_a_number_that_a_state_message_has_not_is_refused(kind: str, good: str, bad: str) -> None:
    wanted = (("type", kind), ("selector", {"names": [good]}))
    data = contract_data()
    data["observations"][2] |= dict(wanted)
    assert pick_one(kind, good) == 0.0
    assert read_contract(data).states[0].names == (good,)
    data["observations"][2]["selector"] = {"names": [bad]}
    with pytest.raises(ConfigError, match=f"a {kind} has no number '{bad}'"):
        read_contract(data)


def pick_one(kind: str, name: str) -> float:
    """Out of a real message of zeros."""
    fields = {"data": np.zeros(13)} if kind.endswith("Array") else {}
    if kind.endswith("JointState"):
        fields = {"name": [name.partition(".")[2]], name.partition(".")[0]: np.zeros(1)}
    return float(pick(wire.make(kind, fields), [name])[0])


def test_no_instruction_is_no_word() -> None:
    assert contract(instruction=None).instruction == ""


def test_a_missing_key_is_named_with_its_place() -> None:
    data = contract_data()
    del data["observations"][1]["topic"]
    with pytest.raises(ConfigError, match=r"small.yaml: observations\[1\]: field 'topic' is"):
        read_contract(data, "small.yaml")


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ((["image", "wrst"], 5, 2), "did you mean 'wrist'"),
        ((["image"], 8, 2), "the state has 5 numbers, the policy takes 8"),
        ((["image"], 5, 7), "actions has 2 names, the policy's actions have 7"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(fit: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contract().check_policy(*fit)


def test_a_policy_that_says_something_else_than_the_machine_takes_is_refused() -> None:
    """Steps of an end effector are as many numbers as an arm has joints."""
    steps = build_names("pocket_libero_object")
    with pytest.raises(ConfigError, match=r"takes joint1, .*, and the policy says dx, dy, dz"):
        load_contract("arm").check_policy(["agentview", "wrist"], 8, 7, steps)
    load_contract("libero").check_policy(["agentview", "wrist"], 8, 7, steps)
    load_contract("vehicle").check_policy(["CAM_FRONT"], 10, 2, build_names("pocket_drive"))


def build_names(policy: str) -> list[str]:
    return config.load(policy, kind="policy")["action_names"]


def test_a_policy_that_fits_is_taken() -> None:
    contract().check_policy(["wrist", "image"], 5, 2)
    contract().check_policy(["image"], None, 2)  # it takes no state
