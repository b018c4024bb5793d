"""Tables for people and numbers for programs: paired intervals, row formatting, provenance.

Knows no policy and no simulator.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table


def paired_interval(
    ours: Sequence[float], reference: Sequence[float], seed: int = 0, draws: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """Mean difference over paired episodes and its 95% bootstrap interval.

    Args:
        ours: outcome of each episode.
        reference: outcome of the same episodes with the reference row, in the same order.
        seed: of the resampling.
        draws: bootstrap samples.

    Returns:
        ``(difference, (low, high))`` in the unit of the outcomes.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(reference, dtype=float)
    if len(difference) == 0:
        return float("nan"), (float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    picks = rng.integers(len(difference), size=(draws, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return float(difference.mean()), (float(low), float(high))


def commit(folder: Path | None = None) -> str:
    """The checkout's commit, ``+changes`` if files differ from it, ``unknown`` outside one."""
    where = folder or Path(__file__).resolve().parent
    try:
        head = _git(where, "rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git(where, "status", "--porcelain", "-uno") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """What a figure has to name."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """Rows as a rich table; numbers get three significant places."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(
            column, justify="left" if column in ("recipe", "suite", "name") else "right"
        )
    for row in rows:
        made.add_row(*(cell(row.get(column)) for column in columns))
    return made


def cell(value: Any) -> str:
    """One value as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return " to ".join(cell(item) for item in value)
    return str(value)
