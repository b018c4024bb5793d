"""The OpenVLA family on today's transformers parts, and the pocket policies of the same class."""

from vla_prune.models.actions import ActionTokenizer, Statistics
from vla_prune.models.checkpoint import load_tokenizer
from vla_prune.models.config import OpenVLAConfig, TowerConfig, openvla_7b, openvla_oft_7b
from vla_prune.models.openvla import OpenVLA, OpenVLAInputs

__all__ = [
    "ActionTokenizer",
    "OpenVLA",
    "OpenVLAConfig",
    "OpenVLAInputs",
    "Statistics",
    "TowerConfig",
    "load_tokenizer",
    "openvla_7b",
    "openvla_oft_7b",
]
