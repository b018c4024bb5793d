"""Which decoder layer's prompt rows look at what the instruction names, on demonstrations.

Answers what ``prompt_layer`` of a policy config should be: the layer whose best quarter of the
visual tokens holds most of those that show the target. Policies differ in it; a recipe that reads
another layer may keep everything but the target. Knows no simulator::

    python -m vla_prune_sim.train.look --policy pocket_libero_object --demos runs/demos
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.train.frames import FrameSet

from vla_prune import report
from vla_prune.budgets import ConstantBudget
from vla_prune.build import build_adapter
from vla_prune.policy import attach
from vla_prune.pruner import Cut, Pruner
from vla_prune.scorers import SemanticScorer
from vla_prune.selectors import TopKSelector
from vla_prune.types import Observation


def recall(
    adapter: Any, frames: FrameSet, index: np.ndarray, layer: int, label: str, keep: float
) -> float:
    """Mean share of a class's visual tokens among the best ``keep`` of one layer's prompt rows.

    Args:
        adapter: of the policy.
        frames: demonstrations of its views.
        index: which frames; those that show nothing of the class do not count.
        layer: decoder layer, from 0 to the last but one.
        label: name of a patch class, such as ``target``.
        keep: share of each view's tokens.
    """
    scorer = SemanticScorer("prompt", layer=layer)
    cut = Cut(f"decoder.{layer + 1}", (scorer,), TopKSelector(), ConstantBudget(keep))
    number, shares = frames.classes.index(label), []
    with attach(Pruner((cut,), name="look"), adapter) as policy:
        for i in index:
            state, _, labels, _ = frames.rows[i]
            images = dict(zip(frames.views, frames.images[i], strict=True))
            seen = Observation(images, frames.sentences[i], state)
            kept = policy.act_one(seen, policy.new_state()).kept[cut.site]
            shown = labels == number
            if shown.any():
                shares.append(shown[kept].sum() / shown.sum())
    return float(np.mean(shares)) if shares else float("nan")


def main(argv: list[str] | None = None) -> None:
    """The command line: one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--demos", type=Path, required=True)
    parser.add_argument("--label", default="target", help="patch class")
    parser.add_argument("--frames", type=int, default=200, help="drawn from all of them")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    frames, adapter = FrameSet(args.demos, held_out=True), build_adapter(args.policy)
    if args.label not in frames.classes:
        raise SystemExit(
            f"--label: {args.demos} has no patch class {args.label!r}; "
            f"it has {', '.join(frames.classes)}."
        )
    rng = np.random.default_rng(args.seed)
    index = rng.choice(len(frames), min(args.frames, len(frames)), replace=False)
    found = {
        layer: recall(adapter, frames, index, layer, args.label, args.keep)
        for layer in range(adapter.shape.layers - 1)
    }
    told = {"policy": args.policy, "frames": len(index), "keep_ratio": args.keep}
    about = report.provenance(args.seed, "python -m vla_prune_sim.train.look")
    print(json.dumps(about | told | {"recall": found}))


if __name__ == "__main__":
    main()
