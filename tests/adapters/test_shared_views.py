"""Views that compete for one total: every row of a batch splits it its own way.

Where words stand between the images, rows then differ in the place of everything behind the first
image; where they do not, only in what the places hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vla_prune.budgets import ConstantBudget, SharedBudget
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.selectors import Floors, SeededMaxMinSelector, TopKSelector
from vla_prune.tokens import TokenView
from vla_prune.types import PolicyState

from .hosts import HISTORY_LAYER, Host, Recorder, call, visual_places
from .test_attention import literal_rows, same_rows
from .test_engine import final_rows

TWO_VIEWS = (
    "causal two views",
    "bidirectional decode",
    "openvla two views padded",
    "oft two views padded",
    "pi0 padded",
    "qwen two views",
    "qwen padded",
)
CUTS = {
    "projector": (("projector", SharedBudget(0.5, 0.2)),),
    "decoder.2": (("decoder.2", SharedBudget(0.4, 0.2)),),
    "two cuts": (("projector", SharedBudget(0.7, 0.2)), ("decoder.2", SharedBudget(0.4, 0.0))),
    "fixed behind": (("projector", SharedBudget(0.5, 0.2)), ("decoder.3", ConstantBudget(0.3))),
}


@dataclass(frozen=True)
class Leaning:
    """Prefers one camera view, which one by the sample's tick."""

    needs: frozenset[str] = frozenset()

    def score(self, view: TokenView) -> Tensor:
        number = view.layout.view_of(view.index)
        likes = number == (view.tick % len(view.layout.views))[:, None]
        return 2.0 * likes + (view.index * 7919 % 31).float() / 31


def recipe(cuts: tuple) -> Pruner:
    made = tuple(Cut(site, (Leaning(),), TopKSelector(), budget) for site, budget in cuts)
    return Pruner(made, ActionHistory())


def states() -> list[PolicyState]:
    return [PolicyState(tick=0), PolicyState(tick=1)]


def per_view(host: Host, index: Tensor) -> list[list[int]]:
    number = host.adapter.layout.view_of(index)
    return [[int((row == v).sum()) for v in range(2)] for row in number]


@pytest.fixture(params=TWO_VIEWS)
def host(request: pytest.FixtureRequest, made) -> Host:
    return made(request.param)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_survivors_equal_the_masked_reference(host: Host, cuts: tuple, close):
    """Outputs, hidden states at their places, and what the history remembers, in two calls."""
    pruner, kept_states = recipe(cuts), states()
    for _ in range(2):
        output, running, hidden = final_rows(host, pruner, [0, 1], kept_states)
        reference = host.reference([0, 1], running.kept)
        close(output, reference.output)
        last = list(running.kept.values())[-1]
        where, valid = visual_places(host), host.valid[[0, 1]]
        stays = torch.ones_like(valid)
        stays[:, where] = torch.zeros(2, len(where), dtype=torch.bool).scatter(1, last, True)
        for row in range(2):
            places = stays[row].nonzero()[:, 0]
            counts = valid[row][places]
            close(hidden[row][counts], reference.hidden[row][places[counts]])
        present = torch.arange(host.adapter.layout.total).expand(2, -1)
        for site, index in running.kept.items():
            if site == "projector" or int(site.split(".")[1]) <= HISTORY_LAYER:
                present = index
        observed = torch.zeros(2, len(where), dtype=torch.bool).scatter(1, present, True)
        actions = reference.actions[HISTORY_LAYER].mean(1)[:, where] * observed
        for row, state in enumerate(kept_states):
            values, seen = state.history[ACTION][-1]
            assert torch.equal(seen, observed[row])
            close(values, actions[row])
        for state in kept_states:
            state.tick += 2  # as the policy would, but for leaning the same way again


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_rows_split_differently_and_no_view_falls_below_its_floor(host: Host, cuts: tuple):
    _, running = call(host, recipe(cuts), [0, 1], states())
    layout = host.adapter.layout
    for site, budget in cuts:
        index = running.kept[site]
        assert index.shape == (2, sum(budget.keep(layout)))
        assert (index.diff(dim=1) > 0).all()
        (likes, spares), (spared, liked) = per_view(host, index)
        least = budget.least(layout) if isinstance(budget, SharedBudget) else (0, 0)
        assert spares >= least[1]
        assert spared >= least[0]
        if isinstance(budget, SharedBudget):
            assert likes > spared
            assert liked > spares


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_batch_equals_singles(host: Host, cuts: tuple, close):
    together = states()
    output, running = call(host, recipe(cuts), [0, 1], together)
    for row in (0, 1):
        alone = states()[row : row + 1]
        single, lone = call(host, recipe(cuts), [row], alone)
        close(output[row : row + 1], single)
        for site, index in lone.kept.items():
            assert torch.equal(running.kept[site][row : row + 1], index)
        for ours, theirs in zip(
            together[row].history[ACTION][-1], alone[0].history[ACTION][-1], strict=True
        ):
            close(ours, theirs)


