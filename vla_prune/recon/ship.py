"""Put a trained reconstructor where the package finds it: float16 weights and a model card.

Example::

    python -m vla_prune.recon.ship --run runs/recon/pocket_drive
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path

import torch

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.models import checkpoint
from vla_prune.recon.checkpoint import load_reconstructor, read_config, save_reconstructor
from vla_prune.recon.train import WEIGHTS

CHOSEN = {
    "best": "the checkpoint that found the foreground best on training pictures",
    "last": "the last checkpoint",
}
CARD = """# {name}

The foreground reconstructor for the vision encoder of `{policy}` (fingerprint `{fingerprint}`):
FastDriveVLA's ReconPruner (arXiv 2507.23318) in small, {parameters:.2f} M parameters, float16. Of
no use behind another encoder, which is refused.

| | |
|---|---|
| data | {frames} camera pictures of `{source}`; foreground: {foreground} |
| training | {objective}, {batch} pictures a step, AdamW {lr} (pruner {pace} of it), seed {seed} |
| weights | after {steps} of {planned} steps: {chosen} |
| thrown away | the decoder that redrew the pictures |
| held out | {held_out} |

Scores against others stand in `results/foreground.json`. A token is foreground by its looks alone:
the network knows no words.
"""


def main(argv: list[str] | None = None) -> None:
    """Convert and describe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--out", type=Path, help="a folder; the package's own unless given")
    args = parser.parse_args(argv)
    for file in (args.run / WEIGHTS / checkpoint.CONFIG, args.run / "settings.json"):
        if not file.is_file():
            parser.error(f"{file} is missing; give a folder that 'vla-prune train recon' wrote.")
    document = read_config(args.run / WEIGHTS)
    settings = json.loads((args.run / "settings.json").read_text(encoding="utf-8"))
    encoder, about = EncoderSpec(**document["encoder"]), document["about"]
    room = Path(str(resources.files("vla_prune"))) / "recon"
    folder = args.out or room / Path(about["policy"]).stem
    pruner = load_reconstructor(args.run / WEIGHTS, encoder, torch.float16)
    save_reconstructor(folder, pruner, encoder, about)
    card = CARD.format(
        name=folder.name,
        policy=about["policy"],
        fingerprint=encoder.fingerprint,
        parameters=sum(p.numel() for p in pruner.parameters()) / 1e6,
        frames=about["frames"],
        source=about["source"],
        foreground=", ".join(about["foreground"]) or "as masked",
        objective=about["objective"],
        steps=about["steps"],
        planned=settings["steps"],
        chosen=CHOSEN[settings["choose"]],
        batch=settings["batch"],
        pace=settings["pace"],
        lr=settings["lr"],
        seed=settings["seed"],
        held_out=", ".join(f"{k} {v:.3g}" for k, v in about["held_out"].items()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
