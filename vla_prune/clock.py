"""Stage times of one policy call: device events on CUDA, a monotonic clock elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Adds up milliseconds per named stage; a nested stage is taken off its parent.

    Args:
        enabled: when False every stage is free.
        device: where the work runs; CUDA work is timed by events and read once at the end.
    """

    def __init__(self, enabled: bool = False, device: torch.device | str = "cpu") -> None:
        self.enabled = enabled
        self.cuda = torch.device(device).type == "cuda"
        self._spans: list[tuple[str, str | None, object, object]] = []
        self._open: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body under ``name``."""
        if not self.enabled:
            yield
            return
        parent = self._open[-1] if self._open else None
        self._open.append(name)
        start = self._now()
        try:
            yield
        finally:
            self._spans.append((name, parent, start, self._now()))
            self._open.pop()

    def milliseconds(self) -> dict[str, float]:
        """Stage -> milliseconds, exclusive of nested stages. Waits for the device once."""
        if self.cuda and self._spans:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for name, parent, start, stop in self._spans:
            span = start.elapsed_time(stop) if self.cuda else (stop - start) * 1e3
            total[name] += span
            if parent is not None:
                total[parent] -= span
        return dict(total)

    def _now(self) -> object:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