@pytest.mark.parametrize("kind", ["last", "prompt", "prefill"])
def test_later_scorers_are_shown_the_rows_of_eager_attention(host: Host, kind: str, close):
    scorer = Recorder(frozenset({f"attention:{kind}"}))
    reading = Cut("decoder.3", (scorer,), TopKSelector(), SharedBudget(0.2))
    cuts = (*recipe(CUTS["two cuts"]).cuts, reading)
    _, running = call(host, Pruner(cuts), [0, 1], states())
    (view,) = scorer.views
    earlier = {site: running.kept[site] for site in ("projector", "decoder.2")}
    assert view.counts is None
    assert torch.equal(view.index, earlier["decoder.2"])
    reference = host.reference([0, 1], earlier)
    chosen = literal_rows(host, [0, 1], kind, view.index)
    same_rows(host, view.attention[kind], view, reference.maps[2].mean(1), chosen, close)


def test_floors_and_diversity_go_with_it(made):
    """A floor per view, a coverage floor, exploration and max-min diversity in one cut."""
    host = made("oft two views padded")
    floors = Floors(coverage=0.3, exploration=0.2)
    late = Cut("decoder.2", (Leaning(),), SeededMaxMinSelector(), SharedBudget(0.4, 0.5), floors)
    early = Cut("projector", (Leaning(),), TopKSelector(), SharedBudget(0.7, 0.5))
    pruner = Pruner((early, late), ActionHistory())
    _, running = call(host, pruner, [0, 1], states())
    index, least = running.kept["decoder.2"], late.budget.least(host.adapter.layout)
    assert (index.diff(dim=1) > 0).all()
    for counts in per_view(host, index):
        assert all(n >= floor for n, floor in zip(counts, least, strict=True))


def test_with_all_as_floor_it_is_the_fixed_split(host: Host):
    for budget in (SharedBudget(0.5, 1.0), ConstantBudget(0.5)):
        _, running = call(host, recipe((("decoder.2", budget),)), [0, 1], states())
        counts = [list(budget.keep(host.adapter.layout))] * 2
        assert per_view(host, running.kept["decoder.2"]) == counts


def test_one_view_has_nobody_to_share_with(made):
    for name in ("causal", "qwen", "pi0"):
        host = made(name)
        kept = [
            call(host, recipe((("projector", budget),)), [0, 1], states())[1].kept["projector"]
            for budget in (SharedBudget(0.5), ConstantBudget(0.5))
        ]
        assert torch.equal(*kept)


def test_all_of_a_shared_total_is_bit_identical(host: Host):
    cuts = tuple((site, SharedBudget(1.0)) for site in ("projector", "decoder.2"))
    output, running = call(host, recipe(cuts), [0, 1], states())
    assert torch.equal(output, host.plain([0, 1]))
    assert all(index.shape[1] == host.adapter.layout.total for index in running.kept.values())
