"""``vla-prune demo``: always something real, whatever the machine has.

With the driving policy's weights and nuscenes-devkit it makes a small world of towns and drives
them, dense and pruned. Else, with hf-libero and its assets, it does two LIBERO tasks; else it
looks at built-in drawings. It leaves one HTML page with a table, and films in which the kept
patches are lit, and says where the time of a call goes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from vla_prune_sim import film, rollout, table

from vla_prune import bench, config, draw
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import MissingError, did_you_mean
from vla_prune.policy import attach
from vla_prune.types import Observation

RECIPE, KEEP, CUT = "dual_level", 0.25, 2
STAGES = ("vision", "prefill", "selection", "head")
POLICIES = {
    "drive": "pocket_drive",
    "libero": "pocket_libero_spatial",
    "frames": "pocket_libero_spatial",
}
MADE, PLAYED, FILMED = 0.2, 0.75, 0.95  # shares of the demo after each part
RUNS = {"drive": "drive_smoke", "libero": "libero_smoke"}

Told = Callable[[str, float], None]  # what is being done, and the share of all that is done


def choose(world: str = "") -> tuple[str, str]:
    """The world to show, and a sentence where it is not the first choice.

    Args:
        world: ``drive``, ``libero`` or ``frames``; empty for the first that is there.

    Raises:
        ConfigError: no such world.
        MissingError: the world that was asked for is not there.
    """
    lacking = {"drive": drive_lacks, "libero": libero_lacks, "frames": lambda: ""}
    if world:
        if world not in lacking:
            raise did_you_mean("demo", "world", world, lacking)
        if lack := lacking[world]():
            raise MissingError(f"demo: world {world} cannot be shown: {lack}")
        return world, ""
    notes = []
    for name, lacks in lacking.items():
        if not (lack := lacks()):
            break
        notes.append(f"no {name}: {lack}")
    return name, f"Showing {name} ({' '.join(notes)})" if notes else ""


def drive_lacks() -> str:
    """Why driving cannot be shown here; empty where it can."""
    for package in ("gymnasium", "cv2", "shapely", "nuscenes"):
        if find_spec(package) is None:
            return f"{package} is not installed; install vla-prune[sim,nuscenes]."
    try:
        config.resolve_weights(config.load(POLICIES["drive"], kind="policy")["weights"])
    except MissingError as error:
        return str(error)
    return ""


def libero_lacks() -> str:
    """Why LIBERO cannot be shown here; empty where it can."""
    if find_spec("libero") is None or find_spec("mujoco") is None:
        return "hf-libero is not installed; 'make libero' installs it."
    from vla_prune_sim.libero.assets import find_assets

    try:
        find_assets()
    except MissingError as error:
        return str(error)
    return ""


def run(folder: Path, world: str, told: Told) -> dict[str, Any]:
    """The demo of a world; the page, pictures and results go to ``folder``.

    Returns:
        ``dense`` and ``pruned``, what counts most in each row (None for drawn frames), ``report``,
        the page, ``rows`` of the table, ``stages`` of a call, and what was kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if world in RUNS:
        data = config.load(RUNS[world], kind="run")
        data |= {"work": str(folder / "work"), "results": str(folder / f"{world}.json")}
        if world == "drive":
            data["sim"] |= {"folder": str(folder / "worlds")}
            _make_towns(told, **data["sim"])
        document = closed_loop(folder, world, rollout.RunConfig(**data), told)
    else:
        document = drawings(folder, told)
    timing = bench.BenchConfig(POLICIES[world], [RECIPE], [KEEP], repeats=10, cut_layer=CUT)
    document["stages"] = bench.run(
        timing, lambda part: told("timing one call", FILMED + (1 - FILMED) * part)
    )["rows"]
    return document


def _make_towns(told: Told, folder: str, scenes: int, seed: int, **_: Any) -> None:
    """The synthetic root of a run config, with progress; at once where it is there."""
    from vla_prune_sim.drive.make_world import ensure_root

    def begun(number: int) -> None:
        told(f"drive: town {number}/{scenes}", MADE * (number - 1) / scenes)

    ensure_root(Path(folder), scenes, seed, begun)


