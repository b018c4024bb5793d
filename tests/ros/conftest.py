"""The packages of ros2_ws, importable from a checkout where no workspace is built."""

from __future__ import annotations

import sys
from pathlib import Path

WORKSPACE = Path(__file__).resolve().parents[2] / "ros2_ws" / "src"
for name in ("vla_prune_ros", "vla_prune_sim_bridge"):
    sys.path.insert(0, str(WORKSPACE / name))
