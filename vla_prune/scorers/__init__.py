"""Scorers: importance per visual token. One method, one file."""

from vla_prune.scorers.action_history import ActionHistoryScorer
from vla_prune.scorers.base import Scorer
from vla_prune.scorers.foreground import ForegroundScorer
from vla_prune.scorers.grid import GridScorer
from vla_prune.scorers.norm import NormScorer
from vla_prune.scorers.random import RandomScorer
from vla_prune.scorers.semantic import SemanticScorer

SCORERS = {
    "action_history": ActionHistoryScorer,
    "foreground": ForegroundScorer,
    "grid": GridScorer,
    "norm": NormScorer,
    "random": RandomScorer,
    "semantic": SemanticScorer,
}

__all__ = ["SCORERS", "Scorer", *sorted(cls.__name__ for cls in SCORERS.values())]
