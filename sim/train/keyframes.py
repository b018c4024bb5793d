"""Draw the frames more often in which one has to look.

Most frames of a demonstration go on as the state already says: a car that drives drives on. A
policy that learns from all alike copies its state, and does not brake. After keyframe-focused
imitation (Wen et al., arXiv 2106.06452), frames weigh by how wrong a predictor is that sees no
picture; theirs is a network over past actions, ours a least-squares fit on the state. Knows no
simulator.
"""

from __future__ import annotations

import numpy as np

MOST = 8.0  # times the mean weight: a few odd frames shall not fill every batch


def surprise(states: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """How far each chunk is from what the state alone tells, squared: ``[F]``, mean 1 uncapped.

    Each number of a chunk counts by what it is usually off, so that braking weighs like steering.

    Args:
        states: ``[F, P]`` physical units.
        chunks: ``[F, chunk, A]`` physical units.
    """
    wanted = chunks.reshape(len(chunks), -1).astype(np.float64)
    known = (states - states.mean(axis=0)) / np.maximum(states.std(axis=0), 1e-6)
    known = np.concatenate([known, known**2, np.ones((len(known), 1))], axis=1)
    told = known @ np.linalg.lstsq(known, wanted, rcond=None)[0]
    wrong = np.abs(wanted - told)
    wrong = (wrong / np.maximum(wrong.mean(axis=0), 1e-6)).mean(axis=1) ** 2
    return np.minimum(wrong / max(wrong.mean(), 1e-12), MOST)


def draw(rng: np.random.Generator, weight: np.ndarray, count: int, share: float) -> np.ndarray:
    """Indices of ``count`` frames: about ``share`` of them by weight, the others evenly.

    Args:
        rng: of the draw.
        weight: ``[F]``, of `surprise`.
        count: how many.
        share: in [0, 1].
    """
    even = rng.integers(len(weight), size=count)
    if not share:
        return even
    below = np.cumsum(weight)
    keyed = np.searchsorted(below, rng.random(count) * below[-1], side="right")
    return np.where(rng.random(count) < share, np.minimum(keyed, len(weight) - 1), even)
