"""Budgets: how many visual tokens stay, per camera view. One method, one file."""

from vla_prune.budgets.base import Budget
from vla_prune.budgets.constant import ConstantBudget
from vla_prune.budgets.per_view import PerViewBudget
from vla_prune.budgets.shared import SharedBudget
from vla_prune.budgets.tokens import TokensBudget

BUDGETS = {
    "constant": ConstantBudget,
    "per_view": PerViewBudget,
    "shared": SharedBudget,
    "tokens": TokensBudget,
}

__all__ = ["BUDGETS", "Budget", *sorted(cls.__name__ for cls in BUDGETS.values())]
