"""The project's own recipe, its variants, and what a second cut, a refresh and one ratio mean."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_prune import config
from vla_prune.budgets import SharedBudget
from vla_prune.build import build_recipe
from vla_prune.errors import ConfigError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import ActionHistoryScorer, ForegroundScorer, NormScorer, SemanticScorer
from vla_prune.selectors import (
    AgreementSelector,
    Floors,
    RankedMaxSelector,
    RankedSumSelector,
    SeededMaxMinSelector,
    TopKSelector,
    UnionMaxMinSelector,
)
from vla_prune.types import PolicyState

from .adapters.hosts import HOSTS, Host

RULES = {
    "tri_level": SeededMaxMinSelector(),
    "tri_level_sum": RankedSumSelector(),
    "tri_level_max": RankedMaxSelector(),
    "tri_level_agreement": AgreementSelector(),
    "tri_level_union": UnionMaxMinSelector(),
}
ABLATIONS = sorted((config.configs_folder() / "recipe" / "ablation").glob("*.yaml"))
VARIANTS = [*RULES, *(f"ablation/{path.stem}" for path in ABLATIONS)]


@cache
def _made(name: str) -> Host:
    return HOSTS[name]()


def without_weights(pruner: Pruner) -> Pruner:
    """Token norms in the place of the foreground network: these hosts have none trained."""
    swap = lambda s: NormScorer() if isinstance(s, ForegroundScorer) else s  # noqa: E731
    cuts = tuple(replace(c, scorers=tuple(map(swap, c.scorers))) for c in pruner.cuts)
    return replace(pruner, cuts=cuts)


def tri_level(keep: float, name: str = "tri_level", layer: int = 2) -> Pruner:
    return without_weights(build_recipe(name, keep, cut_layer=layer))


# --- recipes -----------------------------------------------------------------------------------


def test_three_signals_two_cuts():
    early, late = build_recipe("tri_level").cuts
    assert (early.site, late.site) == ("projector", "decoder.3")
    assert early.scorers == (ForegroundScorer(), ActionHistoryScorer(form="observed"))
    assert late.scorers == (
        SemanticScorer("prompt", debias=True, layer="policy"),
        ActionHistoryScorer(),
    )


def test_floors_and_views_that_compete_are_one_change_each():
    base = build_recipe("tri_level", 0.125)
    for name, changed in (
        ("coverage", {"floors": Floors(coverage=0.1)}),
        ("exploration", {"floors": Floors(exploration=0.05)}),
        ("shared_views", {"budget": None}),
        ("early_root", {"budget": None}),
    ):
        made = build_recipe(f"ablation/{name}", 0.125)
        for cut, own in zip(made.cuts, base.cuts, strict=True):
            told = {k: v or cut.budget for k, v in changed.items()}
            assert replace(own, **told) == cut
            assert isinstance(cut.budget, SharedBudget) == (name == "shared_views")


@pytest.mark.parametrize(("name", "selector"), RULES.items())
def test_rules_of_combination_change_the_selectors_alone(name: str, selector):
    made, base = build_recipe(name, 0.125), build_recipe("tri_level", 0.125)
    assert made.name == name
    assert [cut.selector for cut in made.cuts] == [selector] * 2
    same = tuple(
        replace(cut, selector=c.selector) for cut, c in zip(made.cuts, base.cuts, strict=True)
    )
    assert replace(made, cuts=same, name=base.name) == base


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_ablation_differs_from_tri_level(path: Path):
    made = build_recipe(f"ablation/{path.stem}", 0.125)
    assert made.name == path.stem
    assert replace(made, name="tri_level") != build_recipe("tri_level", 0.125)
    assert made.cuts[-1].budget.keep_ratio == 0.125
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# vla-prune ")
    assert second.startswith("# ")


def signals(name: str) -> set[str]:
    made = build_recipe(f"ablation/{name}")
    known = {ForegroundScorer: "foreground", SemanticScorer: "semantic"}
    return {known.get(type(s), "action") for cut in made.cuts for s in cut.scorers}


def test_ablations_hold_the_signals_that_they_name():
    for name in ("only_foreground", "only_semantic", "only_action"):
        assert signals(name) == {name.removeprefix("only_")}
    for name in ("foreground_semantic", "foreground_action", "semantic_action"):
        assert signals(name) == set(name.split("_"))


def test_the_causal_bias_is_one_change_of_its_own():
    """From our rows to the prefill's, and from there to no repair: one field each."""
    ours, rows, raw = (
        build_recipe(name).cuts[-1].scorers[0]
        for name in ("tri_level", "ablation/prefill_rows", "ablation/raw_prefill")
    )
    assert replace(ours, rows="prefill") == rows
    assert replace(rows, debias=False) == raw


