"""One policy in two processes: towers and the cut at the projector here, the decoder there.

The pruner calls an adapter's ``see``, the policy its ``act_on``; together they are its ``act``.
What the actions looked at goes back as scores, and becomes the pruner's action history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vla_prune.errors import UnsupportedError
from vla_prune.pruner import ACTION, PruneCall, Pruner
from vla_prune.scorers.foreground import ForegroundScorer
from vla_prune.types import ActionChunk, Observation, PolicyState
from vla_prune_ros.tokens import (
    Grid,
    Hashes,
    Origin,
    Scores,
    Tokens,
    fingerprint,
    recipe_hash,
)

PROJECTOR = "projector"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class SplitAdapter(Protocol):
    """What a model family offers so that its policy can be split."""

    def see(
        self, observations: Sequence[Observation], call: PruneCall
    ) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
        """Towers, projector, its cut: tokens ``[B, K, D]``, indices ``[B, K]``, counts a view."""
        ...

    def act_on(
        self,
        seen: tuple[Tensor, Tensor, tuple[int, ...] | None],
        observations: Sequence[Observation],
        call: PruneCall,
    ) -> Tensor:
        """The rest: ``[B, H, A]`` actions. Images of the observations are not looked at."""
        ...


def check_split(adapter: Any) -> None:
    """Raise one sentence if a model family cannot be split.

    Raises:
        UnsupportedError: it lacks ``see`` or ``act_on``.
    """
    if not (hasattr(adapter, "see") and hasattr(adapter, "act_on")):
        raise UnsupportedError(
            f"{adapter.name} cannot be split over two nodes yet; use the fused form "
            "(policy_node with input: images)."
        )


@dataclass(frozen=True)
class Side:
    """One half of a split policy.

    Attributes:
        adapter: the model; a half of it would do.
        pruners: the recipe, one for each bucket.
        hashes: what the other half must share.
    """

    adapter: Any
    pruners: Sequence[Pruner]
    hashes: Hashes


def see(
    side: Side, observation: Observation, origin: Origin, state: PolicyState, bucket: int = 0
) -> Tokens:
    """The pruner's half of a call; its state's tick goes on."""
    adapter = side.adapter
    state.instruction, changed = (
        observation.instruction,
        (state.instruction is not None and state.instruction != observation.instruction),
    )
    if changed:
        state.history = {}
    call = side.pruners[bucket].begin([state], adapter.layout, adapter.device)
    with torch.inference_mode():
        visual, index, _ = adapter.see([observation], call)
    call.finish([state])
    state.tick += 1
    grids = tuple(Grid(v.name, v.rows, v.cols, observation.stamp_s) for v in adapter.layout.views)
    kept = visual[0].detach().cpu().contiguous()
    name = next(n for n, dtype in DTYPES.items() if dtype == kept.dtype)
    return Tokens(
        origin,
        observation.instruction,
        name,
        kept.view(torch.uint8).reshape(len(kept), -1).numpy(),
        index[0].cpu().numpy(),
        grids,
    )


def act(
    side: Side,
    tokens: Tokens,
    state_vector: np.ndarray | None,
    state: PolicyState,
    bucket: int = 0,
) -> tuple[ActionChunk, Scores | None]:
    """The policy's half of a call; its state is updated, the scores are for the pruner."""
    adapter = side.adapter
    notes: tuple[str, ...] = ()
    if state.instruction is not None and state.instruction != tokens.instruction:
        state.history = {}
        notes = ("the instruction changed; the action history was cleared.",)
    state.instruction = tokens.instruction
    whole = side.pruners[bucket]
    rest = replace(whole, cuts=tuple(cut for cut in whole.cuts if cut.site != PROJECTOR))
    call = rest.begin([state], adapter.layout, adapter.device)
    observation = Observation({}, tokens.instruction, state_vector, tokens.origin.stamp_s)
    with torch.inference_mode():
        actions = adapter.act_on(_tensors(tokens, adapter), [observation], call)
        actions = actions[0].float().cpu().numpy()
    call.finish([state])
    state.tick += 1
    kept = {} if len(rest.cuts) == len(whole.cuts) else {PROJECTOR: tokens.index}
    kept |= {site: index[0].cpu().numpy() for site, index in call.kept.items()}
    chunk = ActionChunk(
        np.ascontiguousarray(actions), adapter.dt_s, tokens.origin.stamp_s, kept, notes=notes
    )
    return chunk, _scores(state, tokens.origin, adapter.layout.total)


def remember(side: Side, scores: Scores, state: PolicyState) -> None:
    """Put scores that came back into the pruner's action history."""
    history = side.pruners[0].history
    if history is None:
        return
    values = torch.zeros(scores.tokens, device=side.adapter.device)
    observed = torch.zeros(scores.tokens, dtype=torch.bool, device=side.adapter.device)
    index = torch.from_numpy(scores.index).to(side.adapter.device)
    values[index] = torch.from_numpy(np.array(scores.values)).to(values)
    observed[index] = True
    entries = state.history.setdefault(ACTION, [])
    entries.append((values, observed))
    del entries[: -history.window]


def _scores(state: PolicyState, origin: Origin, total: int) -> Scores | None:
    entries = state.history.get(ACTION)
    if not entries:
        return None
    values, observed = (part.cpu().numpy() for part in entries[-1])
    index = np.flatnonzero(observed)
    return Scores(origin, index, values[index], total)


def _tensors(tokens: Tokens, adapter: Any) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Tokens and indices as a batch of one, and how many each view has."""
    raw = torch.from_numpy(np.array(tokens.features))
    visual = raw.view(DTYPES[tokens.dtype])[None].to(adapter.device)
    index = torch.from_numpy(tokens.index)[None].to(adapter.device)
    edges = np.cumsum([0, *adapter.layout.sizes])
    counts = np.histogram(tokens.index, edges)[0]
    return visual, index, tuple(int(n) for n in counts)


def hashes_of(adapter: Any, recipe: Mapping[str, Any], pruners: Sequence[Pruner] = ()) -> Hashes:
    """What both halves must share, from the weights that are loaded and the recipe's file.

    Args:
        adapter: the model.
        recipe: as plain data.
        pruners: attached, so that their ``foreground`` scorers hold the reconstructor.
    """
    model = getattr(adapter, "model", adapter)
    seen = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(("language_model", "llm", "lm_head"))
    }
    return Hashes(fingerprint(_bytes(seen)), _reconstructor_hash(pruners), recipe_hash(recipe))


def _reconstructor_hash(pruners: Sequence[Pruner]) -> str:
    """Of the networks of all ``foreground`` scorers; empty without one."""
    scorers = [s for pruner in pruners for cut in pruner.cuts for s in cut.scorers]
    networks = [s.network for s in scorers if isinstance(s, ForegroundScorer)]
    parts: list[bytes | str] = []
    for network in dict.fromkeys(n for n in networks if isinstance(n, torch.nn.Module)):
        # As on an accelerator: there it is loaded in bfloat16, on a CPU in float32.
        half = {n: v.to(torch.bfloat16) for n, v in network.state_dict().items()}
        parts += _bytes(half)
    return fingerprint(parts) if parts else ""


def _bytes(weights: Mapping[str, Tensor]) -> list[bytes | str]:
    """Names and values, as :func:`fingerprint` takes them."""
    parts: list[bytes | str] = []
    for name, value in sorted(weights.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        parts += [name, flat.view(torch.uint8).numpy().tobytes()]
    return parts
