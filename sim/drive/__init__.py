"""Closed-loop driving on nuScenes roots, real or made here.

Importing this registers ``VlaPrune/Drive-v0`` and loads nothing else. Knows no policy.
"""

from __future__ import annotations

import gymnasium

if "VlaPrune/Drive-v0" not in gymnasium.registry:
    gymnasium.register("VlaPrune/Drive-v0", entry_point="vla_prune_sim.drive.env:DriveEnv")
