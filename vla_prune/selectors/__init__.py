"""Selectors: scores and a count make the kept set. One method, one file."""

from vla_prune.selectors.agreement import AgreementSelector
from vla_prune.selectors.base import Selector
from vla_prune.selectors.floors import Floors
from vla_prune.selectors.maxmin import MaxMinSelector
from vla_prune.selectors.ranked_max import RankedMaxSelector
from vla_prune.selectors.ranked_sum import RankedSumSelector
from vla_prune.selectors.ranked_union import RankedUnionSelector
from vla_prune.selectors.seeded_maxmin import SeededMaxMinSelector
from vla_prune.selectors.topk import TopKSelector
from vla_prune.selectors.union_maxmin import UnionMaxMinSelector

SELECTORS = {
    "agreement": AgreementSelector,
    "maxmin": MaxMinSelector,
    "ranked_max": RankedMaxSelector,
    "ranked_sum": RankedSumSelector,
    "ranked_union": RankedUnionSelector,
    "seeded_maxmin": SeededMaxMinSelector,
    "topk": TopKSelector,
    "union_maxmin": UnionMaxMinSelector,
}

__all__ = ["SELECTORS", "Floors", "Selector", *sorted(cls.__name__ for cls in SELECTORS.values())]
