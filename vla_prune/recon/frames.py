"""Pictures with foreground masks, from demonstration files or from an index of mask files.

Demonstrations are the HDF5 shards of ``vla_prune_sim.train``, whose ``aux/patches`` say what each
patch shows; an index is the JSONL of ``vla-prune masks make``. Knows no simulator, no encoder
beyond its grid, and no training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image, UnidentifiedImageError

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.errors import ConfigError, MissingError, ShapeError, check_least, did_you_mean

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 2
INKS = {0: BACKGROUND, 255: FOREGROUND, 128: IGNORE}  # grey values of mask files
DATASETS = {"wrist": "eye_in_hand_rgb"}  # of demonstrations, where not called as their view


@dataclass(frozen=True)
class DataConfig:
    """Which frames, and what of them is foreground.

    Attributes:
        source: folder of demonstrations, or of an ``index.jsonl``.
        foreground: names of the patch classes of demonstrations that are foreground.
        ignore: names that are neither: their pixels are not compared and their tokens not counted.
        frames: pictures to train on; a random choice if there are more.
        held_out: pictures to validate on.
        least_share: share of a token's counted pixels from which on it is foreground. Masks of
            files alone; patches of demonstrations bring their classes. The paper does not need
            tokens' labels; half is what a mask resized to the token grid gives.
        seed: of the choice.
    """

    source: str
    foreground: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    frames: int = 4000
    held_out: int = 400
    least_share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Lists to tuples; refuse numbers that choose nothing."""
        object.__setattr__(self, "foreground", tuple(self.foreground))
        object.__setattr__(self, "ignore", tuple(self.ignore))
        check_least("recon data", 1, frames=self.frames)
        check_least("recon data", 0, held_out=self.held_out, seed=self.seed)
        if not 0.0 < self.least_share <= 1.0:
            raise ConfigError(
                f"recon data: least_share is {self.least_share}; it is a share, in (0, 1]."
            )


@dataclass(frozen=True)
class Example:
    """One camera picture.

    Attributes:
        picture: ``[H, W, 3]`` uint8, as the camera gave it.
        mask: ``[rows * patch, cols * patch]`` uint8 of the encoder's picture: 0 background, 1
            foreground, 2 ignore.
        labels: ``[n]`` uint8 the same for each token.
    """

    picture: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


def examples(data: DataConfig, held_out: bool) -> list[Any]:
    """What can be read later with :func:`read`, in the order in which it is read.

    About every tenth demonstration (or scene, or picture) is held out: the same ones that
    ``vla_prune_sim.train.bc`` never shows to a policy.

    Raises:
        MissingError: nothing there.
    """
    source = Path(data.source)
    if source.suffix == ".jsonl" or (source / "index.jsonl").is_file():
        found = index_rows(source, held_out)
    else:
        found = _demonstrated(source, data, held_out)
    wanted = data.held_out if held_out else data.frames
    if len(found) > wanted:
        rng = np.random.default_rng([data.seed, int(held_out)])
        found = [found[i] for i in np.sort(rng.choice(len(found), wanted, replace=False))]
    if not found and not held_out:
        raise MissingError(
            f"{source}: no frames to train on; give a folder of *.hdf5 demonstrations, or one "
            "that 'vla-prune masks make' wrote."
        )
    return found


def chosen_hash(found: Sequence[Any]) -> str:
    """16 hex digits of which frames :func:`examples` chose, and of their files' sizes and times.

    Another demonstration, another choice or a mask that was made again gives others.
    """
    digest, known = sha256(), {}
    for one in found:
        for part in one.values() if isinstance(one, dict) else one:
            if isinstance(part, Path) and part not in known:
                if not part.is_file():
                    raise MissingError(f"{part}: this file is missing; get or make it again.")
                known[part] = (part.stat().st_size, part.stat().st_mtime_ns)
            digest.update(f"{part} {known.get(part)}\n".encode())
    return digest.hexdigest()[:16]


def read(found: Sequence[Any], data: DataConfig, encoder: EncoderSpec) -> Iterator[Example]:
    """The pictures of :func:`examples`, one by one."""
    if found and isinstance(found[0], dict):
        for row in found:
            yield _from_files(row, data, encoder)
    else:
        yield from _from_demonstrations(found, data, encoder)


