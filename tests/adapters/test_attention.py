"""What scorers and the history are shown is what eager attention would have shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from vla_prune.adapters.bare import BareDecoderAdapter
from vla_prune.budgets import ConstantBudget
from vla_prune.policy import attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import SemanticScorer
from vla_prune.selectors import TopKSelector
from vla_prune.tokens import Rows, TokenView, ViewGrid
from vla_prune.types import Observation, PolicyState

from .hosts import HISTORY_LAYER, LAYERS, Host, Recorder, Reference, call, visual_places

EARLIER = {
    "uncut": (),
    "cut at projector": ("projector",),
    "cut at decoder.1": ("decoder.1",),
    "cut twice": ("projector", "decoder.2"),
}


def cuts(sites: tuple[str, ...], keep: float = 0.6) -> tuple[Cut, ...]:
    return tuple(Cut(s, (Recorder(),), TopKSelector(), ConstantBudget(keep)) for s in sites)


def literal_rows(host: Host, rows: list[int], kind: str, kept: Tensor) -> Tensor:
    """``[B, S]`` bool: the query rows of a kind that are left, by places of the uncut sequence."""
    valid, places = host.valid[rows], torch.arange(host.valid.shape[1])
    text = valid & (places >= host.prompt.start) & (places < host.prompt.stop)
    last = places == (text * places).amax(1, keepdim=True)
    visual = visual_places(host)
    present = valid.clone()
    present[:, visual] = torch.zeros_like(valid[:, visual]).scatter(1, kept, True)
    prefill = present & (places < host.prompt.stop)
    return {"last": last, "prompt": text, "prefill": prefill}[kind]


def shown(host: Host, kind: str, earlier: tuple[str, ...]) -> tuple[TokenView, Reference]:
    """What a scorer at ``decoder.3`` is shown of samples 0 and 1, and the reference of that."""
    scorer = Recorder(frozenset({f"attention:{kind}"}))
    reading = Cut("decoder.3", (scorer,), TopKSelector(), ConstantBudget(0.2))
    _, running = call(host, Pruner((*cuts(earlier), reading)), [0, 1])
    (view,) = scorer.views
    return view, host.reference([0, 1], {site: running.kept[site] for site in earlier})


def same_rows(host: Host, seen: Rows, view: TokenView, maps: Tensor, chosen: Tensor, close):
    """``seen`` is what the ``chosen`` ``[B, R]`` rows of ``maps`` ``[B, R, S]`` looked at."""
    columns = visual_places(host)[view.index][:, None].expand(-1, maps.shape[1], -1)
    onto = maps.gather(2, columns) * chosen[..., None]  # [B, R, N]
    close(seen.total, onto.sum(1))
    close(seen.count.expand(2, 1), chosen.sum(1, keepdim=True).float())
    # Masked probabilities of an eager map are exactly zero.
    share = (maps > 0) / (maps > 0).sum(2, keepdim=True).clamp(min=1)
    expected = (share.gather(2, columns) * chosen[..., None]).sum(1)
    close(seen.expected.expand_as(expected), expected)


@pytest.mark.parametrize("earlier", EARLIER.values(), ids=EARLIER)
@pytest.mark.parametrize("kind", ["last", "prompt", "prefill"])
def test_rows_are_those_of_eager_attention(host: Host, kind: str, earlier, close):
    """Grouped heads, padding, and columns and rows that earlier cuts removed."""
    view, reference = shown(host, kind, earlier)
    maps = reference.maps[2].mean(1)  # [B, S, S], one layer before the cut
    chosen = literal_rows(host, [0, 1], kind, view.index)
    same_rows(host, view.attention[kind], view, maps, chosen, close)


@pytest.mark.parametrize("earlier", EARLIER.values(), ids=EARLIER)
@pytest.mark.parametrize(("kind", "layer"), [("prompt", 0), ("prompt", 1), ("last", 0)])
def test_rows_can_be_those_of_an_earlier_layer(host: Host, kind: str, layer: int, earlier, close):
    """Read before a cut that stands in between, shown at the tokens that it left."""
    view, reference = shown(host, f"{kind}@{layer}", earlier)
    maps = reference.maps[layer].mean(1)
    chosen = literal_rows(host, [0, 1], kind, view.index)
    assert view.attention.keys() == {f"{kind}@{layer}"}
    same_rows(host, view.attention[f"{kind}@{layer}"], view, maps, chosen, close)


def test_two_layers_can_be_read_for_one_cut(host: Host):
    scorer = Recorder(frozenset({"attention:last", "attention:last@0", "attention:last@2"}))
    call(host, Pruner((Cut("decoder.3", (scorer,), TopKSelector(), ConstantBudget(0.2)),)), [0, 1])
    seen = scorer.views[0].attention
    assert torch.equal(seen["last"].total, seen["last@2"].total)
    assert not torch.equal(seen["last"].total, seen["last@0"].total)


@pytest.mark.parametrize("earlier", EARLIER.values(), ids=EARLIER)
@pytest.mark.parametrize("name", ["oft two views padded", "pocket"])
def test_action_slots_can_be_asked_for(made, name: str, earlier, close):
    """Parallel decoding alone has its action rows in the prefill: before a slot, or in it."""
    host = made(name)
    view, reference = shown(host, "action", earlier)
    maps = reference.actions[2]
    chosen = torch.ones(maps.shape[:2], dtype=torch.bool)
    assert chosen.shape[1] == host.model.config.n_slots
    same_rows(host, view.attention["action"], view, maps, chosen, close)


@pytest.mark.parametrize("earlier", EARLIER.values(), ids=EARLIER)
@pytest.mark.parametrize("layer", [None, 0, LAYERS - 1])
def test_history_is_the_action_rows_of_eager_attention(host: Host, layer, earlier, close):
    """Last prompt row and decode steps; OFT's action slots; pi0's rows of all denoising steps."""
    rows, states = [0, 1], [PolicyState(), PolicyState()]
    pruner = Pruner(cuts(earlier), ActionHistory(layer=layer))
    _, running = call(host, pruner, rows, states)
    at = HISTORY_LAYER if layer is None else layer
    reference = host.reference(rows, running.kept)
    actions = reference.actions[at].mean(1)
    total = host.adapter.layout.total
    present = torch.arange(total).expand(2, -1)
    for site, index in running.kept.items():
        if site == "projector" or int(site.split(".")[1]) <= at:
            present = index
    observed = torch.zeros(2, total, dtype=torch.bool).scatter(1, present, True)
    for row, state in enumerate(states):
        ((values, seen),) = state.history[ACTION]
        assert torch.equal(seen, observed[row])
        close(values, actions[row, visual_places(host)] * seen)


def test_a_view_shows_what_was_asked_for_and_no_more(host: Host):
    """Not what an earlier cut asked for, nor what was read for the history."""
    asking, silent = Recorder(frozenset({"attention:last"})), Recorder()
    pruner = Pruner(
        tuple(
            Cut(site, (scorer,), TopKSelector(), ConstantBudget(keep))
            for site, scorer, keep in (("decoder.1", asking, 1.0), ("decoder.3", silent, 0.5))
        ),
        ActionHistory(layer=1),
    )
    call(host, pruner, [0, 1])
    assert not asking.views  # all stay: nobody has to be asked
    assert silent.views[0].attention == {}
    pruner = Pruner((Cut("decoder.1", (asking,), TopKSelector(), ConstantBudget(0.5)),))
    call(host, pruner, [0, 1])
    assert asking.views[0].attention.keys() == {"last"}
    assert asking.views[0].history is None


def test_a_view_shows_the_history_at_its_own_tokens_newest_last(host: Host):
    """Two of three steps are filled; the empty one stands in front."""
    total, draw = host.adapter.layout.total, torch.Generator().manual_seed(2)
    values = torch.rand(2, 2, total, generator=draw)  # [sample, step, M]
    observed = torch.rand(2, 2, total, generator=draw) > 0.4
    states = [
        PolicyState(history={ACTION: list(zip(*pair, strict=True))})
        for pair in zip(values, observed, strict=True)
    ]
    scorers = Recorder(frozenset({"history"})), Recorder(frozenset({"history"}))
    pruner = Pruner(
        tuple(
            Cut(site, (scorer,), TopKSelector(), ConstantBudget(keep))
            for site, scorer, keep in zip(
                ("projector", "decoder.3"), scorers, (0.6, 0.3), strict=True
            )
        ),
        ActionHistory(window=3),
    )
    call(host, pruner, [0, 1], states)
    for (view,) in (scorer.views for scorer in scorers):
        where = view.index[:, None].expand(-1, 2, -1)
        history = view.history
        assert torch.equal(history.values[:, 1:], values.gather(2, where))
        assert torch.equal(history.observed[:, 1:], observed.gather(2, where))
        assert not history.observed[:, 0].any()
        assert history.values[:, 0].eq(0.0).all()


def test_reading_changes_nothing(host: Host):
    kinds = frozenset({"attention:last", "attention:prompt", "attention:prefill"})
    readers = tuple(
        Cut(f"decoder.{k}", (Recorder(kinds),), TopKSelector(), ConstantBudget(1.0))
        for k in range(1, LAYERS)
    )
    output, _ = call(host, Pruner(readers, ActionHistory()), [0, 1])
    assert torch.equal(output, host.plain([0, 1]))


def uniform_view(causal: bool) -> TokenView:
    """1 + 256 + 34 tokens through a decoder that looks everywhere alike."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation="sdpa",
    )
    config.is_causal = causal
    torch.manual_seed(0)
    decoder = LlamaModel(config).eval()
    for layer in decoder.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
    adapter = BareDecoderAdapter(decoder, (ViewGrid("front", 16, 16),), 34)
    scorer = Recorder(frozenset({"attention:prefill"}))
    pruner = Pruner((Cut("decoder.1", (scorer,), TopKSelector(), ConstantBudget(0.5)),))
    with attach(pruner, adapter) as policy:
        policy.act_one(Observation({}, "go"), policy.new_state())
    return scorer.views[0]


def test_the_causal_prefill_mean_favours_early_tokens_and_debias_does_not(close):
    view = uniform_view(causal=True)
    raw = SemanticScorer("prefill").score(view)
    assert raw[0, 0] / raw[0, -1] == pytest.approx(41.0, abs=0.2)
    fair = SemanticScorer("prefill", debias=True).score(view)
    close(fair, fair.mean().expand_as(fair))


def test_debias_changes_no_order_on_bidirectional_hosts(close):
    view = uniform_view(causal=False)
    raw, fair = (SemanticScorer("prefill", debias=d).score(view) for d in (False, True))
    close(raw / raw.mean(), fair / fair.mean())