@pytest.mark.parametrize(
    ("keep", "early"), [(0.0625, 0.5), (0.25, 0.7071), (0.1296, 0.6), (0.5, 0.5**0.25), (1.0, 1.0)]
)
def test_one_ratio_is_that_of_the_last_cut_and_both_cuts_cut(keep: float, early: float):
    made = build_recipe("tri_level", keep, cut_layer=2)
    assert [cut.budget.keep_ratio for cut in made.cuts] == [pytest.approx(early, abs=1e-4), keep]
    assert [cut.site for cut in made.cuts] == ["projector", "decoder.2"]


def test_a_single_cut_that_is_left_keeps_the_ratio_itself():
    (early,) = build_recipe("ablation/early_only", 0.125).cuts
    assert (early.site, early.budget.keep_ratio) == ("projector", 0.125)
    (late,) = build_recipe("ablation/late_only", 0.125).cuts
    assert (late.site, late.budget.keep_ratio) == ("decoder.3", 0.125)
    (late,) = build_recipe("dual_level", 0.5).cuts
    assert (late.site, late.budget.keep_ratio) == ("decoder.3", 0.5)


def test_cuts_by_name_can_be_changed_and_taken_out(tmp_path: Path):
    (tmp_path / "one.yaml").write_text(
        "cuts:\n"
        "  a: {site: projector, scorers: [norm], budget: {name: shared, floor: 0.1}}\n"
        "  b: {site: decoder.1, scorers: [norm], selector: ranked_max, budget: constant}\n"
        "selector: topk\n"
        "floors: {coverage: 0.5}\n"
    )
    (tmp_path / "two.yaml").write_text("extends: one.yaml\ncuts: {b: null}\n")
    made = build_recipe(str(tmp_path / "one.yaml"), overrides=["cuts.a.budget.floor=0.2"])
    assert [cut.selector for cut in made.cuts] == [TopKSelector(), RankedMaxSelector()]
    assert [cut.floors for cut in made.cuts] == [Floors(coverage=0.5)] * 2
    assert made.cuts[0].budget.floor == 0.2
    assert [cut.site for cut in build_recipe(str(tmp_path / "two.yaml")).cuts] == ["projector"]


def test_floors_with_a_wrong_name_suggest(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "cuts: [{site: projector, selector: maxmin, budget: constant, floors: {covrage: 0.1}}]\n"
    )
    with pytest.raises(ConfigError, match="field 'covrage' is unknown; did you mean 'coverage'"):
        build_recipe(str(path))


