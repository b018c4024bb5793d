"""Frames that need a look are drawn more often than those that the state already tells."""

from __future__ import annotations

import numpy as np
import pytest
from vla_prune_sim.train.keyframes import MOST, draw, surprise


def drives(frames: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Speed kept in all frames but every tenth, where the car brakes for what is seen."""
    rng = np.random.default_rng(0)
    speed = rng.uniform(4.0, 10.0, frames)
    brakes = np.arange(frames) % 10 == 0
    steps = np.where(brakes, 0.2, 1.0) * speed / 2
    chunks = np.stack([steps, np.zeros(frames)], axis=-1)[:, None].repeat(6, axis=1)
    return np.stack([speed, rng.normal(size=frames)], axis=-1), chunks, brakes


def test_what_the_state_does_not_tell_weighs_most() -> None:
    states, chunks, brakes = drives()
    weight = surprise(states, chunks)
    assert weight[brakes].min() > 3.0 * np.quantile(weight[~brakes], 0.9)
    assert weight.max() <= MOST


def test_a_fixed_state_and_fixed_actions_weigh_nothing_and_break_nothing() -> None:
    weight = surprise(np.ones((20, 3)), np.zeros((20, 6, 2)))
    assert np.isfinite(weight).all()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_that_is_drawn_by_weight(share: float) -> None:
    weight = np.zeros(100)
    weight[7] = 1.0
    drawn = draw(np.random.default_rng(0), weight, 4000, share)
    assert (drawn == 7).mean() == pytest.approx(share + (1 - share) / 100, abs=0.03)
    assert drawn.min() >= 0
    assert drawn.max() < 100
