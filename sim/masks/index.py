"""A folder of foreground masks as nuScenes-FG has it: pictures, masks and an index.

One row of ``index.jsonl`` for each picture: ``image``, ``mask`` (PNG: 0 background, 255
foreground, 128 neither), ``camera``, ``frame`` (pictures of one instant share it), ``group``
(frames of one group are never split between training and validation), ``rows``, ``cols`` and
``labels`` (foreground share of each token, -1 where it is not known). ``source.json`` says what
the masks were made of and how; a call that was interrupted goes on where it stopped, and one with
other options is refused. Knows no source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_prune.errors import ConfigError, ShapeError
from vla_prune.recon.frames import IGNORE, INKS, cell_shares

INDEX, SOURCE = "index.jsonl", "source.json"
INK = {kind: ink for ink, kind in INKS.items()}


@dataclass(frozen=True)
class Entry:
    """A picture that a source can give.

    Attributes:
        key: unique in the index and good as a file name.
        camera: its name, or empty.
        group: scene or episode.
        frame: the instant: the same for all cameras' pictures of it.
        make: gives the picture, ``[H, W, 3]`` uint8 or the path where it is, and the mask ``[H,
            W]`` uint8: 0 background, 1 foreground, 2 ignore.
    """

    key: str
    camera: str
    group: str
    frame: str
    make: Callable[[], tuple[np.ndarray | Path, np.ndarray]]


def write_index(
    entries: Iterable[Entry],
    out: Path,
    rows: int,
    cols: int,
    source: Mapping[str, Any],
    report: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Write all that is not there yet.

    Args:
        entries: of a source, always in the same order.
        out: folder, which may be there from an earlier call.
        rows: of the token grid of ``labels``.
        cols: likewise.
        source: what the masks are made of, and every option that changes one; plain data.
        report: called with the number of entries seen.

    Returns:
        Rows in the index, and how many of them are new.
    """
    if rows < 1 or cols < 1:
        raise ConfigError(f"masks make: a grid of {rows} x {cols} tokens; give 1 or more of each.")
    (out / "masks").mkdir(parents=True, exist_ok=True)
    _check_source(out, dict(source))
    known = _known(out / INDEX, rows, cols)
    new = 0
    with (out / INDEX).open("a", encoding="utf-8") as file:
        for number, entry in enumerate(entries, start=1):
            if entry.key not in known:
                file.write(json.dumps(_write(entry, out, rows, cols)) + "\n")
                file.flush()
                known.add(entry.key)
                new += 1
            if report:
                report(number)
    return len(known), new


def _write(entry: Entry, out: Path, rows: int, cols: int) -> dict:
    picture, mask = entry.make()
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] != mask.shape:
            raise ShapeError(
                f"{entry.key}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{picture.shape[1]} x {picture.shape[0]}; make masks at the size of the images."
            )
        where = Path("images") / f"{entry.key}.png"
        (out / "images").mkdir(exist_ok=True)
        _png(picture, out / where)
    else:
        where = picture.resolve()
    grey = np.zeros(mask.shape, np.uint8)
    for kind, ink in INK.items():
        grey[mask == kind] = ink
    target = Path("masks") / f"{entry.key}.png"
    _png(grey, out / target)
    counted = cell_shares(mask != IGNORE, rows, cols)
    shares = cell_shares(mask == 1, rows, cols) / np.maximum(counted, 1e-9)
    labels = np.where(counted < 0.5, -1.0, np.round(shares, 3))
    return {
        "key": entry.key,
        "image": str(where),
        "mask": str(target),
        "camera": entry.camera,
        "frame": entry.frame,
        "group": entry.group,
        "rows": rows,
        "cols": cols,
        "labels": labels.tolist(),
    }


def _png(picture: np.ndarray, path: Path) -> None:
    partial = path.with_suffix(".partial")
    Image.fromarray(picture).save(partial, format="PNG")
    partial.replace(path)


def _check_source(out: Path, source: dict[str, Any]) -> None:
    """A folder belongs to one source and one set of options."""
    path = out / SOURCE
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (out / INDEX).is_file() and there != source:
        name = next(n for n in {**source, **there} if there.get(n) != source.get(n))
        raise ConfigError(
            f"{out}: holds masks with {name} {there.get(name)!r}, this call has "
            f"{source.get(name)!r}; name a new folder."
        )
    path.write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")


def _known(path: Path, rows: int, cols: int) -> set[str]:
    """Keys that are there. A last line that was cut short is taken off."""
    if not path.is_file():
        return set()
    text, known = path.read_text(encoding="utf-8"), set()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            known.add(row["key"])
            grid = row["rows"], row["cols"]
        except (json.JSONDecodeError, KeyError) as error:
            raise ConfigError(
                f"{path}: line {number} is no row of an index ({error}); name a new folder."
            ) from error
        if grid != (rows, cols):
            raise ConfigError(
                f"{path}: holds labels of {grid[0]} x {grid[1]} tokens, {rows} x {cols} are asked "
                "for; name a new folder."
            )
    return known
