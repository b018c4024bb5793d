"""How hard a drive was on its passengers: nuPlan's six bounds on what was driven.

Knows poses and speeds only, no road and no other road user.
"""

from __future__ import annotations

import numpy as np
from vla_prune_sim.drive.scene import EGO_CENTRE, STEP_S

COMFORT = {
    "lon_accel": (-4.05, 2.40),
    "lat_accel": (-4.89, 4.89),
    "yaw_rate": (-0.95, 0.95),
    "yaw_accel": (-1.93, 1.93),
    "lon_jerk": (-4.13, 4.13),
    "jerk": (-8.37, 8.37),
}


def savgol(values: np.ndarray, window: int, degree: int, derivative: int) -> np.ndarray:
    """Savitzky-Golay derivative ``[T]`` of samples ``[T]`` taken every ``STEP_S``.

    A polynomial is fitted to the window around each sample; near the ends to the first and last
    window. The window shrinks to what there is.
    """
    window = min(window, len(values))
    degree = min(degree, window - 1)
    x = np.arange(window) - (window - 1) / 2
    fit = np.linalg.pinv(np.vander(x, degree + 1, increasing=True))  # [degree + 1, window]
    basis = np.polynomial.polynomial.polyder(np.eye(degree + 1), derivative)
    weights = np.polynomial.polynomial.polyval(x, basis).T @ fit / STEP_S**derivative
    start = np.clip(np.arange(len(values)) - window // 2, 0, len(values) - window)
    seen = np.lib.stride_tricks.sliding_window_view(values, window)[start]
    return (weights[np.arange(len(values)) - start] * seen).sum(1)


def comfort_terms(ego: np.ndarray, speed: np.ndarray) -> dict[str, np.ndarray]:
    """Accelerations, jerks and yaw motion ``[T]`` of the ego box's centre, SI units.

    Filters as in nuPlan: Savitzky-Golay, degree 2, window 15 for jerk, 5 for yaw rate (degree 3
    for its change). nuPlan smooths the simulator's own acceleration with degree 2 and window 8,
    half a step askew; here it is the derivative of the driven speed, degree 3, window 9. Jerk is,
    as there, the change of the acceleration's magnitude.

    Args:
        ego: ``[T, 3]`` poses of the rear axle, every ``STEP_S``.
        speed: ``[T]`` m/s along the heading.
    """
    heading = np.unwrap(ego[:, 2])
    yaw_rate, yaw_accel = savgol(heading, 5, 2, 1), savgol(heading, 5, 3, 2)
    lon = savgol(np.asarray(speed, float), 9, 3, 1) - yaw_rate**2 * EGO_CENTRE
    lat = speed * yaw_rate + yaw_accel * EGO_CENTRE
    return {
        "lon_accel": lon,
        "lat_accel": lat,
        "yaw_rate": yaw_rate,
        "yaw_accel": yaw_accel,
        "lon_jerk": savgol(lon, 15, 2, 1),
        "jerk": savgol(np.hypot(lon, lat), 15, 2, 1),
    }


def comfort(terms: dict[str, np.ndarray]) -> float:
    """C: 1 where every term stays within nuPlan's bounds all the time, else 0."""
    return float(
        all(lo <= terms[k].min() and terms[k].max() <= hi for k, (lo, hi) in COMFORT.items())
    )
