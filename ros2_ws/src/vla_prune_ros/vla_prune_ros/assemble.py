"""From parameters to the loops: everything a node's ``configure`` does, without ROS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vla_prune import config
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import ConfigError, VlaPruneError
from vla_prune.policy import VLAPolicy, attach
from vla_prune.runtime.clock import Clock
from vla_prune.tune.controller import SCORE_SIGNALS
from vla_prune.tune.pilot import Pilot, read_controller
from vla_prune.types import ActionChunk
from vla_prune_ros.command_loop import CommandLoop
from vla_prune_ros.commands import PLANS
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


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors of the body name the parameter that they come from."""
    try:
        yield
    except VlaPruneError as error:
        raise type(error)(f"parameter {name!r}: {error}") from error


def open_model(params: Mapping[str, Any], stack: ExitStack) -> Model:
    """Load a policy, attach the recipe at every bucket, and warm each up.

    What can be known without the weights is looked at before they are loaded.

    Args:
        params: of the node; see :mod:`vla_prune_ros.params`.
        stack: closing it takes the recipe off.

    Raises:
        VlaPruneError: no policy is named, a name is unknown, or what is named does not fit
            together; the sentence names the parameter.
    """
    if not params["policy"]:
        raise ConfigError(
            "parameter 'policy' is empty; name a file or one of configs/policy ('vla-prune list')."
        )
    with _about("contract"):
        load_contract(params["contract"])
    pilot = _pilot(params)
    ladder = params["buckets"] if pilot is None else pilot.controller.config.buckets
    keep = tuple(dict.fromkeys(float(k) for k in ladder))
    if not keep or any(not 0 < k <= 1 for k in keep):
        raise ConfigError(f"parameter 'buckets' is {list(keep)}; give keep ratios in (0, 1].")
    if pilot is None:
        with _about("keep_ratio"):
            Buckets(keep, params["keep_ratio"])
    with _about("recipe"):
        pruners = [build_recipe(params["recipe"], k) for k in keep]
        recipe = config.load(params["recipe"], kind="recipe")
    with _about("policy"):
        adapter = build_adapter(params["policy"])
    stages = bool(params.get("time_stages", False))
    signals = pilot is not None and pilot.reads_signals
    with _about("recipe"):
        policy = stack.enter_context(attach(pruners, adapter, stages, signals))
        for bucket in range(len(keep)):
            chunk = _warm(policy, bucket, params["warmup_calls"])
    if pilot is not None:
        _check_pilot(pilot, chunk)
    example = adapter.example_observation(0)
    dim = None if example.state is None else len(example.state)
    return Model(adapter, policy, keep, recipe, dim, chunk.actions.shape[1], pilot)


def _warm(policy: VLAPolicy, bucket: int, calls: int) -> ActionChunk:
    """The last chunk of ``calls`` calls that cut, after those that run dense for a history.

    So whatever a selector or a budget cannot do shows here.

    Raises:
        ConfigError: no call ever cuts.
    """
    example, state = policy.adapter.example_observation(0), policy.new_state()
    pruner, dense = policy.pruners[bucket], 0
    while calls:
        if pruner.warming_up(state):
            dense += 1
            if dense > pruner.history.window + 1:  # a refresh may follow on the warm-up
                raise ConfigError(
                    f"{pruner.name!r} runs dense until its history is full, and "
                    f"{policy.adapter.name} fills none; take a recipe without history.warmup."
                )
        else:
            calls, dense = calls - 1, 0
        chunk = policy.act_one(example, state, bucket)
    return chunk


def _pilot(params: Mapping[str, Any]) -> Pilot | None:
    """The run-time controller, if one is asked for, at its deadline."""
    path, deadline_ms = params.get("controller", ""), params.get("deadline_ms", 0.0)
    split = params.get("input") == "tokens"
    for name in ("instruction", "deadline_ms") if split else ():
        refuse_in_split(name, params[name])
    if not path and deadline_ms:
        raise ConfigError(
            "parameter 'deadline_ms': there is no controller to keep it; name one, or leave it 0."
        )
    if not path:
        return None
    if split:
        raise ConfigError(
            "parameter 'controller' needs input 'images': in the split form the pruner's "
            "keep_ratio says what crosses the wire; leave one of the two."
        )
    with _about("controller"):
        pilot = Pilot(read_controller(path, config.load(path)))
    with _about("deadline_ms"):
        pilot.set_period(deadline_ms / 1e3)
    return pilot


def _check_pilot(pilot: Pilot, chunk: ActionChunk) -> None:
    """Raise one sentence if a controller reads what the policy's chunks do not have."""
    told, dimensions = pilot.controller.config, chunk.actions.shape[1]
    for number in told.motion_numbers or ():
        if not 0 <= number < dimensions:
            raise ConfigError(
                f"parameter 'controller': motion_numbers names {number}, the policy's actions "
                f"have 0 to {dimensions - 1}; take the tuned.yaml of this policy."
            )
    for name in SCORE_SIGNALS:
        if getattr(told, name) is not None and name not in chunk.signals:
            raise ConfigError(
                f"parameter 'controller': it reads {name}, which recipe and policy do not tell; "
                "take the recipe.yaml that was tuned with it."
            )


def _fitting(params: Mapping[str, Any], model: Model) -> Contract:
    """The contract, without the cameras that the policy does not see: none is waited for."""
    views, names = [grid.name for grid in model.grids], model.adapter.action_names
    with _about("contract"):
        contract = load_contract(params["contract"])
        contract.check_policy(views, model.state_dim, model.actions, names)
    seen = tuple(s for s in contract.sources if not s.camera or s.camera in views)
    return replace(contract, sources=seen)


def policy_loop(params: Mapping[str, Any], clock: Clock, model: Model) -> PolicyLoop:
    """The fused form."""
    contract = _fitting(params, model)
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
    contract = replace(contract, sources=tuple(s for s in contract.sources if s.key != "state"))
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
    """The policy's half of the split form."""
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
    """The command node's.

    Raises:
        VlaPruneError: the contract is not whole, or ``join`` or ``align`` does not fit it.
    """
    with _about("contract"):
        contract = load_contract(params["contract"])
    _check_plan(contract, params["join"], params["align"])
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


def _check_plan(contract: Contract, join: str, align: str) -> None:
    """Raise one sentence if plans, which are sent as a whole, cannot be played so.

    Raises:
        ConfigError: they would be stamped with another pose than theirs, or would have to blend.
    """
    plan = next((s.type for s in contract.sinks if s.type in PLANS), None)
    if plan is not None and align == "arrival":
        raise ConfigError(
            f"parameter 'align' is 'arrival', and {contract.where} sends a {plan}, whose places "
            "are seen from where the picture was taken; take 'observation'."
        )
    if plan is not None and join == "blend":
        raise ConfigError(
            f"parameter 'join' is 'blend', and {contract.where} sends a {plan}, of which a reader "
            "gets each as a whole; take 'replace' or 'append'."
        )
