"""The pruned stream: what is packed comes out, what does not belong is refused and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from vla_prune_ros import wire
from vla_prune_ros.tokens import (
    Grid,
    Hashes,
    Origin,
    Scores,
    Tokens,
    pack_scores,
    pack_tokens,
    recipe_hash,
    unpack_scores,
    unpack_tokens,
)

from vla_prune.errors import ShapeError, UnsupportedError

TOKENS, SCORES = "vla_prune_msgs/msg/VisualTokens", "vla_prune_msgs/msg/TokenScores"
OURS = Hashes("enc", "rec", "rcp")
ORIGIN = Origin("episode", 7, 12.5)
GRIDS = (Grid("front", 4, 4, 12.5), Grid("wrist", 2, 3, 12.52))
INDEX = np.array([0, 5, 15, 16, 21])
DIM = 6


def tokens(dtype: str = "float32", width: int = 4) -> Tokens:
    features = np.random.default_rng(0).integers(0, 256, (5, DIM * width), np.uint8)
    return Tokens(ORIGIN, "pick it up", dtype, features, INDEX, GRIDS)


def over_the_wire(kind: str, fields: dict) -> object:
    return wire.decode(wire.encode(wire.make(kind, fields), kind), kind)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_tokens_come_out_as_they_went_in(dtype: str, width: int) -> None:
    given = tokens(dtype, width)
    message = over_the_wire(TOKENS, pack_tokens(given, OURS))
    back = unpack_tokens(message, OURS, GRIDS, DIM)
    np.testing.assert_array_equal(back.features, given.features)
    np.testing.assert_array_equal(back.index, INDEX)
    assert (back.origin, back.instruction, back.dtype, back.dim) == (
        ORIGIN,
        "pick it up",
        dtype,
        6,
    )
    assert back.grids == GRIDS
    assert np.shares_memory(back.features, message.features)
    assert [grid.kept for grid in message.cameras] == [3, 2]
    assert message.trace_id == "episode/7"


@pytest.mark.parametrize("part", ["encoder", "reconstructor", "recipe"])
def test_another_hash_is_refused_and_named(part: str) -> None:
    message = over_the_wire(TOKENS, pack_tokens(tokens(), replace(OURS, **{part: "other"})))
    with pytest.raises(UnsupportedError, match=f"made with {part} other, here is"):
        unpack_tokens(message, OURS, GRIDS, DIM)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("dtype", "float64", "the dtype is one of"),
        ("features", np.zeros(119, np.uint8), "119 bytes came for 5 tokens"),
        ("indices", np.array([0, 5, 4, 16, 21], np.uint32), "must ascend"),
        ("indices", np.array([0, 5, 15, 16, 22], np.uint32), "below the 22 patches"),
    ],
)
def test_tokens_that_do_not_fit_together_are_refused(field: str, value: object, text: str) -> None:
    message = over_the_wire(TOKENS, pack_tokens(tokens(), OURS))
    setattr(message, field, value)
    with pytest.raises(ShapeError, match=text):
        unpack_tokens(message, OURS, GRIDS, DIM)


def test_tokens_of_other_cameras_and_no_tokens_are_refused() -> None:
    other = replace(tokens(), grids=(replace(GRIDS[0], cols=5), GRIDS[1]))
    with pytest.raises(UnsupportedError, match="are front 4x5, wrist 2x3, here they are front 4x"):
        unpack_tokens(over_the_wire(TOKENS, pack_tokens(other, OURS)), OURS, GRIDS, DIM)
    none = replace(tokens(), features=np.zeros((0, 24), np.uint8), index=INDEX[:0])
    with pytest.raises(ShapeError, match="none came"):
        unpack_tokens(over_the_wire(TOKENS, pack_tokens(none, OURS)), OURS, GRIDS, DIM)


@pytest.mark.parametrize("dim", [0, 3, 12])
def test_tokens_for_a_decoder_of_another_width_are_refused_and_named(dim: int) -> None:
    """Whole in themselves, and of the right hashes."""
    fields = pack_tokens(tokens(), OURS)
    whole = np.zeros(5 * dim * 4, np.uint8)
    message = over_the_wire(TOKENS, fields | {"dim": dim, "features": whole})
    told = f"a token of theirs has {dim} numbers, the decoder here takes 6"
    with pytest.raises(UnsupportedError, match=told):
        unpack_tokens(message, OURS, GRIDS, DIM)


@pytest.mark.parametrize("total", [23, 4_000_000_000])
def test_scores_of_another_number_of_tokens_are_refused(total: int) -> None:
    given = Scores(ORIGIN, INDEX, np.zeros(5, np.float32), total)
    message = over_the_wire(SCORES, pack_scores(given, OURS))
    with pytest.raises(ShapeError, match=f"of {total} visual tokens, the policy has 22"):
        unpack_scores(message, OURS, 22)


def test_scores_come_out_as_they_went_in() -> None:
    given = Scores(ORIGIN, INDEX, np.linspace(0, 1, 5, dtype=np.float32), 22)
    back = unpack_scores(over_the_wire(SCORES, pack_scores(given, OURS)), OURS, 22)
    np.testing.assert_array_equal(back.values, given.values)
    np.testing.assert_array_equal(back.index, INDEX)
    assert (back.origin, back.tokens) == (ORIGIN, 22)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    given = Scores(ORIGIN, INDEX, np.array([1, 2, 3, 4, value], np.float32), 22)
    with pytest.raises(ShapeError, match="not finite"):
        unpack_scores(over_the_wire(SCORES, pack_scores(given, OURS)), OURS, 22)


def test_a_recipes_hash_is_of_the_method_and_not_of_the_budget() -> None:
    recipe = {"name": "r", "cuts": [{"site": "projector", "budget": {"keep_ratio": 0.5}}]}
    same = {"cuts": [{"budget": {"keep_ratio": 0.1}, "site": "projector"}], "name": "r"}
    other = {"name": "r", "cuts": [{"site": "decoder.3", "budget": {"keep_ratio": 0.5}}]}
    assert recipe_hash(recipe) == recipe_hash(same) != recipe_hash(other)