# --- on every family ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_drives_a_policy(name: str):
    """Three calls of two robots; totals are what the one ratio says, and everything is finite."""
    host = _made("oft two views padded")
    total = host.adapter.layout.total
    with attach(tri_level(0.25, name), host.adapter) as policy:
        states = [policy.new_state(), policy.new_state()]
        for _ in range(3):
            chunks = policy.act(host.observations[:2], states)
    for chunk in chunks:
        assert np.isfinite(chunk.actions).all()
        sizes = [len(index) for index in chunk.kept.values()]
        early = [2 * round(ratio * total / 2) for ratio in (0.25**0.25, 0.5)]  # of two views
        assert sizes in ([early[0], total // 4], [early[1], total // 4], [total // 4])
        first, last = (list(chunk.kept.values())[n] for n in (0, -1))
        assert set(last) <= set(first)


@pytest.mark.parametrize(
    "name",
    [
        "causal padded decode",
        "bidirectional decode",
        "openvla two views padded",
        "pocket padded",
        "pi0 padded",
        "qwen padded",
    ],
)
def test_every_family_gives_the_masked_reference_and_a_batch_its_singles(name: str, close):
    """The second call scores by the history of the first."""
    host, pruner = _made(name), tri_level(0.25)
    with attach(pruner, host.adapter):

        def twice(rows: list[int]) -> tuple:
            states = [PolicyState() for _ in rows]
            for tick in range(2):
                for state in states:
                    state.tick = tick
                running = pruner.begin(states, host.adapter.layout)
                with torch.inference_mode():
                    output = host.act(running, rows)
                running.finish(states)
            return output, running.kept, states

        output, kept, states = twice([0, 1])
        for row in (0, 1):
            single, alone, (state,) = twice([row])
            close(output[row : row + 1], single)
            for site, index in alone.items():
                assert torch.equal(kept[site][row : row + 1], index)
            close(states[row].history[ACTION][-1][0], state.history[ACTION][-1][0])
    reference = host.reference([0, 1], kept)
    close(output, reference.output)


def test_what_the_early_cut_removed_is_unobserved_for_the_late_one():
    """Both what the history says of it, and what the next call explores."""
    host = _made("oft two views padded")
    pruner = replace(tri_level(0.25, "ablation/exploration"), history=ActionHistory(layer=1))
    state = PolicyState()
    with attach(pruner, host.adapter) as policy:
        first = policy.act_one(host.observations[0], state)
        _, observed = state.history[ACTION][0]
        assert observed.nonzero()[:, 0].tolist() == first.kept["projector"].tolist()
        before = copy.deepcopy(state)
        second = policy.act_one(host.observations[0], state)
    fresh = set(second.kept["projector"]) - set(first.kept["projector"])
    explored = round(0.05 * len(second.kept["projector"]))
    assert len(fresh) >= explored
    scorer = ActionHistoryScorer()
    call = pruner.begin([before], host.adapter.layout)
    index = torch.arange(host.adapter.layout.total)[None]
    history = call.history_at(index)
    view = type("View", (), {"history": history})
    scores = scorer.score(view)[0]
    assert scores[~observed].unique().numel() == 1  # unknown: all alike, and not worthless
    assert scores[~observed][0] > 0.0


# --- refresh -----------------------------------------------------------------------------------


def refreshed(every: int) -> Pruner:
    cut = Cut("projector", (ActionHistoryScorer(),), TopKSelector(), SharedBudget(0.5))
    return Pruner((cut,), ActionHistory(window=2, refresh=every))


def test_every_so_many_calls_are_dense_and_see_all():
    host, state = _made("oft two views padded"), PolicyState()
    dense = []
    with attach(refreshed(3), host.adapter) as policy:
        for _ in range(7):
            chunk = policy.act_one(host.observations[0], state)
            _, observed = state.history[ACTION][-1]
            assert bool(observed.all()) == (not chunk.kept)
            dense.append(not chunk.kept)
    assert dense == [True, False, False, True, False, False, True]


def test_robots_whose_refresh_comes_at_other_times_share_a_call(close):
    host = _made("oft two views padded")
    states = [PolicyState(tick=3), PolicyState(tick=4)]
    with attach(refreshed(3), host.adapter) as policy:
        together = policy.act(host.observations[:2], copy.deepcopy(states))
        alone = [policy.act_one(host.observations[n], states[n]) for n in range(2)]
    assert [list(chunk.kept) for chunk in together] == [[], ["projector"]]
    for one, two in zip(together, alone, strict=True):
        close(one.actions, two.actions)


@pytest.mark.parametrize("every", [-1, 1])
def test_a_refresh_that_cannot_be(every: int):
    with pytest.raises(ConfigError, match=f"history: refresh {every} cannot be; give 2 or more"):
        ActionHistory(refresh=every)


# --- the ablation runs -------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["libero", "drive"])
def test_ablation_runs_build_and_hold_what_the_issue_names(domain: str):
    rollout = pytest.importorskip("vla_prune_sim.rollout")
    made = rollout.RunConfig(**config.load(f"ablation_{domain}", kind="run"))
    for name in {row.recipe for row in made.rows} - {"dense", "blind"}:
        assert build_recipe(name, 0.125, cut_layer=made.cut_layer).cuts
    assert made.results == f"results/ablation_{domain}.json"
    per_row: dict = {}
    for episode in rollout.episodes(made):
        where = (episode.row.recipe, episode.row.keep_ratio)
        per_row[where] = per_row.get(where, 0) + 1
    screened = {recipe for recipe, keep in per_row if keep == 0.125}
    assert set(VARIANTS) <= screened
    assert all(per_row[variant, 0.125] >= 60 for variant in VARIANTS)
    named = ("random", "grid", "fastv", "divprune", "vla_pruner", "fastdrive", "tri_level")
    for recipe in named:
        assert all(per_row[recipe, keep] >= 100 for keep in (0.5, 0.25, 0.125, 0.0625))
    assert min(per_row["dense", 1.0], per_row["blind", 1.0]) >= 100
