"""Masks that somebody else made, one PNG for each image (Grounded-SAM and the like)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from vla_prune_sim.masks.index import Entry

from vla_prune.errors import MissingError
from vla_prune.recon.frames import read_mask, read_picture

IMAGES = (".jpg", ".jpeg", ".png")


def folder_entries(images: Path, masks: Path) -> Iterator[Entry]:
    """Images below a folder, each with the mask of the same name below another.

    All names are checked before anything is written.

    Raises:
        MissingError: no images, or an image without a mask.
    """
    found = sorted(p for p in images.glob("**/*") if p.suffix.lower() in IMAGES)
    if not found:
        raise MissingError(f"{images}: no images ({', '.join(IMAGES)}); name another folder.")
    pairs = [(p, masks / p.relative_to(images).with_suffix(".png")) for p in found]
    bare = [image for image, mask in pairs if not mask.is_file()]
    if bare:
        raise MissingError(
            f"{bare[0]}: there is no mask of this name in {masks} ({len(bare)} of {len(found)} "
            "images have none); make the masks, or move those images away."
        )
    for image, mask in pairs:
        relative = image.relative_to(images)
        folder = relative.parent.name
        yield Entry(_key(relative), folder, str(relative), _maker(image, mask))


def _key(relative: Path) -> str:
    return "__".join(relative.with_suffix("").parts)


def _maker(image: Path, mask: Path):
    def make() -> tuple[Path, np.ndarray]:
        return image, read_mask(mask, read_picture(image).shape[:2])

    return make
