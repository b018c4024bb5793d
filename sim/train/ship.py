"""Put a trained pocket policy where the package finds it: float16 weights and a model card.

Two steps, because success is measured on what is shipped::

    python -m vla_prune_sim.train.ship --suite drive --run runs/pocket/drive --data "..."
    python -m vla_prune_sim.train.ship --suite drive --results results/drive_pocket.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from vla_prune import report
from vla_prune.models.openvla import OpenVLA

SUCCESS = "## Success"
# A column of the learning curve, its key, and what the trainer's weight on it is undone by.
COLUMNS = (
    ("action", "action", 1.0),
    ("gripper", "gripper", 4.0),
    ("token class", "token", 1 / 0.15),
    ("offset", "offset", 1 / 3.0),
)


def ship(run: Path, target: Path, suite: str, data: str) -> None:
    """Weights, words, statistics and the card, from a folder of :mod:`vla_prune_sim.train.bc`."""
    model = OpenVLA.from_pretrained(run / "policy").to(torch.float16)
    model.save_pretrained(target, Tokenizer.from_file(str(run / "policy" / "tokenizer.json")))
    settings = {"drop_layer": [0]} | json.loads((run / "settings.json").read_text("utf-8"))
    lines = (run / "curve.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "action" in line]
    text = card(model, suite, data, settings, list({s["step"]: s for s in steps}.values()))
    (target / "README.md").write_text(text, encoding="utf-8")


def card(
    model: OpenVLA,
    suite: str,
    data: str,
    settings: Mapping[str, Any],
    curve: list[Mapping[str, float]],
) -> str:
    """The model card, all but the success."""
    config = model.config
    return (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            suite=suite,
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            views=len(config.views),
            tokens=config.n_visual // len(config.views),
            layers=config.llm["num_hidden_layers"],
            width=config.llm["hidden_size"],
            chunk=config.chunk,
            frames=curve[-1]["frames"],
            data=data,
            steps=curve[-1]["step"],
            batch=settings["batch"],
            lr=settings["lr"],
            seed=settings["seed"],
            dropout=_dropout(settings),
            drawn=_drawn(settings),
            commit=report.commit(),
            processor=report.machine()["processor"],
            curve=_curve(curve),
        )
    )


def add_success(text: str, results: Path, suite: str) -> str:
    """The card with what a results file says of this policy, in place of what it said before."""
    document = report.read(results, suite)
    return (
        f"{text.split(SUCCESS)[0].rstrip()}\n\n{SUCCESS}\n\n"
        f"`{document['command']}` ({results.name}, commit {document['commit']}).\n\n"
        f"{report.markdown(document['rows'])}"
    )


def _dropout(settings: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{share:g}" for share in sorted(set(settings["keep"])))
    spared = settings.get("spare")
    but = f", patches that show {' or '.join(spared)} spared" if spared else ""
    tail = settings["dense_tail"]
    end = f", all in the last {tail:.0%} of the steps" if tail else ""
    layers = sorted(set(settings["drop_layer"]))
    places = [f"layer {layer}" if layer else "the decoder" for layer in layers]
    where = " or ".join(places)
    return f"a random share ({shares}) of the visual tokens pass {where} while training{but}{end}"


def _drawn(settings: Mapping[str, Any]) -> str:
    told = ["all alike"]
    if share := settings.get("keyframes"):
        told = [
            f"{share:.0%} of them drawn by how far the expert's chunk is from what the state tells"
        ]
    if (quantile := settings.get("quantile", 0.5)) != 0.5:
        told.append(f"the way ahead learned at its quantile {quantile:g}, which is careful")
    if settings.get("freeze_tower"):
        last = "" if settings.get("start_from") else " in the last part"
        told.append(f"the image tower frozen{last}")
    return "; ".join(told)


def _curve(curve: list[Mapping[str, float]]) -> str:
    known = [(name, key, factor) for name, key, factor in COLUMNS if key in curve[-1]]
    rows = ["| step | " + " | ".join(name for name, _, _ in known) + " |"]
    rows.append("|---" * (1 + len(known)) + "|")
    stride = max(1, len(curve) // 12)
    for line in [*curve[::stride][:-1], curve[-1]]:
        cells = " | ".join(f"{line[key] * factor:.3f}" for _, key, factor in known)
        rows.append(f"| {line['step']} | {cells} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", required=True)
    parser.add_argument("--run", type=Path, help="a trainer's folder: ship its weights")
    parser.add_argument("--data", help="what it was trained on, after 'N frames of'")
    parser.add_argument("--results", type=Path, help="write these rows into the card")
    parser.add_argument("--models", type=Path, help="the package's own folder, if not given")
    args = parser.parse_args(argv)
    models = args.models or Path(str(resources.files("vla_prune"))) / "models"
    target = models / f"pocket_{args.suite}"
    if bool(args.run) != bool(args.data):
        parser.error("--run and --data belong together.")
    if args.run:
        ship(args.run, target, args.suite, args.data)
    if args.results:
        path = target / "README.md"
        text = add_success(path.read_text(encoding="utf-8"), args.results, args.suite)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
