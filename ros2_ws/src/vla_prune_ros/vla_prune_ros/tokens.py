"""Visual tokens and token scores as messages: packed, unpacked, and refused if they do not belong.

Numpy only; :mod:`vla_prune_ros.split` makes tensors of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from vla_prune.errors import ShapeError, UnsupportedError
from vla_prune_ros.convert import byte_array
from vla_prune_ros.stamps import header_fields, seconds, time_fields

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Hashes:
    """What two machines must share for tokens to mean the same.

    Attributes:
        encoder: of vision tower and projector weights.
        reconstructor: of the foreground reconstructor; empty without one.
        recipe: of the recipe.
    """

    encoder: str
    reconstructor: str = ""
    recipe: str = ""

    def check(self, message: Any, where: str) -> None:
        """Raise one sentence if a message was made with others.

        Raises:
            UnsupportedError: names what differs.
        """
        for part in fields(self):
            ours, theirs = getattr(self, part.name), getattr(message, f"{part.name}_hash")
            if ours != theirs:
                raise UnsupportedError(
                    f"{where}: refused: it was made with {part.name} {theirs or 'none'}, here is "
                    f"{ours or 'none'}; start both nodes with the same policy and recipe."
                )

    def message(self) -> dict[str, str]:
        """As fields of a message."""
        return {f"{part.name}_hash": getattr(self, part.name) for part in fields(self)}


@dataclass(frozen=True)
class Origin:
    """Which observation something came from.

    Attributes:
        episode_id: changes at every reset.
        tick: policy calls before it in the episode.
        stamp_s: of the oldest image.
    """

    episode_id: str
    tick: int
    stamp_s: float

    @property
    def trace_id(self) -> str:
        """The same on everything that came from this observation."""
        return f"{self.episode_id}/{self.tick}"

    def message(self, frame_id: str = "") -> dict[str, Any]:
        """As fields of a message."""
        return {
            "header": header_fields(self.stamp_s, frame_id),
            "episode_id": self.episode_id,
            "trace_id": self.trace_id,
            "tick": self.tick,
        }


def origin_of(message: Any) -> Origin:
    """The :class:`Origin` of a message that has one."""
    return Origin(message.episode_id, int(message.tick), seconds(message.header.stamp))


@dataclass(frozen=True)
class Grid:
    """The patch grid of one camera, as in ``vla_prune.tokens.ViewGrid``, and its frame's stamp."""

    name: str
    rows: int
    cols: int
    stamp_s: float = 0.0

    @property
    def size(self) -> int:
        """Patches."""
        return self.rows * self.cols


def grid_fields(grids: Sequence[Grid], index: np.ndarray) -> list[dict[str, Any]]:
    """``CameraGrid`` fields, with how many of the kept tokens ``index`` are in each."""
    made, start = [], 0
    for grid in grids:
        kept = int(((index >= start) & (index < start + grid.size)).sum())
        start += grid.size
        made.append(
            {
                "name": grid.name,
                "rows": grid.rows,
                "cols": grid.cols,
                "kept": kept,
                "stamp": time_fields(grid.stamp_s),
            }
        )
    return made


@dataclass(frozen=True)
class Tokens:
    """Kept visual tokens of one observation.

    Attributes:
        origin: of the observation.
        instruction: that they were chosen for.
        dtype: float32, float16 or bfloat16.
        features: ``[K, dim * bytes]`` uint8, the numbers of a token as they lie in memory.
        index: ``[K]`` grid indices, ascending, over all cameras.
        grids: the cameras, in order.
    """

    origin: Origin
    instruction: str
    dtype: str
    features: np.ndarray
    index: np.ndarray
    grids: tuple[Grid, ...]

    @property
    def dim(self) -> int:
        """Numbers in a token."""
        return self.features.shape[1] // BYTES[self.dtype]


def pack_tokens(tokens: Tokens, hashes: Hashes) -> dict[str, Any]:
    """The fields of a ``VisualTokens``."""
    return {
        **tokens.origin.message(),
        "instruction": tokens.instruction,
        **hashes.message(),
        "dtype": tokens.dtype,
        "dim": tokens.dim,
        "features": byte_array(tokens.features),
        "indices": np.asarray(tokens.index, np.uint32),
        "cameras": grid_fields(tokens.grids, tokens.index),
    }


