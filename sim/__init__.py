"""Closed loops for vla_prune: simulators, rollouts and training. Imports vla_prune only."""

import vla_prune_sim.drive  # registers VlaPrune/Drive-v0
import vla_prune_sim.libero  # registers VlaPrune/Libero-v0

__all__ = ["vla_prune_sim"]
