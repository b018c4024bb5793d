"""Properties that every recipe has on every model family: exactness, the kept set, no traces."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vla_prune.budgets import ConstantBudget, PerViewBudget, TokensBudget
from vla_prune.errors import ConfigError, ShapeError, UnsupportedError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import ActionHistoryScorer, GridScorer, NormScorer, SemanticScorer
from vla_prune.selectors import MaxMinSelector, RankedUnionSelector, TopKSelector
from vla_prune.tokens import ViewGrid
from vla_prune.types import PolicyState

from .hosts import (
    BareHost,
    Broken,
    Host,
    OpenVLAHost,
    Pi0Host,
    Raising,
    Recorder,
    call,
    visual_places,
)

SITES = {
    "projector": {"projector": 0.5},
    "decoder.1": {"decoder.1": 0.4},
    "decoder.4": {"decoder.4": 0.4},
    "projector, decoder.2": {"projector": 0.7, "decoder.2": 0.3},
    "decoder.1, decoder.3": {"decoder.1": 0.7, "decoder.3": 0.3},
    "three cuts": {"projector": 0.8, "decoder.1": 0.6, "decoder.3": 0.3},
    "blind": {"projector": 0.0},
    "blind late": {"decoder.2": 0.0},
}


def cut(site: str, keep: float, *scorers, selector=None) -> Cut:
    budget = ConstantBudget(keep) if keep else TokensBudget(0)
    return Cut(site, scorers or (Recorder(),), selector or TopKSelector(), budget)


def recipe(sites: dict[str, float], **options) -> Pruner:
    return Pruner(tuple(cut(site, keep) for site, keep in sites.items()), **options)


def everything(keep: float) -> Pruner:
    """Every signal that every host can give, at three sites."""
    history, union = ActionHistoryScorer(), RankedUnionSelector()
    kinds = [SemanticScorer(rows, debias=True) for rows in ("last", "prompt", "prefill")]
    return Pruner(
        (
            cut("projector", keep, history, NormScorer(), selector=union),
            cut("decoder.1", keep, *kinds, history, selector=union),
            cut("decoder.3", keep, *kinds, selector=union),
        ),
        ActionHistory(),
        "everything",
    )


# --- nothing changes that should not ----------------------------------------------------------


@pytest.mark.parametrize("pruner", [Pruner(), everything(1.0)], ids=["dense", "everything"])
def test_keep_ratio_one_is_bit_identical(host: Host, pruner: Pruner):
    states = [PolicyState(), PolicyState()]
    for _ in range(2):  # the second call has a history to score by
        output, running = call(host, pruner, [0, 1], states)
        assert torch.equal(output, host.plain([0, 1]))
    whole = torch.arange(host.adapter.layout.total).expand(2, -1)
    assert all(torch.equal(index, whole) for index in running.kept.values())
    assert set(running.kept) == {c.site for c in pruner.cuts}


def traces(host: Host) -> list:
    """Everything that attaching touches."""
    modules = list(getattr(host, "model", host.decoder).modules())
    return [
        [config._attn_implementation for config in host.configs],
        [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in modules],
        [m.forward.__func__ for m in modules],
        sorted(AttentionInterface._global_mapping),
        sorted(AttentionMaskInterface._global_mapping),
        copy.copy(sorted(vars(host.adapter))),
    ]


@pytest.mark.parametrize("site", ["projector", "decoder.2"])
def test_detaching_leaves_no_trace(host: Host, site: str):
    before, found = host.plain([0, 1]), traces(host)
    pruned, _ = call(host, recipe({site: 0.3}), [0, 1])
    assert not torch.equal(pruned, before)
    assert torch.equal(host.plain([0, 1]), before)
    assert traces(host) == found


@pytest.mark.parametrize("site", ["projector", "decoder.2"])
def test_an_exception_leaves_no_trace(host: Host, site: str):
    before, found = host.plain([0]), traces(host)
    with pytest.raises(Broken):
        call(host, Pruner((cut(site, 0.5, Raising()),)), [0])
    assert torch.equal(host.plain([0]), before)
    assert traces(host) == found
    again, _ = call(host, Pruner(), [0])
    assert torch.equal(again, before)


@pytest.mark.parametrize("scorer", [Recorder(), Raising()], ids=["after a call", "a failure"])
def test_an_attached_model_is_dense_outside_of_calls(host: Host, scorer):
    before, pruner = host.plain([0]), Pruner((cut("decoder.2", 0.3, scorer),))
    with attach(pruner, host.adapter):
        assert torch.equal(host.plain([0]), before)
        with suppress(Broken), torch.inference_mode():
            host.act(pruner.begin([PolicyState()], host.adapter.layout), [0])
        assert torch.equal(host.plain([0]), before)


# --- what stays -------------------------------------------------------------------------------


def final_rows(host: Host, pruner: Pruner, rows: list[int], states=None):
    """Output, call, and all rows that survived the prefill, after the decoder's last norm."""
    seen = []
    handle = host.decoder.norm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    try:
        output, running = call(host, pruner, rows, states)
    finally:
        handle.remove()
    return output, running, seen[0]


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_exactly_k_per_view_ascending_and_unique(host: Host, sites: dict[str, float]):
    _, running = call(host, recipe(sites), [0, 1, 2])
    present = torch.arange(host.adapter.layout.total).expand(3, -1)
    sizes = host.adapter.layout.sizes
    for site, keep in sites.items():
        index = running.kept[site]
        wanted = [max(round(size * keep), 1) if keep else 0 for size in sizes]
        assert index.shape == (3, sum(wanted))
        assert (index.diff(dim=1) > 0).all()
        view = torch.bucketize(index, torch.tensor(sizes).cumsum(0), right=True)
        counts = [(view == n).sum(1).tolist() for n in range(len(sizes))]
        assert counts == [[k] * 3 for k in wanted]
        assert all(torch.isin(now, was).all() for now, was in zip(index, present, strict=True))
        present = index


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_survivors_equal_the_masked_reference(host: Host, sites: dict[str, float], close):
    """Original positions, every other token, all later passes: a removed token is a masked one."""
    rows = [0, 1]
    output, running, hidden = final_rows(host, recipe(sites), rows)
    reference = host.reference(rows, running.kept)
    close(output, reference.output)
    where = visual_places(host)
    kept = list(running.kept.values())[-1]
    stays = torch.ones(len(rows), host.valid.shape[1], dtype=torch.bool)
    stays[:, where] = torch.zeros(len(rows), len(where), dtype=torch.bool).scatter(1, kept, True)
    places = torch.stack([row.nonzero()[:, 0] for row in stays])
    assert hidden.shape[:2] == places.shape
    for row in range(len(rows)):
        counts = host.valid[rows[row]][places[row]]  # what padding rows hold is nobody's business
        close(hidden[row][counts], reference.hidden[row][places[row][counts]])


