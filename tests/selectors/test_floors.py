"""Shares of a budget that go by place and by doubt, beside any selector."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vla_prune.errors import ConfigError
from vla_prune.selectors import (
    SELECTORS,
    Floors,
    MaxMinSelector,
    RankedMaxSelector,
    TopKSelector,
)
from vla_prune.selectors.floors import fill, lift
from vla_prune.selectors.ranks import even_spread
from vla_prune.tokens import History, Rows, TokenLayout, TokenView, ViewGrid

LAYOUT = TokenLayout((ViewGrid("front", 6, 6), ViewGrid("wrist", 3, 4)))
N, FRONT = LAYOUT.total, 36


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def view(observed: Tensor | None = None, ticks: tuple[int, int] = (3, 4)) -> TokenView:
    features = draw(2, N, 5, seed=9) - 0.5
    index = torch.arange(N).expand(2, -1)
    history = None if observed is None else History(torch.zeros(observed.shape), observed)
    tick = torch.tensor(ticks)
    return TokenView(features, features, index, LAYOUT, LAYOUT.sizes, {}, history, tick)


def kept(columns: Tensor) -> list[set[int]]:
    return [set(row.tolist()) for row in columns]


# --- coverage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [8, 16, 24])
def test_coverage_reaches_every_quarter_of_every_view(k: int):
    """By the size of the views: a third as many in the smaller one."""
    columns = Floors(coverage=1.0).take(view(), k)[0].tolist()
    front = [c for c in columns if c < FRONT]
    wrist = [c - FRONT for c in columns if c >= FRONT]
    assert len(front) == 3 * len(wrist) == 3 * k // 4
    assert len({(c // 6 * 2 // 6, c % 6 * 2 // 6) for c in front}) == 4
    if k >= 16:
        assert len({(c // 4 * 2 // 3, c % 4 * 2 // 4) for c in wrist}) == 4


def test_coverage_is_the_same_at_every_call_and_a_later_cut_finds_it_again():
    early = Floors(coverage=0.5).take(view(), 20)
    assert torch.equal(early, Floors(coverage=0.5).take(view(ticks=(8, 9)), 20))
    left = torch.tensor(sorted(kept(early)[0] | {3, 7, 40})).expand(2, -1)
    later = left.gather(1, Floors(coverage=0.5).take(view().take(left), 8))
    assert kept(later)[0] < kept(early)[0]


def test_the_spread_orders_all_tokens():
    assert len(even_spread(view())[0].unique()) == N


# --- exploration -------------------------------------------------------------------------------


def test_exploration_takes_what_the_actions_have_not_seen_for_longest():
    observed = torch.ones(2, 3, N, dtype=torch.bool)
    observed[:, 2, 10:20] = False  # not at the last call
    observed[:, 1:, 14:17] = False  # not at the last two
    observed[:, :, 30] = False  # never
    for count, expected in ((1, {30}), (4, {30, 14, 15, 16}), (11, {30, *range(10, 20)})):
        columns = Floors(exploration=count / 24).take(view(observed), 24)
        assert kept(columns) == [expected] * 2


def test_exploration_draws_among_equals_by_seed_and_tick():
    floors = Floors(exploration=0.5)
    first = floors.take(view(), 16)
    assert torch.equal(first, floors.take(view(), 16))
    assert not torch.equal(first[0], first[1])  # other ticks
    assert torch.equal(first.flip(0), floors.take(view(ticks=(4, 3)), 16))
    assert not torch.equal(first, Floors(exploration=0.5, seed=1).take(view(), 16))


def test_exploration_comes_to_every_token_in_time():
    """What was explored is observed, so that the others' turn comes."""
    observed = torch.zeros(2, 9, N, dtype=torch.bool)
    for tick in range(9):
        columns = Floors(exploration=0.5).take(view(observed, (tick, tick)), 12)
        now = torch.zeros(2, 1, N, dtype=torch.bool).scatter(2, columns[:, None], True)
        observed = torch.cat([observed[:, 1:], now], dim=1)
    assert observed.any(dim=1).all()


def test_coverage_and_exploration_never_take_the_same_token():
    for k in range(1, N):
        columns = Floors(0.6, 0.4).take(view(), k)
        assert all(len(row) == columns.shape[1] <= k for row in kept(columns))


@pytest.mark.parametrize(("coverage", "exploration"), [(-0.1, 0.0), (0.0, -0.1), (0.6, 0.5)])
def test_floors_are_shares(coverage: float, exploration: float):
    with pytest.raises(ConfigError, match="must not be negative, and together at most 1"):
        Floors(coverage, exploration)


# --- beside any selector -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("k", [1, 9, N - 1])
def test_floors_go_with_every_selector(name: str, k: int):
    selector = SELECTORS[name]()
    scores = draw(min(selector.signals[1], 2), 2, N)
    taken = Floors(0.3, 0.3).take(view(), k)
    columns = fill(selector, taken, scores, view(), k)
    assert columns.shape == (2, k)
    assert (columns.diff(dim=1) > 0).all()
    assert all(floor <= row for floor, row in zip(kept(taken), kept(columns), strict=True))


