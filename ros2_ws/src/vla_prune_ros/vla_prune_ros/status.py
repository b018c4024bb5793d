"""How a node does: the status message and diagnostics, in plain fields."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from vla_prune.runtime.clock import Clock
from vla_prune.runtime.deadline import DeadlineMonitor
from vla_prune.runtime.slot import Drops
from vla_prune.types import ActionChunk
from vla_prune_ros.stamps import header_fields

OK, WARN, ERROR, STALE = range(4)
WINDOW_S = 2.0  # over which a rate is taken
WAITING, RUNNING, HOLDING = "waiting", "running", "holding"
TIMES = re.compile(r"(\d+(\.\d+)?|inf) m?s\b")  # in reasons


class Rate:
    """Events per second over the last seconds of steady time.

    One thread may count while another asks.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self.window_s = window_s
        self._times: deque[float] = deque()
        self._lock = Lock()

    def count(self, steady_s: float) -> None:
        """One event."""
        with self._lock:
            self._times.append(steady_s)
            self._forget(steady_s)

    def hz(self, steady_s: float) -> float:
        """The rate now; 0 when nothing came for the whole window."""
        with self._lock:
            self._forget(steady_s)
            if len(self._times) < 2:
                return 0.0
            # While events go missing the window's end is now, so that the rate falls at once.
            span = max(self._times[-1] - self._times[0], 1e-9)
            late = steady_s - self._times[-1] - span / (len(self._times) - 1)
            return (len(self._times) - 1) / (span + max(late, 0.0))

    def _forget(self, steady_s: float) -> None:
        while self._times and self._times[0] < steady_s - self.window_s:
            self._times.popleft()