def class_kinds(
    where: str, classes: Sequence[str], foreground: Sequence[str], ignore: Sequence[str]
) -> np.ndarray:
    """What each patch class of demonstrations counts as: ``[C]`` uint8.

    Args:
        where: for messages.
        classes: names, in the order of the labels.
        foreground: names of those that are foreground.
        ignore: names of those that are not counted; all others are background.

    Raises:
        ConfigError: no foreground, an unknown name, or one that is both.
    """
    if not foreground:
        raise ConfigError(
            f"{where}: 'foreground' names no patch class; choose among {', '.join(classes)}."
        )
    kinds = np.full(len(classes), BACKGROUND, np.uint8)
    for kind, names in ((FOREGROUND, foreground), (IGNORE, ignore)):
        for name in names:
            if name not in classes:
                raise did_you_mean(where, "patch class", name, classes)
            kinds[list(classes).index(name)] = kind
    if both := sorted(set(foreground) & set(ignore)):
        raise ConfigError(
            f"{where}: {both[0]!r} is foreground and ignored; leave it in one of the two."
        )
    return kinds


def token_labels(mask: np.ndarray, rows: int, cols: int, least_share: float) -> np.ndarray:
    """Labels of a grid of tokens ``[rows * cols]`` uint8 from a mask ``[H, W]``.

    A token is ignored if more than half of it is; otherwise foreground if ``least_share`` of what
    counts is.
    """
    counted = cell_shares(mask != IGNORE, rows, cols)
    shown = cell_shares(mask == FOREGROUND, rows, cols)
    labels = np.where(shown >= least_share * np.maximum(counted, 1e-9), FOREGROUND, BACKGROUND)
    labels[shown == 0] = BACKGROUND
    labels[counted < 0.5] = IGNORE
    return labels.astype(np.uint8)