def test_no_choice_is_wasted_on_what_is_kept_anyway():
    """Two floor tokens have the best scores of all: the selector's six come on top."""
    taken = Floors(coverage=0.25).take(view(), 8)
    scores = draw(1, 2, N).scatter(2, taken[None], 2.0)
    columns = fill(TopKSelector(), taken, scores, view(), 8)
    assert torch.equal(columns, TopKSelector().select(scores, view(), 8))


def test_without_floors_the_selector_is_left_alone():
    scores, seen = draw(1, 2, N), view()
    columns = fill(TopKSelector(), Floors().take(seen, 8), scores, seen, 8)
    assert torch.equal(columns, TopKSelector().select(scores, seen, 8))


def test_the_selector_sees_the_other_tokens_with_all_that_belongs_to_them():
    seen = []

    class Looking(TopKSelector):
        def select(self, scores, view, k):
            seen.append((scores, view))
            return super().select(scores, view, k)

    whole = replace(
        view(draw(2, 3, N) > 0.5),
        attention={"last": Rows(draw(2, N, seed=1), 1.0, draw(1, N, seed=2))},
        encoded=draw(2, N, 3, seed=3),
    )
    scores = draw(1, 2, N)
    taken = Floors(coverage=0.5).take(whole, 8)
    fill(Looking(), taken, scores, whole, 8)
    ((left, part),) = seen
    assert part.counts is None
    for row in range(2):
        others = sorted(set(range(N)) - kept(taken)[row])
        assert part.index[row].tolist() == others
        assert torch.equal(left[:, row], scores[:, row, others])
        assert torch.equal(part.encoded[row], whole.encoded[row, others])
        assert torch.equal(part.features[row], whole.features[row, others])
        assert torch.equal(
            part.attention["last"].total[row], whole.attention["last"].total[row, others]
        )
        assert torch.equal(
            part.attention["last"].expected[row], whole.attention["last"].expected[0, others]
        )
        assert torch.equal(part.history.observed[row], whole.history.observed[row][:, others])


# --- a least for every view --------------------------------------------------------------------

NONE = torch.zeros(2, 0, dtype=torch.long)


def test_a_choice_that_holds_enough_of_every_view_is_left_alone():
    scores = draw(1, 2, N)
    for selector in (TopKSelector(), MaxMinSelector()):
        shown = scores[: selector.signals[1]]
        columns = selector.select(shown, view(), 12)
        assert torch.equal(lift(columns, NONE, shown, view(), (3, 1)), columns)


def test_a_view_that_falls_short_gets_its_best():
    """All scores are in the front view; the wrist is owed three."""
    scores = draw(1, 2, N)
    scores[..., :FRONT] += 1.0
    columns = TopKSelector().select(scores, view(), 12)
    lifted = kept(lift(columns, NONE, scores, view(), (6, 3)))
    for row in range(2):
        wrist = set((scores[0, row, FRONT:].topk(3).indices + FRONT).tolist())
        front = set(scores[0, row, :FRONT].topk(9).indices.tolist())
        assert lifted[row] == wrist | front


def test_what_is_taken_goes_last():
    """The least of one view pushes out scored tokens of the other, not its floors."""
    scores = draw(1, 2, N)
    scores[..., :FRONT] += 1.0
    taken = torch.tensor([[0, 1, 2, 3]] * 2)
    scores[..., :4] = 0.0
    columns = fill(RankedMaxSelector(), taken, scores, view(), 12)
    lifted = kept(lift(columns, taken, scores, view(), (6, 6)))
    assert all({0, 1, 2, 3} <= row and len([c for c in row if c >= FRONT]) == 6 for row in lifted)


def test_a_view_with_fewer_left_than_its_least_keeps_all():
    left = torch.cat([torch.arange(20), torch.tensor([FRONT, FRONT + 5])]).expand(2, -1)
    scores = torch.linspace(1.0, 0.0, 22).expand(1, 2, 22)
    part = view().take(left)
    columns = TopKSelector().select(scores, part, 10)
    lifted = lift(columns, NONE, scores, part, (4, 4))
    assert lifted[0].tolist() == [*range(8), 20, 21]


def test_floors_and_leasts_look_at_no_tensor_value():
    """On the meta device there are no values: a sync or a branch on one would raise."""
    seen = view(torch.ones(2, 3, N, dtype=torch.bool))
    meta = replace(
        seen,
        tokens=seen.tokens.to("meta"),
        features=seen.features.to("meta"),
        index=seen.index.to("meta"),
        history=History(seen.history.values.to("meta"), seen.history.observed.to("meta")),
        tick=seen.tick.to("meta"),
    )
    scores = draw(2, 2, N).to("meta")
    taken = Floors(0.3, 0.2).take(meta, 10)
    columns = fill(RankedMaxSelector(), taken, scores, meta, 10)
    lifted = lift(columns, taken, scores, meta, (3, 3))
    assert (lifted.device.type, lifted.shape) == ("meta", (2, 10))
