"""A model family and a recipe become a policy: observations in, action chunks out.

Knows neither the model (that is the adapter) nor the method (that is the pruner). Example::

    with attach(pruner, adapter) as policy:
        states = [policy.new_state()]
        [chunk] = policy.act([observation], states)

Several budgets of one recipe can be attached at once, and each call names the one that it runs at;
they share one history, so a budget may change from call to call::

    ladder = [build_recipe("dual_level", keep) for keep in (1.0, 0.5, 0.25)]
    with attach(ladder, adapter) as policy:
        chunk = policy.act_one(observation, state, bucket=2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import torch

from vla_prune.adapters.base import Adapter
from vla_prune.clock import StageClock
from vla_prune.errors import ActionError, ConfigError, ShapeError, UnsupportedError
from vla_prune.pruner import Cut, Pruner
from vla_prune.recon.bind import bind
from vla_prune.scorers import SemanticScorer
from vla_prune.scorers.base import Scorer
from vla_prune.types import ActionChunk, Observation, PolicyState

_ATTACHED = "_vla_prune_recipe"  # marks an adapter that carries a pruner


class VLAPolicy:
    """A :class:`~vla_prune.types.Policy` over one adapter; made by :func:`attach`.

    Args:
        adapter: the model family.
        pruner: the recipe, already attached; or several, one a bucket.
        time_stages: measure stage times at every call; each call then waits for the device.
        signals: also say how sure the scores were; a call that keeps all tokens scores them, too.
    """

    def __init__(
        self,
        adapter: Adapter,
        pruner: Pruner | Sequence[Pruner],
        time_stages: bool = False,
        signals: bool = False,
    ) -> None:
        self.adapter = adapter
        self.pruners = (pruner,) if isinstance(pruner, Pruner) else tuple(pruner)
        self.time_stages, self.signals = time_stages, signals

    def new_state(self) -> PolicyState:
        """A state that remembers nothing."""
        return PolicyState()

    def act_one(
        self, observation: Observation, state: PolicyState, bucket: int = 0
    ) -> ActionChunk:
        """:meth:`act` for one robot."""
        return self.act([observation], [state], bucket)[0]

    def act(
        self, observations: Sequence[Observation], states: Sequence[PolicyState], bucket: int = 0
    ) -> list[ActionChunk]:
        """One chunk for each observation; states are updated in place.

        States that still warm up (dense) and states that do not run as two batches.

        Args:
            observations: what each robot knows.
            states: what the policy remembers of each.
            bucket: which of the attached pruners this call runs at.

        Raises:
            ShapeError: lists of different length, one state twice, bad images, or scores not
                finite; states are then as they were before the call.
            ConfigError: no such bucket.
            ActionError: some observations got no action (``rows`` says which); likewise. Calling
                again without them gives the others theirs.
        """
        if len(observations) != len(states):
            raise ShapeError(
                f"act: {len(observations)} observations but {len(states)} states; "
                "give one state each."
            )
        if len({id(state) for state in states}) != len(states):
            raise ShapeError(
                "act: one state is given twice; every robot or environment owns its own."
            )
        if not 0 <= bucket < len(self.pruners):
            raise ConfigError(
                f"act: bucket {bucket} is not attached; choose 0 to {len(self.pruners) - 1}."
            )
        pruner = self.pruners[bucket]
        fresh = [_renewed(o, s) for o, s in zip(observations, states, strict=True)]
        chunks: list[ActionChunk | None] = [None] * len(states)
        # Sorted before anything runs: a call may end its state's warm-up.
        warming = [pruner.warming_up(state) for state, _ in fresh]
        for dense in (True, False):
            group = [i for i, cold in enumerate(warming) if cold == dense]
            if group:
                try:
                    made = self._run(
                        pruner, [observations[i] for i in group], [fresh[i][0] for i in group]
                    )
                except ActionError as error:
                    raise ActionError(str(error), [group[row] for row in error.rows]) from error
                for i, chunk in zip(group, made, strict=True):
                    chunks[i] = replace(chunk, notes=fresh[i][1])
        for state, (new, _) in zip(states, fresh, strict=True):
            state.history, state.instruction, state.tick = new.history, new.instruction, new.tick
        return chunks

    def _run(
        self, pruner: Pruner, observations: list[Observation], states: list[PolicyState]
    ) -> list[ActionChunk]:
        clock = StageClock(self.time_stages, self.adapter.device)
        call = pruner.begin(states, self.adapter.layout, self.adapter.device, clock, self.signals)
        with torch.inference_mode():
            actions = self.adapter.act(observations, call).float().cpu().numpy()
        call.finish(states)
        for state in states:
            state.tick += 1
        kept = {site: index.cpu().numpy() for site, index in call.kept.items()}
        signals = {name: value.cpu().numpy() for name, value in (call.signals or {}).items()}
        stages = clock.milliseconds()
        return [
            ActionChunk(
                np.ascontiguousarray(actions[row]),
                self.adapter.dt_s,
                observation.stamp_s,
                {site: index[row] for site, index in kept.items()},
                stages,
                signals={name: float(value[row]) for name, value in signals.items()},
            )
            for row, observation in enumerate(observations)
        ]


@contextmanager
def attach(
    pruner: Pruner | Sequence[Pruner],
    adapter: Adapter,
    time_stages: bool = False,
    signals: bool = False,
) -> Iterator[VLAPolicy]:
    """Attach a recipe to a model for the body; afterwards, also on exceptions, it is plain again.

    Args:
        pruner: the recipe; or several that share a history, such as one at several budgets.
        adapter: the model family.
        time_stages: measure stage times at every call.
        signals: also say how sure the scores were (:attr:`ActionChunk.signals`).

    Raises:
        UnsupportedError: the model already carries a pruner, or cannot serve the recipe.
        ConfigError: no pruner, or pruners that remember different things.
    """
    policy = VLAPolicy(adapter, pruner, time_stages, signals)
    _check_buckets(policy.pruners)
    carried = getattr(adapter, _ATTACHED, None)
    if carried is not None:
        raise UnsupportedError(
            f"{adapter.name} already carries the recipe {carried!r}; "
            "leave its 'with attach(...)' first."
        )
    policy.pruners = tuple(_of_policy(each, adapter) for each in policy.pruners)
    for each in policy.pruners:
        each.check(adapter.name, adapter.sites(), adapter.layout)
    policy.pruners = bind(policy.pruners, adapter)
    with ExitStack() as stack:
        setattr(adapter, _ATTACHED, policy.pruners[0].name)
        stack.callback(delattr, adapter, _ATTACHED)
        adapter.attach(stack)
        yield policy


def _of_policy(pruner: Pruner, adapter: Adapter) -> Pruner:
    """The recipe with the layer that only the policy's config knows, where it is not cut off."""
    layer = getattr(adapter, "prompt_layer", None)

    def settled(scorer: Scorer, cut: Cut) -> Scorer:
        if not isinstance(scorer, SemanticScorer):
            return scorer
        return scorer.of_policy(layer if layer is not None and layer < cut.layer else None)

    cuts = tuple(
        replace(cut, scorers=tuple(settled(scorer, cut) for scorer in cut.scorers))
        for cut in pruner.cuts
    )
    return replace(pruner, cuts=cuts)


def _check_buckets(pruners: Sequence[Pruner]) -> None:
    """Pruners that take turns must remember the same, or a history would have holes."""
    if not pruners:
        raise ConfigError("attach: no pruner is given; give one, or one for each bucket.")
    for pruner in pruners[1:]:
        if pruner.history != pruners[0].history:
            raise ConfigError(
                f"attach: {pruners[0].name!r} and {pruner.name!r} remember different things, so "
                "they cannot take turns; use one recipe at several budgets, and at keep_ratio 1.0 "
                "in place of dense."
            )


def _renewed(observation: Observation, state: PolicyState) -> tuple[PolicyState, tuple[str, ...]]:
    """A copy of the state to work on; without history if the instruction changed."""
    copy = PolicyState(
        state.tick,
        observation.instruction,
        {k: list(v) for k, v in state.history.items()},
        state.draw,
    )
    if state.instruction is None or state.instruction == observation.instruction:
        return copy, ()
    copy.history = {}
    note = (
        f"the instruction changed from {state.instruction!r} to {observation.instruction!r}; "
        "the action history was cleared."
    )
    return copy, (note,)
