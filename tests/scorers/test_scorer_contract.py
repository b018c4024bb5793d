"""Every scorer with every selector: shapes, exactness, order, seeds, no look at tensor values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.scorers import SCORERS, ActionHistoryScorer, RandomScorer, Scorer, SemanticScorer
from vla_prune.scorers.grid import coverage_order
from vla_prune.selectors import SELECTORS, Selector
from vla_prune.tokens import History, Rows, TokenLayout, TokenView, ViewGrid

LAYOUT = TokenLayout((ViewGrid("front", 4, 5), ViewGrid("wrist", 3, 3)))
N, WINDOW = LAYOUT.total, 3


@dataclass(frozen=True)
class Brightness:
    """A network without weights in place of the trained one, which a recipe brings along."""

    def __call__(self, tokens: Tensor, places: Tensor, views: int) -> Tensor:
        return tokens.mean(dim=-1) + 0.1 * places[..., 1] / views


KINDS = ("last", "prompt", "prefill", "action")
VARIANTS: dict[str, tuple[dict, ...]] = {
    "action_history": ({}, {"form": "paper"}, {"decay": 0.5, "floor": 0.0}),
    "foreground": ({"network": Brightness()},),
    "semantic": (*({"rows": kind} for kind in KINDS), {"debias": True}),
    "random": ({}, {"seed": 7}),
}


def scorers() -> dict[str, Scorer]:
    """Every scorer there is, with its settings."""
    made = {}
    for name, cls in SCORERS.items():
        for options in VARIANTS.get(name, ({},)):
            text = ",".join(f"{key}={value}" for key, value in options.items())
            made[f"{name}({text})"] = cls(**options)
    return made


SCORER_PARAMS = [pytest.param(scorer, id=name) for name, scorer in scorers().items()]
SELECTOR_PARAMS = [pytest.param(cls(), id=name) for name, cls in SELECTORS.items()]


@cache
def example(seed: int = 0) -> TokenView:
    """Two samples with all fields, all different."""
    draw = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(shape, generator=draw)  # noqa: E731
    return TokenView(
        tokens=torch.randn(2, N, 8, generator=draw),
        features=torch.randn(2, N, 6, generator=draw),
        index=torch.arange(N).expand(2, -1),
        layout=LAYOUT,
        counts=LAYOUT.sizes,
        attention={
            kind: Rows(uniform(2, N), torch.full((2, 1), 3.0), uniform(2, N)) for kind in KINDS
        },
        history=History(uniform(2, WINDOW, N), uniform(2, WINDOW, N) > 0.3),
        tick=torch.tensor([4, 9]),
        encoded=torch.randn(2, N, 5, generator=draw),
    )


def select_columns(view: TokenView, columns: Tensor) -> TokenView:
    """A view of ``columns`` ``[N']`` only, in that order."""
    return replace(
        view,
        tokens=view.tokens[:, columns],
        features=view.features[:, columns],
        index=view.index[:, columns],
        attention={
            kind: Rows(rows.total[:, columns], rows.count, rows.expected[:, columns])
            for kind, rows in view.attention.items()
        },
        history=History(view.history.values[..., columns], view.history.observed[..., columns]),
        encoded=view.encoded[:, columns],
    )


def sample(view: TokenView, row: int) -> TokenView:
    """One sample as a batch of one."""
    one = slice(row, row + 1)
    return replace(
        view,
        tokens=view.tokens[one],
        features=view.features[one],
        index=view.index[one],
        attention={
            kind: Rows(rows.total[one], rows.count[one], rows.expected[one])
            for kind, rows in view.attention.items()
        },
        history=History(view.history.values[one], view.history.observed[one]),
        tick=view.tick[one],
        encoded=view.encoded[one],
    )


def scored(scorer: Scorer, selector: Selector, view: TokenView) -> Tensor:
    """``[S, B, N]`` with as many signals as the selector takes, at most two."""
    signals = (scorer, SemanticScorer("prompt"))[: selector.signals[1]]
    scores = [one.score(view) for one in signals]
    return torch.stack(scores) if scores else view.tokens.new_zeros(0, *view.index.shape)


# --- scorers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_scores_are_finite_floats_per_token(scorer: Scorer):
    scores = scorer.score(example())
    assert scores.shape == (2, N)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_half_precision_tokens_are_scored_too(scorer: Scorer):
    view = replace(example(), tokens=example().tokens.bfloat16())
    assert scorer.score(view).float().isfinite().all()


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_the_same_view_gives_the_same_scores(scorer: Scorer):
    assert torch.equal(scorer.score(example()), scorer.score(example()))


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_a_batch_scores_like_its_samples(scorer: Scorer, close):
    together = scorer.score(example())
    for row in range(2):
        close(together[row : row + 1], scorer.score(sample(example(), row)))


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_scores_move_with_the_tokens(scorer: Scorer, close):
    """Scorers that know places read them from the grid index, which moves along."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    close(scorer.score(select_columns(example(), order)), scorer.score(example())[:, order])


@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_only_declared_needs_are_read(scorer: Scorer):
    view = example()
    kinds = {need.split(":", 1)[1] for need in scorer.needs if ":" in need}
    bare = replace(
        view,
        attention={kind: view.attention[kind] for kind in kinds},
        history=view.history if "history" in scorer.needs else None,
        encoded=view.encoded if "encoded" in scorer.needs else None,
    )
    assert torch.equal(scorer.score(bare), scorer.score(view))


# --- scorers x selectors -----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, N - 1])
@pytest.mark.parametrize("selector", SELECTOR_PARAMS)
@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_exactly_k_ascending_without_repeats(scorer: Scorer, selector: Selector, k: int):
    view = example()
    columns = selector.select(scored(scorer, selector, view), view, k)
    assert columns.shape == (2, k)
    assert columns.dtype == torch.long
    assert (columns.diff(dim=1) > 0).all()
    assert columns.min() >= 0
    assert columns.max() < N


@pytest.mark.parametrize("selector", SELECTOR_PARAMS)
@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_a_batch_selects_like_its_samples(scorer: Scorer, selector: Selector):
    view = example()
    together = selector.select(scored(scorer, selector, view), view, 9)
    again = selector.select(scored(scorer, selector, view), view, 9)
    assert torch.equal(together, again)
    for row in range(2):
        one = sample(view, row)
        alone = selector.select(scored(scorer, selector, one), one, 9)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("selector", SELECTOR_PARAMS)
@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_a_view_that_earlier_cuts_thinned_out(scorer: Scorer, selector: Selector):
    """Scores and coverage go by grid index, not by column."""
    view = select_columns(example(), torch.arange(1, N, 2))
    columns = selector.select(scored(scorer, selector, view), view, 5)
    assert columns.shape == (2, 5)
    assert columns.max() < N // 2


@pytest.mark.parametrize("selector", SELECTOR_PARAMS)
@pytest.mark.parametrize("scorer", SCORER_PARAMS)
def test_no_tensor_value_is_looked_at(scorer: Scorer, selector: Selector):
    """On the meta device there are no values: a sync or a branch on one would raise."""
    view = example()
    meta = replace(
        view,
        tokens=view.tokens.to("meta"),
        features=view.features.to("meta"),
        index=view.index.to("meta"),
        attention={
            kind: Rows(rows.total.to("meta"), rows.count.to("meta"), rows.expected.to("meta"))
            for kind, rows in view.attention.items()
        },
        history=History(view.history.values.to("meta"), view.history.observed.to("meta")),
        tick=view.tick.to("meta"),
        encoded=view.encoded.to("meta"),
    )
    columns = selector.select(scored(scorer, selector, meta), meta, 7)
    assert (columns.device.type, columns.shape) == ("meta", (2, 7))


@pytest.mark.parametrize("selector", SELECTOR_PARAMS)
@pytest.mark.parametrize("form", ["paper", "observed"])
def test_an_empty_history_still_gives_k_tokens(selector: Selector, form: str):
    shape = (2, WINDOW, N)
    empty = History(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    view = replace(example(), history=empty)
    scorer = ActionHistoryScorer(form=form)
    assert scorer.score(view).eq(0.0).all()
    columns = selector.select(scored(scorer, selector, view), view, 7)
    assert columns.shape == (2, 7)
    assert (columns.diff(dim=1) > 0).all()


# --- what single scorers promise ---------------------------------------------------------------


def test_random_draws_differ_by_seed_tick_and_place():
    view = example()
    first = RandomScorer().score(view)
    assert len(first[0].unique()) == N
    assert not torch.equal(first[0], first[1])  # other ticks
    assert not torch.equal(first, RandomScorer(seed=1).score(view))
    moved = replace(view, tick=view.tick.flip(0))
    assert torch.equal(RandomScorer().score(moved), first.flip(0))
    part = select_columns(view, torch.tensor([3, 20]))
    assert torch.equal(RandomScorer().score(part), first[:, [3, 20]])
    untold = RandomScorer().score(replace(view, tick=None))
    assert torch.equal(untold, RandomScorer().score(replace(view, tick=torch.zeros(2).long())))


def test_random_draws_are_uniform():
    layout = TokenLayout((ViewGrid("front", 100, 100),))
    index = torch.arange(layout.total)[None]
    view = TokenView(index[..., None], index[..., None], index, layout, (layout.total,))
    scores = RandomScorer().score(view)[0]
    shares = torch.histc(scores, bins=10, min=0.0, max=1.0) / len(scores)
    assert shares.sub(0.1).abs().max() < 0.015
    assert torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1].abs() < 0.03


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (4, 4), (3, 7), (16, 16)])
def test_the_coverage_order_spreads_its_prefixes(rows: int, cols: int):
    order = coverage_order(rows, cols)
    assert sorted(order) == list(range(rows * cols))
    for k in (4, 8, 16):
        if k * 4 > rows * cols:
            continue
        picks = [divmod(cell, cols) for cell in order[:k]]
        quarters = {(r * 2 // rows, c * 2 // cols) for r, c in picks}
        assert len(quarters) == 4


def test_semantic_is_the_mean_probability(close):
    rows = Rows(torch.tensor([[4.0, 2.0]]), 8.0, torch.tensor([[0.5, 0.125]]))
    view = replace(sample(example(), 0), attention={"last": rows})
    close(SemanticScorer().score(view), torch.tensor([[0.5, 0.25]]))
    close(SemanticScorer(debias=True).score(view), torch.tensor([[8.0, 16.0]]))


def test_tokens_that_no_row_can_see_score_nothing():
    rows = Rows(torch.zeros(1, 2), 8.0, torch.tensor([[0.0, 0.5]]))
    view = replace(sample(example(), 0), attention={"last": rows})
    assert SemanticScorer(debias=True).score(view).tolist() == [[0.0, 0.0]]


def test_semantic_refuses_unknown_rows():
    with pytest.raises(ConfigError, match="rows 'first' is unknown; known: last, prompt, prefill"):
        SemanticScorer("first")
    with pytest.raises(ConfigError, match="layer -1 is none; give a number from 0 on"):
        SemanticScorer("last", layer=-1)


def test_semantic_reads_the_layer_that_it_names():
    near, early = (Rows(torch.tensor([[a, 1.0]]), 1.0, torch.ones(1, 2)) for a in (2.0, 0.5))
    view = replace(sample(example(), 0), attention={"last": near, "last@0": early})
    assert SemanticScorer(layer=0).needs == {"attention:last@0"}
    assert SemanticScorer(layer=0).score(view).tolist() == [[0.5, 1.0]]
    assert SemanticScorer().score(view).tolist() == [[2.0, 1.0]]