@dataclass
class Health:
    """What a node knows of itself. The loops write it, the heartbeat sends it.

    Attributes:
        node: name.
        state: waiting, running or holding.
        reason: why it does not run.
        episode_id: in force.
        keep_ratio: asked for.
        ladder_step: place on the tuner's ladder; -1 without one.
        kept: site -> tokens that stayed at the last call.
        tokens: before any cut.
        stage_ms: of the last call.
        age_s: of the oldest image behind the last output.
        refused: inputs that were not acted on.
        last_refused: why the last of them was not.
        drops: input -> what was thrown away of it, as far as somebody counts.
        rate: of outputs.
        deadline: of cycles, if the node has a period.
        slack_s: of the last cycle.
        notes: said once, newest last.
    """

    node: str
    state: str = WAITING
    reason: str = "nothing came yet."
    episode_id: str = ""
    keep_ratio: float = 1.0
    ladder_step: int = -1
    kept: Mapping[str, int] = field(default_factory=dict)
    tokens: int = 0
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    age_s: float = float("inf")
    refused: int = 0
    last_refused: str = ""
    drops: Mapping[str, Drops] = field(default_factory=dict)
    rate: Rate = field(default_factory=Rate)
    deadline: DeadlineMonitor | None = None
    slack_s: float = float("nan")
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def runs(self) -> None:
        """All is well."""
        self.state, self.reason = RUNNING, ""

    def waits(self, reason: str) -> None:
        """Nothing to act on yet."""
        self.state, self.reason = WAITING, reason

    def holds(self, reason: str) -> None:
        """A fault; the machine holds."""
        self.state, self.reason = HOLDING, reason

    @property
    def news(self) -> str:
        """State and reason without the times in it, which change from tick to tick."""
        return TIMES.sub("", f"{self.state}: {self.reason}")

    def refuses(self, reason: str) -> None:
        """An input that is not acted on."""
        self.refused += 1
        self.last_refused = reason

    def acts(self, chunk: ActionChunk, clock: Clock) -> bool:
        """Whether a policy's chunk may be sent; if so, it is told as this node's last output.

        Actions that are not finite are refused, and the machine holds.
        """
        if not np.isfinite(chunk.actions).all():
            reason = "the policy's actions are not finite; they are not sent."
            self.refuses(reason)
            self.holds(reason)
            return False
        self.kept = {site: len(index) for site, index in chunk.kept.items()}
        self.stage_ms = chunk.stage_ms
        self.age_s = clock.now() - chunk.stamp_s
        self.notes.extend(chunk.notes)
        self.rate.count(clock.steady())
        self.runs()
        return True

    def message(self, now: float, steady: float) -> dict[str, Any]:
        """The fields of a ``PruneStatus``."""
        deadline = self.deadline
        return {
            "header": header_fields(now),
            "node": self.node,
            "episode_id": self.episode_id,
            "state": self.state,
            "reason": self.reason,
            "keep_ratio": float(self.keep_ratio),
            "ladder_step": self.ladder_step,
            "sites": list(self.kept),
            "kept": list(self.kept.values()),
            "tokens": self.tokens,
            "stages": list(self.stage_ms),
            "stage_ms": [float(v) for v in self.stage_ms.values()],
            "rate": self.rate.hz(steady),
            "age": float(self.age_s),
            "slack": float(self.slack_s),
            "misses": deadline.misses if deadline else 0,
            "misses_in_a_row": deadline.run if deadline else 0,
            "refused": self.refused,
        }

    def diagnostics(self, now: float, steady: float, machine: Mapping[str, float]) -> dict:
        """The fields of a ``diagnostic_msgs/DiagnosticArray`` with one status.

        Holding is an error that its reason names; waiting and missed deadlines are warnings.
        """
        told = self.message(now, steady)
        level = {RUNNING: OK, WAITING: WARN, HOLDING: ERROR}[self.state]
        text = self.reason or f"{told['rate']:.1f} Hz, age {1e3 * self.age_s:.0f} ms"
        if level == OK and told["misses_in_a_row"]:
            level, text = WARN, f"{told['misses_in_a_row']} deadlines missed in a row; {text}"
        values = {
            "state": self.state,
            "rate [Hz]": f"{told['rate']:.2f}",
            "age [ms]": f"{1e3 * self.age_s:.1f}",
            "slack [ms]": f"{1e3 * self.slack_s:.1f}",
            "misses": told["misses"],
            "misses in a row": told["misses_in_a_row"],
            "refused": self.refused,
            "last refused": self.last_refused,
            **{f"dropped of {name}": str(drops) for name, drops in self.drops.items()},
            "keep ratio": f"{self.keep_ratio:g}",
            "kept": ", ".join(f"{site} {n}" for site, n in self.kept.items()),
            "tokens": self.tokens,
            **{f"{stage} [ms]": f"{ms:.2f}" for stage, ms in self.stage_ms.items()},
            **{name: f"{value:.1f}" for name, value in machine.items()},
        }
        status = {
            "level": level,
            "name": f"vla_prune: {self.node}",
            "message": text,
            "hardware_id": "",
            "values": [{"key": k, "value": str(v)} for k, v in values.items()],
        }
        return {"header": header_fields(now), "status": [status]}


def machine(proc: Path = Path("/proc"), sys_: Path = Path("/sys")) -> dict[str, float]:
    """Memory of this process and device, and the hottest sensor, as far as they can be read."""
    found: dict[str, float] = {}
    try:
        pages = int((proc / "self" / "statm").read_text(encoding="ascii").split()[1])
        found["memory [MiB]"] = pages * 4096 / 2**20
    except (OSError, ValueError, IndexError):
        pass
    torch = sys.modules.get("torch")  # only where a policy has loaded it
    if torch is not None and torch.cuda.is_initialized():
        found["device memory [MiB]"] = torch.cuda.memory_reserved() / 2**20
    heat = []
    for sensor in sorted((sys_ / "class" / "thermal").glob("thermal_zone*/temp")):
        try:
            heat.append(int(sensor.read_text(encoding="ascii")) / 1e3)
        except (OSError, ValueError):
            continue
    if heat:
        found["temperature [C]"] = max(heat)
    return found
