"""Plain code between a policy and a robot: numpy only, no torch."""

from vla_prune.runtime.chunks import ChunkPlayer, Command, Offer, Plan
from vla_prune.runtime.clock import Clock, ClockWatch, Jump, ManualClock, SystemClock
from vla_prune.runtime.deadline import Cycle, DeadlineMonitor, DeadlineReport
from vla_prune.runtime.hold import HOLDS, Brake, ContinueChunk, Hold, HoldRule, make_hold
from vla_prune.runtime.limits import Limited, Limits
from vla_prune.runtime.slot import Drops, FrameSet, FrameSync, NewestSlot

__all__ = [
    "HOLDS",
    "Brake",
    "ChunkPlayer",
    "Clock",
    "ClockWatch",
    "Command",
    "ContinueChunk",
    "Cycle",
    "DeadlineMonitor",
    "DeadlineReport",
    "Drops",
    "FrameSet",
    "FrameSync",
    "Hold",
    "HoldRule",
    "Jump",
    "Limited",
    "Limits",
    "ManualClock",
    "NewestSlot",
    "Offer",
    "Plan",
    "SystemClock",
    "make_hold",
]
