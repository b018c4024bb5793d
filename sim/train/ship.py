"""Put a trained pocket policy where the package finds it: float16 weights and a model card.

Example::

    python -m vla_prune_sim.train.ship --run runs/pocket/libero_spatial --suite libero_spatial
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path

import torch
from tokenizers import Tokenizer

from vla_prune import report
from vla_prune.models.openvla import OpenVLA


def main() -> None:
    """Convert and describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--looks", default="stand-in assets, no shadows, no reflections")
    args = parser.parse_args()
    target = Path(str(resources.files("vla_prune"))) / "models" / f"pocket_{args.suite}"
    model = OpenVLA.from_pretrained(args.run / "policy").to(torch.float16)
    model.save_pretrained(target, Tokenizer.from_file(str(args.run / "policy" / "tokenizer.json")))
    lines = [json.loads(line) for line in (args.run / "curve.jsonl").read_text().splitlines()]
    curve = list({line["step"]: line for line in lines if "action" in line}.values())
    settings = json.loads((args.run / "settings.json").read_text())
    config = model.config
    card = (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            suite=args.suite,
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            tokens=config.n_visual // len(config.views),
            layers=config.llm["num_hidden_layers"],
            width=config.llm["hidden_size"],
            chunk=config.chunk,
            frames=curve[-1]["frames"],
            looks=args.looks,
            steps=curve[-1]["step"],
            batch=settings["batch"],
            lr=settings["lr"],
            seed=settings["seed"],
            keep=" or ".join(f"{k:g}" for k in sorted(set(settings["keep"]))),
            tail=settings["dense_tail"],
            commit=report.commit(),
            processor=report.machine()["processor"],
        )
    )
    stride = max(1, len(curve) // 12)
    for line in [*curve[::stride][:-1], curve[-1]]:
        values = (line["action"], line["gripper"] * 4, line["token"] / 0.15, line["offset"] / 3.0)
        cells = " | ".join(f"{value:.3f}" for value in values)
        card += f"| {line['step']} | {cells} |\n"
    card += "\nGripper and token class are losses; the offset is in metres.\n"
    (target / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
