"""A small robot for the nodes' logic: a contract, real messages, and a real tiny policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vla_prune_ros import wire
from vla_prune_ros.contract import Contract, read_contract
from vla_prune_ros.convert import image_fields
from vla_prune_ros.policy_loop import Buckets, PolicyLoop, Senses
from vla_prune_ros.stamps import header_fields
from vla_prune_ros.status import Health
from vla_prune_ros.tokens import Grid

from tests.models.tiny import CONFIGS
from vla_prune.adapters.openvla import OpenVLAAdapter, hashed_words
from vla_prune.build import build_recipe
from vla_prune.models import OpenVLA
from vla_prune.policy import attach
from vla_prune.runtime.clock import ManualClock
from vla_prune.tune.pilot import Pilot

IMAGE, JOINTS = "sensor_msgs/msg/Image", "sensor_msgs/msg/JointState"
CHUNK, STATUS = "vla_prune_msgs/msg/ActionChunk", "vla_prune_msgs/msg/PruneStatus"
START_S = 100.0


def contract_data() -> dict[str, Any]:
    """A robot with two cameras, five joints to read and two to move."""
    camera = {"type": IMAGE, "align": {"max_age_ms": 150}}
    return {
        "name": "small",
        "rate_hz": 20,
        "tolerance_ms": 20,
        "max_action_age_ms": 300,
        "observations": [
            {"key": "observation.images.image", "topic": "front/image_raw", **camera},
            {"key": "observation.images.wrist", "topic": "wrist/image_raw", **camera},
            {
                "key": "observation.state",
                "topic": "joint_states",
                "type": JOINTS,
                "selector": {"names": [f"position.j{i}" for i in range(5)]},
                "align": {"max_age_ms": 150},
            },
        ],
        "tasks": [{"topic": "task", "type": "std_msgs/msg/String"}],
        "actions": [
            {
                "publish": {
                    "topic": "joint_trajectory",
                    "type": "trajectory_msgs/msg/JointTrajectory",
                },
                "selector": {"names": ["j0", "j1"]},
            }
        ],
        "limits": {"low": [-1, -1], "high": [1, 1], "rate": [2.0, 2.0]},
        "hold": "hold",
    }


def contract(**changes: Any) -> Contract:
    """The same, with top-level keys replaced."""
    return read_contract(contract_data() | changes, "small.yaml")


def image(stamp_s: float, seed: int = 0, size: int = 48) -> Any:
    """A camera message."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return wire.make(IMAGE, image_fields(pixels, stamp_s))


def joints(stamp_s: float, value: float = 0.1) -> Any:
    """A joint state, its joints in another order than the contract's."""
    names = [f"j{i}" for i in reversed(range(5))]
    fields = {
        "header": header_fields(stamp_s),
        "name": names,
        "position": np.full(5, value),
    }
    return wire.make(JOINTS, fields)


def chunk(
    stamp_s: float,
    rows: Any = ((0.1, 0.2),) * 10,
    episode: str = "e1",
    tick: int = 0,
    dt_s: float = 0.05,
    names: tuple[str, ...] = ("j0", "j1"),
) -> Any:
    """An action chunk message."""
    values = np.asarray(rows, np.float32)
    fields = {
        "header": header_fields(stamp_s),
        "episode_id": episode,
        "tick": tick,
        "names": list(names),
        "horizon": len(values),
        "dt": dt_s,
        "values": values.reshape(-1),
    }
    return wire.make(CHUNK, fields)


def tiny_adapter() -> OpenVLAAdapter:
    """A real policy that is small: two views of sixteen tokens, chunks of three."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return OpenVLAAdapter(OpenVLA(CONFIGS["pocket"]).eval(), hashed_words, dt_s=0.05)


class Robot:
    """Cameras and joints that a test moves through time."""

    def __init__(self, senses: Senses, clock: ManualClock) -> None:
        self.senses, self.clock, self.frames = senses, clock, 0

    def sense(self, skip: tuple[str, ...] = (), late_s: float = 0.0) -> None:
        """Fresh messages of every topic but those skipped, stamped ``late_s`` ago."""
        self.frames += 1
        stamp = self.clock.now() - late_s
        for camera in ("image", "wrist"):
            if camera not in skip:
                self.senses.put_image(camera, image(stamp, self.frames))
        if "joint_states" not in skip:
            self.senses.put_state(self.senses.contract.states[0], joints(stamp))


@contextmanager
def fused(
    recipe: str = "dual_level",
    keep: tuple[float, ...] = (1.0, 0.5, 0.25),
    pilot: Pilot | None = None,
    **changes: Any,
) -> Iterator[tuple[PolicyLoop, Robot, ManualClock]]:
    """A policy loop around the tiny policy."""
    adapter = tiny_adapter()
    clock, health = ManualClock(START_S), Health("policy_node")
    senses = Senses(contract(**changes), clock, health, "pick up the bowl")
    pruners = [build_recipe(recipe, k, cut_layer=1) for k in keep]
    with attach(pruners, adapter) as policy:
        grids = [Grid(v.name, v.rows, v.cols) for v in adapter.layout.views]
        buckets = Buckets(keep, keep[-1] if pilot is None else keep[0])
        loop = PolicyLoop(senses, policy, buckets, grids, 1000.0, "tiny", recipe, pilot)
        yield loop, Robot(senses, clock), clock