def closed_loop(
    folder: Path, world: str, run_config: rollout.RunConfig, told: Told
) -> dict[str, Any]:
    """Episodes of all rows, then a film of each place with the pruned policy.

    Args:
        folder: for the page and a picture.
        world: its name, for people.
        run_config: with a dense row and one of `RECIPE` at `KEEP`.
        told: progress.
    """
    # A demo shows what runs now, not what ran once.
    (Path(run_config.work) / "episodes.jsonl").unlink(missing_ok=True)
    run_config, _ = rollout.settled(run_config)

    def played(done: int, of: int) -> None:
        told(f"{world}: episode {done}/{of}", MADE + (PLAYED - MADE) * done / of)

    results = rollout.run(run_config, progress=played)
    document = table.make(run_config, results)
    dense, pruned = (
        next(
            row
            for row in document["rows"]
            if (row.get("recipe"), row["keep_ratio"], row["control"]) == (*wanted, "none")
        )
        for wanted in (("dense", 1.0), (RECIPE, KEEP))
    )
    measure = next(iter(results[0]["outcome"]))
    outcomes = {result["key"]: result["outcome"][measure] for result in results}
    shown = [e for e in rollout.episodes(run_config) if e.row == rollout.Row(RECIPE, KEEP)]
    films = []
    for number, episode in enumerate(shown):
        share = PLAYED + (FILMED - PLAYED) * number / len(shown)
        told(f"{world}: film {number + 1}/{len(shown)}", share)
        frames = film.film(run_config, rollout.world_path(run_config.world), episode)
        if frames:
            score = f"{measure} {outcomes[episode.key]:.2f}"
            films.append((f"{episode.suite}, task {episode.task}: {score}", frames))
    rows, columns = table.short(document["rows"])
    page = film.page(
        folder / "report.html",
        f"{world} ({', '.join(document['assets'])}): {RECIPE} keeps {KEEP:.0%} of what the camera "
        "sees; the lit patches are those",
        [{name: row.get(name) for name in columns} for row in rows],
        films,
    )
    picture = folder / "kept.png"
    if films:
        frames = films[0][1]
        Image.fromarray(frames[len(frames) // 3]).save(picture)
    return {
        "world": world,
        "assets": document["assets"],
        "dense": dense[measure],
        "pruned": pruned[measure],
        "measure": measure,
        "report": str(page),
        "picture": str(picture),
        "kept": round(pruned["tokens"]) if pruned["tokens"] is not None else None,
        "of": round(dense["tokens"]) if dense["tokens"] is not None else None,
        "rows": document["rows"],
        "results": run_config.results,
    }


def drawings(folder: Path, told: Told) -> dict[str, Any]:
    """What a policy keeps of drawn frames: no task, no score."""
    told("drawn frames", 0.2)
    adapter, observation = build_adapter(POLICIES["frames"]), drawn_frames()
    with attach(build_recipe(RECIPE, KEEP, cut_layer=CUT), adapter) as policy:
        state = policy.new_state()
        for _ in range(4):  # enough to fill the history
            chunk = policy.act_one(observation, state)
    kept = next(reversed(chunk.kept.values()))
    frame = draw.views_side_by_side(adapter.layout, observation.images, kept)
    Image.fromarray(frame).save(folder / "kept.png")
    told("drawn frames", 0.6)
    rows = [
        {"name": "dense", "tokens": adapter.layout.total},
        {"name": RECIPE, "tokens": len(kept)},
    ]
    title = f"drawn frames: {RECIPE} keeps {KEEP:.0%}; the lit patches are those"
    page = film.page(folder / "report.html", title, rows, [("drawn frames", [frame])])
    return {
        "world": "frames",
        "dense": None,
        "pruned": None,
        "report": str(page),
        "picture": str(folder / "kept.png"),
        "kept": len(kept),
        "of": adapter.layout.total,
    }


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
