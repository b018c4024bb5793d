"""How well scores find foreground tokens."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vla_prune.errors import MissingError
from vla_prune.ops import topk_mask
from vla_prune.recon.frames import FOREGROUND, IGNORE


def average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean of :func:`precisions` over the frames that say anything; NaN if none does."""
    found = precisions(scores, labels)
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


def precisions(scores: Tensor, labels: Tensor) -> np.ndarray:
    """Average precision of foreground within each frame.

    Within a frame, because there tokens compete; by scikit-learn, which counts ties fairly.

    Args:
        scores: ``[F, N]``.
        labels: ``[F, N]`` 0 background, 1 foreground, 2 ignore.

    Returns:
        ``[F]`` in [0, 1]; NaN for frames that are all foreground or have none, which say nothing.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError as error:
        raise MissingError(
            "average precision needs scikit-learn; pip install 'vla-prune[train]'."
        ) from error
    found = np.full(len(labels), np.nan)
    for frame, (score, label) in enumerate(zip(scores.float().cpu(), labels.cpu(), strict=True)):
        counted = label != IGNORE
        wanted = label[counted] == FOREGROUND
        if wanted.any() and not wanted.all():
            found[frame] = average_precision_score(wanted.numpy(), score[counted].numpy())
    return found


def recall_at(scores: Tensor, labels: Tensor, share: float) -> tuple[float, float]:
    """Share of the foreground tokens among the best ``share`` of a frame's tokens.

    Args:
        scores: ``[F, N]``.
        labels: ``[F, N]`` 0 background, 1 foreground, 2 ignore.
        share: in (0, 1].

    Returns:
        Mean over frames that have foreground, and the same for perfect scores: where more is
        foreground than may stay, nothing reaches 1.
    """
    k = max(1, round(scores.shape[1] * share))
    wanted = labels == FOREGROUND
    frames = wanted.any(dim=1)
    count = wanted.sum(dim=1)[frames].float()
    if not len(count):
        return float("nan"), float("nan")
    hit = (topk_mask(scores.float(), k) & wanted).sum(dim=1)[frames]
    return float((hit / count).mean()), float((count.clamp(max=k) / count).mean())
