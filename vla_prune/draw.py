"""Pictures of what a recipe keeps: the camera image with the dropped patches dimmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_prune import build
from vla_prune.errors import ConfigError, MissingError
from vla_prune.policy import attach
from vla_prune.tokens import TokenLayout
from vla_prune.types import Observation


def kept_patches(
    image: np.ndarray, rows: int, cols: int, kept: np.ndarray, scale: int = 3
) -> np.ndarray:
    """Dim what was dropped.

    Args:
        image: ``[H, W, 3]`` uint8.
        rows: of the patch grid.
        cols: of the patch grid.
        kept: ``[K]`` indices of the kept patches in this view, raster order.
        scale: enlargement.

    Returns:
        ``[scale * H, scale * W, 3]`` uint8.
    """
    height, width = image.shape[0] * scale, image.shape[1] * scale
    large = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    stays = np.zeros(rows * cols, dtype=bool)
    stays[kept] = True
    r = np.arange(height) * rows // height
    c = np.arange(width) * cols // width
    shown = stays.reshape(rows, cols)[r][:, c]
    grey = large.mean(axis=2, keepdims=True) * 0.3 + 20
    picture = np.where(shown[..., None], large, grey).astype(np.uint8)
    edge = (np.diff(r, prepend=r[0]) > 0)[:, None] | (np.diff(c, prepend=c[0]) > 0)[None, :]
    picture[edge & shown] = (picture[edge & shown] * 0.7).astype(np.uint8)
    return picture


def views_side_by_side(
    layout: TokenLayout, images: Mapping[str, np.ndarray], kept: np.ndarray, scale: int = 3
) -> np.ndarray:
    """All camera views of one call in a row: ``[H, W, 3]`` uint8.

    Args:
        layout: the policy's views.
        images: camera name -> ``[H, W, 3]`` uint8.
        kept: ``[K]`` grid indices over all views.
        scale: enlargement.
    """
    parts, start = [], 0
    for view in layout.views:
        inside = kept[(kept >= start) & (kept < start + view.size)] - start
        parts.append(kept_patches(images[view.name], view.rows, view.cols, inside, scale))
        start += view.size
    height = max(part.shape[0] for part in parts)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 6), (0, 0))) for p in parts]
    return np.concatenate(padded, axis=1)


def draw_policy(
    policy: str,
    recipe: str,
    keep_ratio: float,
    images: Sequence[Path],
    instruction: str,
    output: Path,
    cut_layer: int | None = None,
) -> dict[str, Any]:
    """Run a policy a few times on fixed images and write a PNG of the last kept set."""
    adapter = build.build_adapter(policy)
    pruner = build.build_recipe(recipe, keep_ratio, cut_layer=cut_layer)
    example = adapter.example_observation(0)
    names = [view.name for view in adapter.layout.views]
    pictures = dict(example.images)
    if images and len(images) != len(names):
        raise ConfigError(
            f"draw: {len(images)} images given, the policy sees {len(names)} cameras "
            f"({', '.join(names)}); give one --image for each, in this order."
        )
    for name, path in zip(names, images, strict=False):
        if not path.is_file():
            raise MissingError(f"draw: image {path} does not exist.")
        pictures[name] = np.asarray(Image.open(path).convert("RGB"))
    observation = Observation(pictures, instruction, example.state)
    with attach(pruner, adapter) as running:
        state = running.new_state()
        for _ in range(4):  # enough to fill the history
            chunk = running.act_one(observation, state)
    last = next(reversed(chunk.kept.values()), np.arange(adapter.layout.total))
    Image.fromarray(views_side_by_side(adapter.layout, pictures, last)).save(output)
    return {
        "image": str(output),
        "recipe": pruner.name,
        "kept": {k: len(v) for k, v in chunk.kept.items()},
    }
