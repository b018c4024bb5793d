"""How many tokens stay, and what is refused."""

from __future__ import annotations

import pytest

from vla_prune.budgets import (
    BUDGETS,
    ConstantBudget,
    PerViewBudget,
    SharedBudget,
    TokensBudget,
)
from vla_prune.errors import ConfigError
from vla_prune.tokens import TokenLayout, ViewGrid

LAYOUT = TokenLayout((ViewGrid("front", 16, 16), ViewGrid("wrist", 3, 3)))


@pytest.mark.parametrize(
    ("keep_ratio", "kept"),
    [(1.0, (256, 9)), (0.5, (128, 4)), (0.25, (64, 2)), (0.125, (32, 1)), (1e-6, (1, 1))],
)
def test_a_ratio_is_rounded_view_by_view(keep_ratio, kept):
    assert ConstantBudget(keep_ratio).keep(LAYOUT) == kept
    assert PerViewBudget(keep_ratio).keep(LAYOUT) == kept


def test_no_budget_keeps_more_than_there_is():
    for budget in (ConstantBudget(), PerViewBudget(), TokensBudget(9)):
        assert all(k <= n for k, n in zip(budget.keep(LAYOUT), LAYOUT.sizes, strict=True))


def test_views_without_tokens_keep_none():
    layout = TokenLayout((ViewGrid("front", 4, 4), ViewGrid("off", 0, 4)))
    assert ConstantBudget(0.5).keep(layout) == (8, 0)


def test_views_by_name():
    assert PerViewBudget(0.25, {"wrist": 1.0}).keep(LAYOUT) == (64, 9)


def test_a_view_that_the_policy_lacks():
    with pytest.raises(ConfigError, match="camera view 'wrst' is unknown; did you mean 'wrist'"):
        PerViewBudget(0.25, {"wrst": 1.0}).keep(LAYOUT)


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_an_exact_number_of_every_view(tokens):
    assert TokensBudget(tokens).keep(LAYOUT) == (tokens, tokens)


def test_more_tokens_than_a_view_has():
    with pytest.raises(ConfigError, match="10 tokens are asked of view 'wrist', which has 9"):
        TokensBudget(10).keep(LAYOUT)


def test_fewer_than_no_tokens():
    with pytest.raises(ConfigError, match="-1 tokens cannot be kept; give 0 or more"):
        TokensBudget(-1)


@pytest.mark.parametrize("keep_ratio", [0.0, -0.5, 1.5, float("nan")])
def test_a_keep_ratio_outside_of_its_range(keep_ratio):
    message = r"keep_ratio (0\.0|-0\.5|1\.5|nan) is not in \(0, 1\]; it is the fraction kept"
    with pytest.raises(ConfigError, match=message):
        ConstantBudget(keep_ratio)
    with pytest.raises(ConfigError, match=message):
        PerViewBudget(keep_ratio)
    with pytest.raises(ConfigError, match=message):
        PerViewBudget(0.5, {"wrist": keep_ratio})


@pytest.mark.parametrize(
    "budget", [ConstantBudget(0.25), PerViewBudget(0.25, {"wrist": 1.0}), TokensBudget(3)]
)
def test_a_fixed_split_leaves_nothing_to_the_scores(budget):
    assert budget.least(LAYOUT) == budget.keep(LAYOUT)


@pytest.mark.parametrize(
    ("floor", "least"), [(0.0, (0, 0)), (0.25, (16, 0)), (0.5, (32, 1)), (1.0, (64, 2))]
)
def test_a_shared_total_is_that_of_constant_above_a_floor_per_view(floor, least):
    budget = SharedBudget(0.25, floor)
    assert budget.keep(LAYOUT) == ConstantBudget(0.25).keep(LAYOUT)
    assert budget.least(LAYOUT) == least


@pytest.mark.parametrize("floor", [-0.1, 1.1, float("nan")])
def test_a_floor_is_a_share(floor):
    with pytest.raises(ConfigError, match=r"shared: floor (-0\.1|1\.1|nan) is not in \[0, 1\]"):
        SharedBudget(0.5, floor)
    with pytest.raises(ConfigError, match=r"shared: keep_ratio 0\.0 is not in"):
        SharedBudget(0.0)


def test_every_budget_is_tested_here():
    known = {ConstantBudget, PerViewBudget, SharedBudget, TokensBudget}
    assert set(BUDGETS.values()) == known
