"""Whether an exported encoder and reconstructor keep the tokens that torch keeps.

Scores are sums in float32 whose order differs between torch and ONNX Runtime, so two tokens whose
scores are closer than that rounding may swap at the edge of the kept set. A frame in which nothing
else differs is counted as ``rounding``, apart from the equal ones and from those that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_prune.ops import topk_indices
from vla_prune.recon.ort import OrtVision

# Of the standard deviation of a frame's scores. Pocket policies' scores were up to 5e-5 of it off,
# and a swap takes two.
ROUNDING = 2e-4
TOLERATED = 0.01  # of the frames may differ within rounding
GRAINS = (1, 4, 12, 36)


def random_images(batch: int, views: int, size: int, seed: int) -> Tensor:
    """Noise whose grain differs from picture to picture: ``[B, V, 3, size, size]`` in [0, 1].

    Values are those of bytes, as a camera's are.
    """
    rng = np.random.default_rng(seed)
    pictures = np.empty((batch, views, 3, size, size), dtype=np.float32)
    for row in range(batch):
        for view in range(views):
            grain = int(rng.choice(GRAINS))
            cells = -(-size // grain)
            noise = rng.integers(0, 256, (3, cells, cells), dtype=np.uint8)
            large = noise.repeat(grain, axis=1).repeat(grain, axis=2)[:, :size, :size]
            pictures[row, view] = large
    return torch.from_numpy(pictures) / 255.0


@torch.inference_mode()
def compare(
    seeing: nn.Module,
    vision: OrtVision,
    kept: Mapping[float, int],
    frames: int,
    report: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Count the random frames on which both keep the same tokens, one frame a call as on a robot.

    Args:
        seeing: images to tokens and scores ``[B, N]``, in torch.
        vision: exported from it.
        kept: keep ratio -> tokens.
        frames: how many; frame ``i`` is of seed ``i``.
        report: called with the share done, 0 to 1.

    Returns:
        ``passed``: none differs but within rounding, and of those at most 1%; ``frames``;
        ``equal``, ``rounding`` and ``different`` frames, over all budgets together;
        ``overlap`` by keep ratio, the mean share of torch's tokens that stay;
        ``score_correlation``, mean over frames; ``score_error``, the largest difference in
        standard deviations of a frame's scores; ``first`` difference of any kind, or None.
    """
    overlap = {ratio: 0.0 for ratio in kept}
    correlation, error, counts = 0.0, 0.0, {"equal": 0, "rounding": 0, "different": 0}
    first: dict[str, Any] | None = None
    for frame in range(frames):
        images = random_images(1, len(vision.views), vision.image_size, seed=frame)
        scores = seeing(images)[1]
        spread = float(scores.std())
        verdict = "equal"
        for ratio, k in kept.items():
            seen = vision.see(images.numpy(), k)
            ours, theirs = set(topk_indices(scores, k)[0].tolist()), set(seen.index[0].tolist())
            overlap[ratio] += len(ours & theirs) / k
            if ours == theirs:
                continue
            lost, won = sorted(ours - theirs), sorted(theirs - ours)
            row = scores[0]
            gap = float(row[lost].max() - row[won].min()) / max(spread, 1e-30)
            verdict = "different" if gap > ROUNDING or verdict == "different" else "rounding"
            first = first or {
                "frame": frame,
                "keep_ratio": ratio,
                "only_torch": lost,
                "only_onnx": won,
                "gap": gap,
            }
        counts[verdict] += 1
        other = torch.from_numpy(seen.scores)
        error = max(error, float((other - scores).abs().max()) / max(spread, 1e-30))
        correlation += float(torch.corrcoef(torch.cat([scores, other]))[0, 1])
        if report:
            report((frame + 1) / frames)
    return {
        "passed": not counts["different"] and counts["rounding"] <= TOLERATED * frames,
        "frames": frames,
        **counts,
        "overlap": {str(ratio): total / frames for ratio, total in overlap.items()},
        "score_correlation": correlation / frames,
        "score_error": error,
        "first": first,
    }
