"""From parameters to the loops: everything a node's ``configure`` does, without ROS."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from vla_prune import config
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import ConfigError
from vla_prune.policy import attach
from vla_prune.runtime.clock import Clock
from vla_prune.tune.pilot import Pilot, read_controller
from vla_prune_ros.command_loop import CommandLoop
from vla_prune_ros.contract import Contract, load_contract
from vla_prune_ros.policy_loop import Buckets, PolicyLoop, Senses
from vla_prune_ros.split import PROJECTOR, Side, check_split, hashes_of
from vla_prune_ros.status import Health
from vla_prune_ros.token_loop import PrunerLoop, TokenPolicyLoop
from vla_prune_ros.tokens import Grid


@dataclass(frozen=True)
class Model:
    """A policy, attached at every bucket and warm.

    Attributes:
        adapter: the model family.
        policy: attached; one bucket for each keep ratio.
        keep: the keep ratios.
        recipe: as plain data.
        state_dim: numbers of the state that it takes; None for none.
        actions: dimensions of its actions.
        pilot: what picks the bucket of each call; None if ``keep_ratio`` alone does.
    """

    adapter: Any
    policy: Any
    keep: tuple[float, ...]
    recipe: Mapping[str, Any]
    state_dim: int | None
    actions: int
    pilot: Pilot | None = None

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The camera views."""
        return tuple(Grid(v.name, v.rows, v.cols) for v in self.adapter.layout.views)


def open_model(params: Mapping[str, Any], stack: ExitStack) -> Model:
    """Load a policy, attach the recipe at every bucket, and warm each up.

    Args:
        params: of the node; see :mod:`vla_prune_ros.params`.
        stack: closing it takes the recipe off.

    Raises:
        ConfigError: no policy is named, or a name is unknown.
    """
    if not params["policy"]:
        raise ConfigError(
            "parameter 'policy' is empty; name a file or one of configs/policy ('vla-prune list')."
        )
    pilot = _pilot(params)
    ladder = params["buckets"] if pilot is None else pilot.controller.config.buckets
    keep = tuple(dict.fromkeys(float(k) for k in ladder))
    if not keep or any(not 0 < k <= 1 for k in keep):
        raise ConfigError(f"parameter 'buckets' is {list(keep)}; give keep ratios in (0, 1].")
    adapter = build_adapter(params["policy"])
    pruners = [build_recipe(params["recipe"], k) for k in keep]
    stages = bool(params.get("time_stages", False))
    signals = pilot is not None and pilot.reads_signals
    policy = stack.enter_context(attach(pruners, adapter, stages, signals))
    example = adapter.example_observation(0)
    for bucket in range(len(keep)):
        state = policy.new_state()
        for _ in range(params["warmup_calls"]):
            chunk = policy.act_one(example, state, bucket)
    dim = None if example.state is None else len(example.state)
    recipe = config.load(params["recipe"], kind="recipe")
    return Model(adapter, policy, keep, recipe, dim, chunk.actions.shape[1], pilot)


def _pilot(params: Mapping[str, Any]) -> Pilot | None:
    """The run-time controller, if one is asked for."""
    path = params.get("controller", "")
    if not path:
        return None
    if params["input"] == "tokens":
        raise ConfigError(
            "parameter 'controller' needs input 'images': in the split form the pruner's "
            "keep_ratio says what crosses the wire; leave one of the two."
        )
    return Pilot(read_controller(f"parameter 'controller': {path}", config.load(path)))


def _fitting(params: Mapping[str, Any], model: Model) -> Contract:
    contract = load_contract(params["contract"])
    views, names = [grid.name for grid in model.grids], model.adapter.action_names
    contract.check_policy(views, model.state_dim, model.actions, names)
    return contract


def policy_loop(params: Mapping[str, Any], clock: Clock, model: Model) -> PolicyLoop:
    """The fused form."""
    contract = _fitting(params, model)
    seen = [grid.name for grid in model.grids]
    contract = replace(  # a camera that the policy does not see need not be waited for
        contract, sources=tuple(s for s in contract.sources if not s.camera or s.camera in seen)
    )
    senses = Senses(contract, clock, Health("policy_node"), params["instruction"])
    senses.watch.rate = params["clock_rate"]
    loop = PolicyLoop(
        senses,
        model.policy,
        Buckets(model.keep, params["keep_ratio"] if model.pilot is None else model.keep[0]),
        model.grids,
        params["max_rate_hz"],
        params["policy"],
        params["recipe"],
        model.pilot,
    )
    loop.set_deadline(params["deadline_ms"] / 1e3)
    return loop


def _side(model: Model) -> Side:
    check_split(model.adapter)
    pruners = model.policy.pruners
    return Side(model.adapter, pruners, hashes_of(model.adapter, model.recipe, pruners))


def pruner_loop(params: Mapping[str, Any], clock: Clock, model: Model) -> PrunerLoop:
    """The pruner's half of the split form; the state is the policy's matter."""
    contract = _fitting(params, model)
    seen = [grid.name for grid in model.grids]
    contract = replace(
        contract,
        sources=tuple(s for s in contract.sources if s.camera in seen or s.key == "task"),
    )
    senses = Senses(contract, clock, Health("pruner_node"), params["instruction"])
    senses.watch.rate = params["clock_rate"]
    buckets = Buckets(model.keep, params["keep_ratio"])
    side = _side(model)
    if not any(cut.site == PROJECTOR for pruner in side.pruners for cut in pruner.cuts):
        senses.health.notes.append(
            f"recipe {params['recipe']!r} cuts nothing at the projector, so all visual tokens go "
            "over the wire; take one that does, such as tri_level or divprune."
        )
    return PrunerLoop(senses, side, buckets, params["max_rate_hz"])


def refuse_in_split(name: str, value: Any) -> None:
    """Raise one sentence if a parameter has no meaning for the policy's half.

    Raises:
        ConfigError: it is set.
    """
    if name == "instruction" and value:
        raise ConfigError(
            "instruction: with input 'tokens' it is the pruner_node's; set it there."
        )
    if name == "deadline_ms" and value:
        raise ConfigError("deadline_ms: input 'tokens' has no controller to keep it; leave it 0.")


def token_loop(params: Mapping[str, Any], clock: Clock, model: Model) -> TokenPolicyLoop:
    """The policy's half of the split form.

    Raises:
        ConfigError: a parameter that is the pruner's, or the fused form's.
    """
    for name in ("instruction", "deadline_ms"):
        refuse_in_split(name, params[name])
    contract = _fitting(params, model)
    loop = TokenPolicyLoop(
        contract,
        clock,
        Health("policy_node"),
        _side(model),
        Buckets(model.keep, params["keep_ratio"]),
        (params["policy"], params["recipe"]),
        params["max_rate_hz"],
    )
    loop.watch.rate = params["clock_rate"]
    return loop


def command_loop(params: Mapping[str, Any], clock: Clock) -> CommandLoop:
    """The command node's."""
    contract = load_contract(params["contract"])
    loop = CommandLoop(
        contract,
        clock,
        Health("command_node"),
        params["execute"],
        params["join"],
        params["align"],
        params["max_action_age_ms"] / 1e3 or None,
        params["deadline_ms"] / 1e3 or None,
        params["heartbeat_timeout_ms"] / 1e3,
    )
    loop.set_limit_scale(params["limit_scale"])
    loop.watch.rate = params["clock_rate"]
    return loop
