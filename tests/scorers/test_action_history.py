"""The action history by hand, on numbers small enough to follow."""

from __future__ import annotations

import pytest
import torch

from vla_prune.errors import ConfigError
from vla_prune.scorers import ActionHistoryScorer
from vla_prune.tokens import History, TokenLayout, TokenView, ViewGrid

N = 4
LAYOUT = TokenLayout((ViewGrid("front", 1, N),))


def view(values: list, observed: list | None = None) -> TokenView:
    """One sample; ``values`` oldest step first."""
    seen = torch.ones(1, len(values), N) if observed is None else torch.tensor([observed])
    history = History(torch.tensor([values]), seen.bool())
    index = torch.arange(N)[None]
    return TokenView(index[..., None], index[..., None], index, LAYOUT, (N,), history=history)


@pytest.mark.parametrize("form", ["paper", "observed"])
def test_the_newest_step_weighs_most(form: str, close):
    """One look each: three steps ago at token 0, two at 1, last at 2."""
    seen = view([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    expected = torch.tensor([[0.64, 0.8, 1.0, 0.0]])
    scores = ActionHistoryScorer(form=form).score(seen)
    close(scores / scores.max(), expected)


def test_paper_counts_unobserved_as_zero(close):
    values = [[0.3, 0.5, 0.1, 0.1], [0.2, 0.0, 0.4, 0.0], [0.6, 0.0, 0.2, 0.0]]
    observed = [[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 0]]
    expected = torch.tensor(
        [
            [
                0.64 * 0.3 + 0.8 * 0.2 + 0.6,
                0.64 * 0.5,
                0.64 * 0.1 + 0.8 * 0.4 + 0.2,
                0.64 * 0.1,
            ]
        ]
    )
    close(ActionHistoryScorer(form="paper").score(view(values, observed)), expected)


def test_paper_never_takes_a_dropped_token_back():
    """After a full window without it the guide is zero, however strong it once was."""
    values = [[0.1, 0.0, 0.1, 0.1]] * 3
    observed = [[1, 0, 1, 1]] * 3
    scores = ActionHistoryScorer(form="paper").score(view(values, observed))
    assert scores.argmin() == 1
    assert scores[0, 1] == 0.0


def test_ours_is_the_decayed_mean_where_all_was_observed(close):
    values = [[0.4, 0.2, 0.2, 0.2], [0.1, 0.6, 0.2, 0.1]]
    expected = (0.8 * torch.tensor([values[0]]) + torch.tensor([values[1]])) / 1.8
    close(ActionHistoryScorer().score(view(values)), expected)


def test_ours_gives_unobserved_tokens_the_floor(close):
    """Token 3 was never seen: half the mean of what was. Token 1 was seen once, two steps ago."""
    values = [[0.3, 0.6, 0.0, 0.0], [0.3, 0.0, 0.3, 0.0]]
    observed = [[1, 1, 1, 0], [1, 0, 1, 0]]
    mean = (0.8 * (0.3 + 0.6 + 0.0) + (0.3 + 0.3)) / (0.8 * 3 + 2)
    trust = 0.8 / 1.8
    expected = torch.tensor(
        [
            [
                0.3,
                trust * 0.6 + (1 - trust) * 0.5 * mean,
                0.3 / 1.8,
                0.5 * mean,
            ]
        ]
    )
    close(ActionHistoryScorer().score(view(values, observed)), expected)


def test_ours_lets_old_evidence_fade_towards_the_floor():
    """The longer a strong token stays unobserved, the less its old glance is worth."""
    scores = []
    for gone in range(4):
        values = [[0.2, 0.9, 0.2, 0.2]] + [[0.2, 0.0, 0.2, 0.2]] * gone
        observed = [[1, 1, 1, 1]] + [[1, 0, 1, 1]] * gone
        scores.append(ActionHistoryScorer().score(view(values, observed))[0, 1].item())
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0.0


def test_ours_ignores_steps_that_do_not_exist_yet(close):
    """A half-filled window reads like a shorter one."""
    step = [0.4, 0.3, 0.2, 0.1]
    half = view([[0.0] * N, step], [[0] * N, [1] * N])
    close(ActionHistoryScorer().score(half), torch.tensor([step]))


@pytest.mark.parametrize("form", ["paper", "observed"])
def test_scale_does_not_matter(form: str, close):
    values = [[0.4, 0.2, 0.3, 0.1], [0.1, 0.6, 0.2, 0.1]]
    observed = [[1, 0, 1, 1], [1, 1, 0, 1]]
    scorer = ActionHistoryScorer(form=form)
    ten = [[10 * v for v in step] for step in values]
    close(scorer.score(view(ten, observed)), 10 * scorer.score(view(values, observed)))


def test_unknown_forms_are_refused():
    with pytest.raises(ConfigError, match="form 'mean' is unknown; known: observed, paper"):
        ActionHistoryScorer(form="mean")