def cell_shares(shown: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Share of each cell of a grid that is set: ``[H, W]`` bool -> ``[rows * cols]`` in [0, 1]."""
    height, width = shown.shape
    if rows > height or cols > width:
        raise ShapeError(
            f"a mask of {height} x {width} pixels has no {rows} x {cols} cells; give a larger one."
        )
    tops, lefts = np.arange(rows) * height // rows, np.arange(cols) * width // cols
    sums = np.add.reduceat(np.add.reduceat(shown.astype(float), tops, 0), lefts, 1)
    areas = np.outer(np.diff(tops, append=height), np.diff(lefts, append=width))
    return (sums / areas).reshape(-1)


def read_mask(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask file as ``[H, W]`` uint8 of 0 background, 1 foreground, 2 ignore.

    Args:
        path: a PNG of 0, 255 and 128 (ignore); 1-bit and 0/1 files are taken as they are meant.
        size: height and width that it must have.

    Raises:
        ShapeError: no such picture, another size, or other values.
    """
    try:
        with Image.open(path) as image:
            grey = np.array(image.convert("L"))
    except FileNotFoundError as error:
        raise MissingError(f"{path}: this mask is missing; make it again.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise ShapeError(f"{path} is no whole picture ({error}); make it again.") from error
    if size is not None and grey.shape != size:
        raise ShapeError(
            f"{path}: the mask is {grey.shape[1]} x {grey.shape[0]} pixels, its image "
            f"{size[1]} x {size[0]}; make masks at the size of the images."
        )
    values = set(np.unique(grey).tolist())
    if values == {0, 1} or values == {1}:
        return grey
    if values - set(INKS):
        raise ShapeError(
            f"{path}: a mask holds grey {', '.join(map(str, sorted(values - set(INKS))[:3]))}; "
            "write 0 (background), 255 (foreground) and 128 (ignore)."
        )
    mask = np.zeros_like(grey)
    for ink, kind in INKS.items():
        mask[grey == ink] = kind
    return mask


def read_picture(path: Path) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB, whole or not at all."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise MissingError(f"{path}: this image is missing; get it again.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise ShapeError(f"{path} is no whole picture ({error}); get it again.") from error


# --- an index of files --------------------------------------------------------------------------


def index_rows(source: Path, held_out: bool) -> list[dict[str, Any]]:
    """Rows of an index of one split: ``image`` and ``mask`` as paths, ``camera``, ``frame``.

    Args:
        source: an ``index.jsonl``, or its folder.
        held_out: the groups that are kept from training, or all others.

    Raises:
        ConfigError: a line is no row.
    """
    path = source if source.is_file() else source / "index.jsonl"
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            files = {name: Path(row[name]) for name in ("image", "mask")}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: line {number} is no row of an index ({error}); make it again with "
                "'vla-prune masks make'."
            ) from error
        if is_held_out(str(row.get("group", row["image"]))) == held_out:
            found = {n: f if f.is_absolute() else path.parent / f for n, f in files.items()}
            found |= {name: str(row.get(name, "")) for name in ("camera", "frame")}
            rows.append(found)
    return rows


def _from_files(row: dict, data: DataConfig, encoder: EncoderSpec) -> Example:
    picture = read_picture(row["image"])
    mask = read_mask(row["mask"], picture.shape[:2])
    width, height = encoder.cols * encoder.patch, encoder.rows * encoder.patch
    fitted = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    labels = token_labels(mask, encoder.rows, encoder.cols, data.least_share)
    return Example(picture, fitted, labels)


# --- demonstrations -----------------------------------------------------------------------------


def _demonstrated(source: Path, data: DataConfig, held_out: bool) -> list[tuple]:
    """``(file, demonstration, frame, view)`` of every picture."""
    found = []
    for path in sorted(source.glob("**/*.hdf5")):
        with open_demonstrations(path) as file:
            about = file["data"].attrs
            classes, views = json.loads(about["patch_labels"]), json.loads(about["views"])
            class_kinds(str(path), classes, data.foreground, data.ignore)
            for name, demo in file["data"].items():
                if is_held_out(str(int(demo.attrs["seed"]))) == held_out:
                    count = len(demo["frame_index"])
                    found += [(path, name, f, v) for f in range(count) for v in range(len(views))]
    return found


def _from_demonstrations(
    found: Sequence[tuple], data: DataConfig, encoder: EncoderSpec
) -> Iterator[Example]:
    file, opened = None, None
    try:
        for path, name, frame, view in found:
            if path != opened:
                if file is not None:
                    file.close()
                file, opened = open_demonstrations(path), path
                about = file["data"].attrs
                classes, views = json.loads(about["patch_labels"]), json.loads(about["views"])
                kinds = class_kinds(str(path), classes, data.foreground, data.ignore)
            demo, camera = file["data"][name], views[view]
            patches = kinds[demo["aux/patches"][frame, view]]
            if patches.shape != (encoder.rows, encoder.cols):
                raise ShapeError(
                    f"{path}: patch labels are {patches.shape[0]} x {patches.shape[1]}, the "
                    f"encoder has {encoder.rows} x {encoder.cols} tokens; make pixel masks with "
                    "'vla-prune masks make' and train on those."
                )
            picture = demo[f"obs/{dataset(camera)}"][frame]
            mask = patches.repeat(encoder.patch, axis=0).repeat(encoder.patch, axis=1)
            yield Example(picture, mask, patches.reshape(-1))
    finally:
        if file is not None:
            file.close()


def open_demonstrations(path: Path) -> Any:
    """A shard of our demonstrations, open for reading.

    Raises:
        ShapeError: it is torn, or another's.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingError("demonstrations need h5py; pip install 'vla-prune[train]'.") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ShapeError(f"{path} is no whole HDF5 file ({error}); record it again.") from error
    if "data" not in file or not {"patch_labels", "views"} <= set(file["data"].attrs):
        file.close()
        raise ShapeError(
            f"{path}: no demonstrations of ours, which say what each patch shows "
            "('patch_labels'); record some with vla_prune_sim.train, or make masks with "
            "'vla-prune masks make'."
        )
    return file


def dataset(view: str) -> str:
    """The dataset below ``obs`` that holds a view's pictures."""
    return DATASETS.get(view, f"{view}_rgb")


def is_held_out(group: str) -> bool:
    """Whether a demonstration (its seed) or scene is kept from training: about every tenth."""
    return crc32(group.encode()) % 10 == 0
