"""Masks that somebody else made, one PNG for each image (Grounded-SAM and the like)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from vla_prune_sim.masks.index import Entry

from vla_prune.errors import ConfigError, MissingError
from vla_prune.recon.frames import read_mask, read_picture

IMAGES = (".jpg", ".jpeg", ".png")


def folder_entries(images: Path, masks: Path, group_by: str | None = None) -> Iterator[Entry]:
    """Images below a folder, each with the mask of the same name below another.

    An image's own folder is its camera. All names are checked before anything is written.

    Args:
        images: folder.
        masks: folder of the same form; masks are PNGs.
        group_by: regular expression; what it matches of an image's path below ``images`` names
            the scene, whose images are never split between training and validation. None takes
            the folder, so that neighbouring frames of a video stay together.

    Raises:
        MissingError: no images, or an image without a mask.
        ConfigError: two images that would be one file, or whose scene has no name.
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
    known: dict[str, Entry] = {}
    for image, mask in pairs:
        relative = image.relative_to(images)
        key, camera = "__".join(relative.parts), relative.parent.name
        if key in known:
            raise ConfigError(
                f"{image}: its name in the index, {key!r}, is another image's too; rename one."
            )
        frame = str(relative.parent.parent / relative.stem)
        group = _group(relative, group_by)
        known[key] = Entry(key, camera, group, frame, _maker(image, mask))
    yield from known.values()


def _group(relative: Path, group_by: str | None) -> str:
    if group_by is None:
        return str(relative.parent)
    try:
        match = re.search(group_by, str(relative))
    except re.error as error:
        raise ConfigError(
            f"masks make: --group-by {group_by!r} is no regular expression ({error})."
        ) from error
    if match is None:
        raise ConfigError(
            f"{relative}: --group-by {group_by!r} matches nothing in this path; give one that "
            "matches in every image's."
        )
    return match[0]


def _maker(image: Path, mask: Path):
    def make() -> tuple[Path, np.ndarray]:
        return image, read_mask(mask, read_picture(image).shape[:2])

    return make
