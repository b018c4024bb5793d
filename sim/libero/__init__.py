"""LIBERO in closed loop: environments, a scripted teacher, layouts and labels.

Importing this registers ``VlaPrune/Libero-v0`` and loads neither hf-libero nor MuJoCo. Knows no
policy.

    >>> import gymnasium
    >>> env = gymnasium.make("vla_prune_sim:VlaPrune/Libero-v0", task=3)  # doctest: +SKIP
"""

from __future__ import annotations

import gymnasium

if "VlaPrune/Libero-v0" not in gymnasium.registry:
    gymnasium.register("VlaPrune/Libero-v0", entry_point="vla_prune_sim.libero.env:LiberoEnv")