def unpack_tokens(message: Any, hashes: Hashes, views: Sequence[Grid], dim: int) -> Tokens:
    """Kept tokens out of a ``VisualTokens``; features are a view of the message's bytes.

    Args:
        message: that came.
        hashes: of this node.
        views: the policy's cameras, in order; their stamps are not looked at.
        dim: numbers in a token, as the policy's decoder takes them.

    Raises:
        UnsupportedError: made with another encoder, reconstructor or recipe, other cameras, or
            for a decoder of another width.
        ShapeError: numbers that do not fit together, or no tokens at all.
    """
    hashes.check(message, "visual tokens")
    grids = tuple(
        Grid(g.name, int(g.rows), int(g.cols), seconds(g.stamp)) for g in message.cameras
    )
    if _layout(grids) != _layout(views):
        raise UnsupportedError(
            f"visual tokens: refused: their cameras are {_layout(grids)}, here they are "
            f"{_layout(views)}; start both nodes with the same policy."
        )
    if int(message.dim) != dim:
        raise UnsupportedError(
            f"visual tokens: refused: a token of theirs has {message.dim} numbers, the decoder "
            f"here takes {dim}; start both nodes with the same policy."
        )
    if len(message.indices) == 0:
        raise ShapeError("visual tokens: none came; nobody acts without seeing.")
    index = np.asarray(message.indices, np.int64)
    data = np.frombuffer(message.features, np.uint8)
    width = BYTES.get(message.dtype, 0) * int(message.dim)
    if width == 0 or data.size != width * len(index):
        raise ShapeError(
            f"visual tokens: {data.size} bytes came for {len(index)} tokens of {message.dim} "
            f"{message.dtype!r}; the dtype is one of {', '.join(BYTES)}."
        )
    _indices("visual tokens", index, sum(g.size for g in grids))
    features = data.reshape(len(index), width)
    return Tokens(origin_of(message), message.instruction, message.dtype, features, index, grids)


@dataclass(frozen=True)
class Scores:
    """What the action rows of one policy call looked at.

    Attributes:
        origin: of the observation.
        index: ``[K]`` grid indices that were observed, ascending.
        values: ``[K]`` float32.
        tokens: visual tokens before any cut.
    """

    origin: Origin
    index: np.ndarray
    values: np.ndarray
    tokens: int


SIGNAL = "action_attention"


def pack_scores(scores: Scores, hashes: Hashes) -> dict[str, Any]:
    """The fields of a ``TokenScores``."""
    return {
        **scores.origin.message(),
        **hashes.message(),
        "signal": SIGNAL,
        "tokens": scores.tokens,
        "indices": np.asarray(scores.index, np.uint32),
        "values": np.asarray(scores.values, np.float32),
    }


def unpack_scores(message: Any, hashes: Hashes, tokens: int) -> Scores:
    """Scores out of a ``TokenScores``.

    Args:
        message: that came.
        hashes: of this node.
        tokens: the policy's visual tokens before any cut.

    Raises:
        UnsupportedError: made with another encoder, reconstructor or recipe, or another signal.
        ShapeError: numbers that do not fit together, or are not finite.
    """
    hashes.check(message, "token scores")
    if message.signal != SIGNAL:
        raise UnsupportedError(
            f"token scores: signal {message.signal!r} is unknown; this node takes {SIGNAL!r}."
        )
    if int(message.tokens) != tokens:
        raise ShapeError(
            f"token scores: they are of {message.tokens} visual tokens, the policy has {tokens}; "
            "they are not used."
        )
    index = np.asarray(message.indices, np.int64)
    values = np.asarray(message.values, np.float32)
    if len(index) != len(values) or not np.isfinite(values).all():
        raise ShapeError(
            f"token scores: {len(values)} values for {len(index)} indices, or values that are not "
            "finite; they are not used."
        )
    _indices("token scores", index, tokens)
    return Scores(origin_of(message), index, values, tokens)


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """A short hash, 16 hexadecimal digits of SHA-256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Of a recipe as plain data, the budget left out: that may change while the nodes run."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items() if k != "budget"}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return fingerprint([json.dumps(plain(recipe), sort_keys=True)])


def _layout(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{g.name} {g.rows}x{g.cols}" for g in grids)


def _indices(where: str, index: np.ndarray, total: int) -> None:
    if len(index) and (index[-1] >= total or (np.diff(index) <= 0).any()):
        raise ShapeError(
            f"{where}: indices must ascend and stay below the {total} patches of the cameras; the "
            "message is not used."
        )
