"""Every parameter of every node has a name, a type, a default, a range and a sentence."""

from __future__ import annotations

import ast
import re

import pytest
from vla_prune_ros import params
from vla_prune_ros.params import PARAMETERS, TYPES, check, defaults, markdown

from vla_prune.errors import ConfigError

from .conftest import WORKSPACE

NODES = list(PARAMETERS)
ROWS = [(node, p) for node in NODES for p in PARAMETERS[node]]
BRINGUP = WORKSPACE / "vla_prune_bringup"


def test_every_node_has_a_table() -> None:
    assert set(NODES) == {
        "pruner_node", "policy_node", "command_node", "overlay_node", "replay_node", "sim_bridge",
    }  # fmt: skip


@pytest.mark.parametrize(("node", "p"), ROWS, ids=lambda v: getattr(v, "name", v))
def test_a_row_is_whole(node: str, p: params.Parameter) -> None:
    assert p.type in TYPES
    assert p.description.endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9_]*", p.name)
    check(node, p.name, p.default)
    if p.type in ("double", "integer"):
        assert p.low is not None
        assert p.high is not None
        with pytest.raises(ConfigError, match="its range is"):
            check(node, p.name, type(p.default)(p.high + 1))
    assert p.name in {q.name for q in PARAMETERS[node]}


@pytest.mark.parametrize("node", NODES)
def test_names_are_given_once(node: str) -> None:
    names = [p.name for p in PARAMETERS[node]]
    assert len(set(names)) == len(names)
    assert {"contract", "heartbeat_hz"} <= set(names)


# The functions of assemble that each node calls.
ASSEMBLED = {
    "pruner_node": ("open_model", "_fitting", "pruner_loop"),
    "policy_node": ("open_model", "_pilot", "_fitting", "policy_loop", "token_loop"),
    "command_node": ("command_loop",),
}


def used(tree: ast.AST) -> set[str]:
    """Every ``values["name"]`` or ``params["name"]``, and ``params.get("name")``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            asked, name = node.value, node.slice.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            asked, name = node.func.value, getattr(node.args[0], "value", None)
        else:
            continue
        if isinstance(asked, ast.Name) and asked.id in ("values", "params"):
            found.add(name)
    return found


@pytest.mark.parametrize("node", NODES)
def test_every_parameter_is_used_by_its_node_and_every_use_is_in_its_table(node: str) -> None:
    folder = WORKSPACE / "vla_prune_ros" / "vla_prune_ros"
    bridge = WORKSPACE / "vla_prune_sim_bridge" / "vla_prune_sim_bridge" / "sim_bridge.py"
    path = bridge if node == "sim_bridge" else folder / f"{node}.py"
    asked = used(ast.parse(path.read_text(encoding="utf-8"))) | {"heartbeat_hz"}
    whole = ast.parse((folder / "assemble.py").read_text(encoding="utf-8"))
    for part in whole.body:
        if getattr(part, "name", "") in ASSEMBLED.get(node, ()):
            asked |= used(part)
    optional = {"time_stages", "controller"}  # open_model asks for them where a node has them
    table = {p.name for p in PARAMETERS[node]}
    assert asked - (optional - table) == table


@pytest.mark.parametrize(
    ("node", "name", "value", "message"),
    [
        ("policy_node", "keep_ration", 0.5, "did you mean 'keep_ratio'"),
        ("policy_nod", "keep_ratio", 0.5, "did you mean 'policy_node'"),
        ("policy_node", "keep_ratio", 0.0, "its range is 0.001 .. 1"),
        ("policy_node", "keep_ratio", float("nan"), "its range is"),
        ("policy_node", "keep_ratio", "much", "give a double"),
        ("policy_node", "input", "image", "did you mean 'images'"),
        ("policy_node", "warmup_calls", True, "give a integer"),
        ("command_node", "execute", 0, "its range is 1 .. 1000"),
    ],
)
def test_values_that_cannot_be_are_refused(
    node: str, name: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(node, name, value)


def test_what_a_parameter_file_says_is_looked_at_before_a_node_configures() -> None:
    """ROS checks types and ranges alone: an input 'token' was 'images', topics 'al' were all."""
    params.check_all("policy_node", defaults("policy_node"))
    for node, name in (("policy_node", "input"), ("replay_node", "topics")):
        with pytest.raises(ConfigError, match=f"value of '{name}' 'x' is unknown"):
            params.check_all(node, defaults(node) | {name: "x"})
    path = WORKSPACE / "vla_prune_ros" / "vla_prune_ros" / "node.py"
    text = ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
    checked = "params.check_all(self.kind, values)\n            self.configure(values)"
    assert checked in text


def test_a_parameter_file_is_looked_at_before_ros_ends_in_a_traceback() -> None:
    given = {"keep_ratio": 0.5, "buckets": [1.0, 0.5], "camera": "front", "use_sim_time": True}
    given |= {"qos_overrides./a.subscription.depth": 2}  # what others know comes by a wildcard
    assert params.check_given("policy_node", given) == []
    [told] = params.check_given("policy_node", {"keep_ratoi": 0.5})
    assert "policy_node: parameter 'keep_ratoi' is unknown; did you mean 'keep_ratio'?" in told
    for wrong, words in (
        ({"keep_ratio": "much"}, "parameter 'keep_ratio' is 'much'; give a double."),
        ({"keep_ratio": 7.5}, "parameter 'keep_ratio' is 7.5; its range is 0.001 .. 1."),
        ({"keep_ratio": 1}, "parameter 'keep_ratio' is 1; write 1.0."),
        ({"buckets": [1, 0.5]}, "parameter 'buckets' is [1, 0.5]; write [1.0, 0.5]."),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"policy_node: {words}")):
            params.check_given("policy_node", wrong)


def test_only_live_parameters_change_while_a_node_runs() -> None:
    check("policy_node", "keep_ratio", 0.5, active=True)
    check("command_node", "deadline_ms", 40.0, active=True)
    check("command_node", "limit_scale", 0.5, active=True)
    with pytest.raises(ConfigError, match="new configure alone"):
        check("policy_node", "recipe", "dense", active=True)


def test_of_several_changes_all_happen_or_none() -> None:
    running = {"keep_ratio": 1.0, "max_rate_hz": 30.0}

    def change(name: str, value: float) -> None:
        if value < 0:
            raise ConfigError("no.")
        running[name] = value

    params.apply({"keep_ratio": 0.5, "max_rate_hz": 20.0}, dict(running), change)
    assert running == {"keep_ratio": 0.5, "max_rate_hz": 20.0}
    with pytest.raises(ConfigError, match=r"no\."):
        params.apply({"keep_ratio": 0.25, "max_rate_hz": -1.0}, dict(running), change)
    assert running == {"keep_ratio": 0.5, "max_rate_hz": 20.0}


def test_defaults_are_complete() -> None:
    assert set(defaults("policy_node")) == {p.name for p in PARAMETERS["policy_node"]}


@pytest.mark.parametrize("node", NODES)
def test_the_readme_shows_the_table_as_it_is(node: str) -> None:
    readme = (BRINGUP / "README.md").read_text(encoding="utf-8")
    assert markdown(node) in readme