def test_projector_gaps_are_not_taken_for_packed_sequences(made, close):
    """Without a cache transformers separates rows wherever positions skip."""
    host = made("causal two views")
    output, running = call(host, recipe({"projector": 0.5}), [0, 1])
    assert (running.kept["projector"].diff(dim=1) > 1).any()
    close(output, host.reference([0, 1], running.kept).output)


@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_a_batch_equals_singles(host: Host, sites: dict[str, float], close):
    pruner = recipe(sites, history=ActionHistory())
    together = [PolicyState(), PolicyState()]
    output, running = call(host, pruner, [0, 1], together)
    for row in (0, 1):
        alone = [PolicyState()]
        single, lone = call(host, pruner, [row], alone)
        close(output[row : row + 1], single)
        for site, index in lone.kept.items():
            assert torch.equal(running.kept[site][row : row + 1], index)
        for ours, theirs in zip(
            together[row].history[ACTION][-1], alone[0].history[ACTION][-1], strict=True
        ):
            close(ours, theirs)


def test_padding_is_never_seen(made, close):
    """Whatever stands in the padding, pruned outputs are the same."""
    for name in ("causal padded decode", "bidirectional padded decode"):
        host = made(name)
        pruner = recipe({"projector": 0.7, "decoder.2": 0.3})
        before, _ = call(host, pruner, [0])
        text = host.embeds[2][0].clone()
        host.embeds[2][0, 3:] = 9.0
        after, _ = call(host, pruner, [0])
        host.embeds[2][0] = text
        close(after, before)


def test_later_cuts_see_what_earlier_ones_left(host: Host):
    first, second = Recorder(), Recorder()
    pruner = Pruner((cut("projector", 0.7, first), cut("decoder.2", 0.3, second)))
    _, running = call(host, pruner, [0, 1])
    (view,) = second.views
    assert torch.equal(view.index, running.kept["projector"])
    assert view.counts == tuple(max(round(0.7 * n), 1) for n in host.adapter.layout.sizes)
    features = first.views[0].features
    index = view.index[..., None].expand_as(view.features)
    assert torch.equal(view.features, features.gather(1, index))


def test_a_later_budget_cannot_bring_tokens_back(made):
    pruner = Pruner((cut("projector", 0.3), cut("decoder.2", 0.9)))
    _, running = call(made("causal"), pruner, [0])
    assert torch.equal(running.kept["projector"], running.kept["decoder.2"])


def test_views_may_have_budgets_of_their_own(made):
    budget = PerViewBudget(0.5, {"wrist": 1.0})
    pruner = Pruner((Cut("decoder.1", (NormScorer(),), TopKSelector(), budget),))
    _, running = call(made("causal two views"), pruner, [0])
    assert running.kept["decoder.1"][0, 6:].tolist() == list(range(12, 20))


