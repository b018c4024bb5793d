"""``vla-prune demo``: always something real, whatever the machine has.

With hf-libero and its assets the pocket policy drives two LIBERO tasks, dense and pruned. Without
them it looks at built-in drawings. Either way a picture shows which patches stay and a table
where the time goes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from vla_prune_sim import rollout, table

from vla_prune import bench, config, draw
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import MissingError
from vla_prune.policy import attach
from vla_prune.types import Observation

POLICY, RECIPE, KEEP, CUT = "pocket_libero_spatial", "dual_level", 0.25, 2
STAGES = ("vision", "prefill", "selection", "head")


def drawn_frames(size: int = 144) -> Observation:
    """A table top with a bowl, a plate and a gripper, drawn here: two views, no asset needed."""
    outer = Image.new("RGB", (size, size), (196, 180, 160))
    pen = ImageDraw.Draw(outer)
    pen.rectangle([0, 0, size, size // 3], fill=(92, 92, 96))
    pen.ellipse([20, 95, 58, 118], fill=(236, 236, 230))
    pen.ellipse([64, 74, 88, 92], fill=(24, 22, 24))
    pen.rectangle([100, 88, 122, 104], fill=(170, 90, 50))
    pen.rectangle([66, 20, 80, 62], fill=(150, 152, 160))
    wrist = Image.new("RGB", (size, size), (200, 184, 164))
    pen = ImageDraw.Draw(wrist)
    pen.ellipse([30, 30, 110, 100], fill=(24, 22, 24))
    pen.rectangle([0, 122, size, size], fill=(44, 44, 48))
    state = np.array([-0.2, 0.0, 1.15, 3.1, 0.0, -0.1, 0.04, -0.04], np.float32)
    words = "pick up the black bowl from table center and place it on the plate"
    return Observation({"agentview": np.asarray(outer), "wrist": np.asarray(wrist)}, words, state)


def libero_ready() -> bool:
    """Whether LIBERO can run here: the package and its assets."""
    if find_spec("libero") is None or find_spec("mujoco") is None:
        return False
    from vla_prune_sim.libero.assets import find_assets

    try:
        find_assets()
    except MissingError:
        return False
    return True


def run(folder: Path, progress: Callable[[float], None]) -> dict[str, Any]:
    """The demo; pictures and JSON go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = build_adapter(POLICY)
    document: dict[str, Any] = {"world": "drawn frames"}
    observation = drawn_frames()
    if libero_ready():
        document = _closed_loop(folder, progress)
        frames = sorted((folder / "work" / "frames").glob("*.npy"))
        calls = np.load(frames[0])  # [calls, V, H, W, 3]
        shown = calls[len(calls) // 3]
        observation = Observation(
            {"agentview": shown[0], "wrist": shown[1]}, observation.instruction, observation.state
        )
    pruner = build_recipe(RECIPE, KEEP, cut_layer=CUT)
    with attach(pruner, adapter) as policy:
        state = policy.new_state()
        for _ in range(4):
            chunk = policy.act_one(observation, state)
    kept = next(reversed(chunk.kept.values()))
    picture = draw.views_side_by_side(adapter.layout, observation.images, kept)
    Image.fromarray(picture).save(folder / "kept.png")
    stages = bench.run(
        bench.BenchConfig(POLICY, [RECIPE], [KEEP], repeats=10, cut_layer=CUT), progress
    )
    return document | {
        "picture": str(folder / "kept.png"),
        "kept": len(kept),
        "of": adapter.layout.total,
        "stages": stages["rows"],
    }


def _closed_loop(folder: Path, progress: Callable[[float], None]) -> dict[str, Any]:
    data = config.load("libero_smoke", kind="run")
    data |= {"work": str(folder / "work"), "results": str(folder / "libero.json")}
    run_config = rollout.RunConfig(**data)
    results = rollout.run(run_config, progress=lambda done, total: progress(0.9 * done / total))
    made = table.make(run_config, results)
    return {"world": "LIBERO", "rows": made["rows"], "results": run_config.results}
