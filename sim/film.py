"""Episodes to look at: what the policy saw, kept patches lit, on one self-contained HTML page.

page(Path("report.html"), "a title", rows, [("scene 1, dense", frames)])
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from vla_prune_sim.play import pruner_of
from vla_prune_sim.seats import LocalSeat

from vla_prune import draw, report
from vla_prune.build import build_adapter
from vla_prune.policy import attach

if TYPE_CHECKING:
    from vla_prune_sim.rollout import Episode, RunConfig

FRAME_MS, QUALITY, SCALE = 250, 60, 2
STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.25em .8em;text-align:right;"
    "border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}"
    "figure{margin:1.5em 0}img{max-width:100%;image-rendering:pixelated}"
)


def film(config: RunConfig, world: str, episode: Episode) -> list[np.ndarray]:
    """Play an episode once more; each policy call is a picture ``[H, W, 3]``, dropped patches dim.

    Args:
        config: the table it belongs to.
        world: ``module:Class`` of the simulator.
        episode: an entry with a recipe and no control.
    """
    row = episode.row
    adapter = build_adapter(config.suites[episode.suite].policy)
    pruner = pruner_of(row, config.cut_layer)
    seat, frames = LocalSeat(world, config.sim), []
    try:
        seat.start(
            episode.suite, episode.task, episode.state, config.seed * 100_003 + episode.state
        )
        with attach(pruner, adapter) as policy:
            state = policy.new_state()
            while not (now := seat.look()).over:
                chunk = policy.act_one(now.observation, state)
                kept = next(reversed(chunk.kept.values()), np.arange(adapter.layout.total))
                frames.append(
                    draw.views_side_by_side(
                        adapter.layout, now.observation.images, kept, scale=SCALE
                    )
                )
                seat.advance(chunk.actions[: config.execute])
    finally:
        seat.close()
    return frames


def page(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    films: Sequence[tuple[str, Sequence[np.ndarray]]],
) -> Path:
    """Write a page with a table and films.

    Args:
        path: the file to write.
        title: its first line.
        rows: of the table; columns are the keys of all of them.
        films: caption and pictures ``[H, W, 3]`` uint8 each.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(report.cell(row.get(name)))}</td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    figures = "".join(
        f"<figure><figcaption>{html.escape(caption)}</figcaption>"
        f'<img alt="{html.escape(caption)}" src="data:image/webp;base64,{_animated(frames)}">'
        "</figure>"
        for caption, frames in films
    )
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>"
        f"<table><tr>{head}</tr>{body}</table>{figures}</html>\n",
        encoding="utf-8",
    )
    return path


def _animated(frames: Sequence[np.ndarray]) -> str:
    """An animated WebP, base64."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    file = BytesIO()
    first.save(
        file, "WEBP", save_all=True, append_images=others, duration=FRAME_MS, loop=0,
        quality=QUALITY,
    )  # fmt: skip
    return base64.b64encode(file.getvalue()).decode("ascii")