# --- refused, in one sentence ------------------------------------------------------------------


def refused(host: Host, pruner: Pruner) -> None:
    with attach(pruner, host.adapter):
        pytest.fail("was not refused")


def test_unknown_site(host: Host):
    with pytest.raises(UnsupportedError, match=r"has no site 'decoder\.9'; it has projector, dec"):
        refused(host, recipe({"decoder.9": 0.5}))


@pytest.mark.parametrize(
    ("site", "rows"), [("projector", "last"), ("decoder.2", "action")], ids=["site", "rows"]
)
def test_a_need_that_the_site_cannot_give(host: Host, site: str, rows: str):
    if rows == "action" and isinstance(host, OpenVLAHost) and host.model.bidirectional:
        pytest.skip("OFT's action slots are in the prefill: its decoder sites do give their rows")
    pruner = Pruner((cut(site, 0.5, SemanticScorer(rows)),))
    with pytest.raises(UnsupportedError, match=f"needs 'attention:{rows}', but site '{site}' of"):
        refused(host, pruner)


def test_a_layer_that_runs_behind_the_cut(host: Host):
    pruner = Pruner((cut("decoder.2", 0.5, SemanticScorer("last", layer=2)),))
    with pytest.raises(UnsupportedError, match=r"at layer 2, which runs behind the cut at 'decod"):
        refused(host, pruner)


def test_more_tokens_than_there_are(host: Host):
    pruner = Pruner((Cut("projector", (NormScorer(),), TopKSelector(), TokensBudget(17)),))
    with pytest.raises(ConfigError, match=r"17 tokens are asked of view 'front', which has 1[26]"):
        refused(host, pruner)


def test_no_visual_tokens():
    host = BareHost(views=(ViewGrid("front", 0, 4),))
    with pytest.raises(ShapeError, match="has no visual tokens, so there is nothing to prune"):
        refused(host, Pruner())


def test_a_second_pruner(host: Host):
    with (
        attach(recipe({"decoder.2": 0.5}, name="first"), host.adapter),
        pytest.raises(UnsupportedError, match="already carries the recipe 'first'"),
    ):
        refused(host, Pruner())


def test_a_second_pruner_through_another_adapter(host: Host):
    """Two adapters over one model: the marks on the adapters do not know of each other."""
    other = copy.copy(host)
    other.adapter = copy.copy(host.adapter)
    with (
        attach(recipe({"decoder.2": 0.5}), host.adapter),
        pytest.raises(UnsupportedError, match="already carries a pruner"),
    ):
        refused(other, Pruner())


def test_a_history_layer_that_does_not_exist(host: Host):
    pruner = recipe({"decoder.2": 0.5}, history=ActionHistory(layer=5))
    with pytest.raises(UnsupportedError, match=r"history reads layer 5, but .* has layers 0 to 4"):
        refused(host, pruner)


def test_eager_attention():
    host = BareHost()
    host.decoder.set_attn_implementation("eager")
    with pytest.raises(UnsupportedError, match="attention 'eager' cannot be read beside a fused"):
        refused(host, Pruner())
    assert host.decoder.config._attn_implementation == "eager"


def test_eager_attention_of_one_part():
    """The expert is refused after the prefix was hooked: the prefix is free again."""
    host = Pi0Host()
    host.configs[1]._attn_implementation = "eager"
    with pytest.raises(UnsupportedError, match="attention 'eager' cannot be read"):
        refused(host, Pruner())
    assert [c._attn_implementation for c in host.configs] == ["sdpa", "eager"]
    assert not any("vla_prune" in name for name in AttentionInterface._global_mapping)


def test_two_cuts_at_one_site():
    with pytest.raises(ConfigError, match="two cuts at one site"):
        Pruner((cut("projector", 0.5), cut("projector", 0.3)))


def test_scorers_that_the_selector_cannot_use():
    with pytest.raises(ConfigError, match="TopKSelector works with 1 to 1 scorers, 2 are given"):
        Pruner((cut("projector", 0.5, NormScorer(), GridScorer()),))
    with pytest.raises(ConfigError, match="MaxMinSelector works with 0 to 0 scorers, 1 are given"):
        Pruner((cut("projector", 0.5, NormScorer(), selector=MaxMinSelector()),))


def test_history_that_is_not_kept():
    with pytest.raises(ConfigError, match="a scorer needs 'history', but the recipe keeps none"):
        Pruner((cut("projector", 0.5, ActionHistoryScorer()),))


def test_a_history_of_no_calls():
    with pytest.raises(ConfigError, match="window 0 remembers nothing"):
        ActionHistory(window=0)
