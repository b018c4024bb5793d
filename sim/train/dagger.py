"""A policy drives and an expert says at each of its looks what it would do: the shared part.

DAgger (Ross, Gordon, Bagnell 2011, arXiv 1011.0686), with the expert in control of some looks.
Knows no simulator.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vla_prune.types import Observation

EXPERT = 0.25  # share of the looks that the expert acts on itself
Look = Callable[[Observation], np.ndarray]  # the actions ``[chunk, A]`` of one policy call


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--policy``, ``--recipes`` and ``--cut-layer``."""
    parser.add_argument("--policy", help="configs/policy/*.yaml: it drives (DAgger)")
    parser.add_argument(
        "--recipes", nargs="+", default=["dense"], help="NAME or NAME:KEEP; one an episode"
    )
    parser.add_argument("--cut-layer", type=int, default=2, help="of those recipes")


def learners(args: argparse.Namespace) -> list[Callable[[], Look]]:
    """One for each recipe, all on one model; each call of one begins an episode."""
    from vla_prune.build import build_adapter, build_recipe

    adapter = build_adapter(args.policy)
    entries = [recipe.partition(":") for recipe in args.recipes]
    return [
        partial(
            _begin, adapter, build_recipe(name, float(keep) if keep else None, (), args.cut_layer)
        )
        for name, _, keep in entries
    ]


def _begin(adapter: Any, pruner: Any) -> Look:
    """A policy without memories, which is attached anew for every look."""
    from vla_prune.policy import attach
    from vla_prune.types import PolicyState

    state = PolicyState()

    def look(seen: Observation) -> np.ndarray:
        with attach(pruner, adapter) as policy:
            return policy.act_one(seen, state).actions

    return look
