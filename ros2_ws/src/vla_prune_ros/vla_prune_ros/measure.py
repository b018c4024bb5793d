"""What the nodes add to a policy, on a real graph of processes: ``results/ros.json``.

    python -m vla_prune_ros.measure --seconds 300 --out results/ros.json

A process with two cameras, joints and a task feeds the fused nodes, then the split ones. Of every
frame: the camera callback of the later picture, the policy's own compute, the publish call of its
``ActionChunk``, and the first tick that plays it. *Added* is callback to publish less compute (of
this frame, and of the one before while it kept this one waiting), plus that tick's own time;
transport and the wait for the tick stand apart. Times are CLOCK_MONOTONIC, one for all processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.serialization import serialize_message

from vla_prune import config, report
from vla_prune_ros.contract import load_contract
from vla_prune_ros.convert import image_fields, to_rgb
from vla_prune_ros.measure_nodes import (
    COLUMNS,
    IMAGE,
    READY_S,
    SETTLE_S,
    camera_process,
    node_process,
)
from vla_prune_ros.memory import keep_memory
from vla_prune_ros.ros_messages import message

FORMS = {"fused": (("policy", "command"),), "split": (("pruner",), ("policy", "command"))}


class Seen:
    """A :class:`Log`, read back; the last entry of a frame counts."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as data:
            self.pictures, self.bytes = json.loads(str(data["told"]))
            self.columns = {name: data[name] for name in COLUMNS}

    def frames(self, name: str) -> dict[int, float]:
        """Frame -> value."""
        return {round(frame): float(value) for frame, value in self.columns[name]}

    def values(self, name: str) -> np.ndarray:
        """All values."""
        return self.columns[name][:, 1]


def run_form(form: str, options: Any, lockstep: int = 0) -> tuple[list[Seen], Any]:
    """Start the nodes and the cameras, wait for the end; their logs."""
    with tempfile.TemporaryDirectory() as folder:
        return _run_form(form, options, lockstep, Path(folder))


def _run_form(form: str, options: Any, lockstep: int, folder: Path) -> tuple[list[Seen], Any]:
    started, logs = [], []
    common = _arguments(options, form)
    try:
        for names in FORMS[form]:
            logs.append(folder / f"{names[0]}.npz")
            command = [*common, "--role", ",".join(names), "--log", str(logs[-1])]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for process in started:
            if "ready" not in process.stdout.readline():
                raise SystemExit(f"measure: the nodes of the {form} form did not start.")
        frames = folder / "cameras.json"
        extra = ["--role", "cameras", "--log", str(frames), "--lockstep", str(lockstep)]
        subprocess.run([*common, *extra], check=True, timeout=options.seconds + READY_S)
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(60.0)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    return [Seen(path) for path in logs], json.loads(frames.read_text(encoding="utf-8"))


def _arguments(options: Any, form: str) -> list[str]:
    height, width = options.size
    return [
        *(sys.executable, "-m", "vla_prune_ros.measure", "--form", form),
        *("--size", f"{width}x{height}", "--rate", str(options.rate)),
        *("--seconds", str(options.seconds), "--policy", options.policy),
        *("--recipe", options.recipe, "--keep", str(options.keep)),
        *("--contract", options.contract),
    ]


def row(form: str, logs: Sequence[Seen], sent: dict[str, float], options: Any) -> dict[str, Any]:
    """One row of the table; the first frames, while all is cold, are left out of the times."""
    first, last = logs[0], logs[-1]
    published_at, arrived = last.frames("published"), first.frames("arrived")
    taken, played_at, spent = (last.frames(name) for name in ("taken", "played", "spent"))
    computes = [log.frames("compute") for log in logs]
    frames = [int(frame) for frame in sent][int(options.rate * SETTLE_S) :]
    acted = [f for f in frames if f in published_at and f in arrived]
    own = {f: sum(compute.get(f, 0.0) for compute in computes) for f in acted}
    busy = busy_waits(first, arrived)
    to_chunk = {f: published_at[f] - arrived[f] - own[f] - busy.get(f, 0.0) for f in acted}
    played = [f for f in acted if f in played_at]
    added = [to_chunk[f] + spent[f] for f in played]
    cameras = len(load_contract(options.contract).cameras)
    ages = np.concatenate([log.values("act_ages") for log in logs])
    height, width = options.size
    made = {
        "case": form,
        "image": f"{width}x{height}",
        "cameras": cameras,
        "rate_hz": options.rate,
        "seconds": options.seconds,
        "frames": len(frames),
        "added_median_ms": _ms(added, 50),
        "added_p99_ms": _ms(added, 99),
        "to_chunk_median_ms": _ms(to_chunk.values(), 50),
        "to_chunk_p99_ms": _ms(to_chunk.values(), 99),
        "tick_median_ms": _ms(last.values("ticks"), 50),
        "tick_p99_ms": _ms(last.values("ticks"), 99),
        "tick_wait_median_ms": _ms([played_at[f] - taken[f] for f in played], 50),
        "busy_wait_median_ms": _ms([busy.get(f, 0.0) for f in acted], 50),
        "policy_median_ms": _ms(own.values(), 50),
        "policy_p99_ms": _ms(own.values(), 99),
        "camera_transport_median_ms": _ms(
            [arrived[f] - sent[str(f)] for f in frames if f in arrived], 50
        ),
        "chunk_transport_median_ms": _ms(
            [taken[f] - published_at[f] for f in acted if f in taken], 50
        ),
        "lost": cameras * len(sent) - first.pictures,
        "not_acted_on": len(frames) - len(acted),
        "oldest_acted_on_ms": _ms(ages, 100),
        "oldest_played_ms": _ms(last.values("tick_ages"), 100),
        **{
            f"{name}_growth_mib_per_min": {
                "+".join(names): _growth(log.columns[name])
                for names, log in zip(FORMS[form], logs, strict=True)
            }
            for name in ("memory", "allocated")
        },
        "rmw": rclpy.get_rmw_implementation_identifier(),
    }
    if form == "fused":
        one = len(serialize_message(message(IMAGE, image_fields(_blank(options.size), 0.0))))
        made["bytes_per_frame"] = cameras * one
    else:
        made["bytes_per_frame"] = first.bytes[f"{options.keep:g}"]
        made["dense_bytes_per_frame"] = first.bytes["1"]
    return made


def busy_waits(log: Seen, arrived: dict[int, float]) -> dict[int, float]:
    """Frame -> seconds that it waited because the policy still computed the one before."""
    begun, spent = log.frames("begun"), log.frames("compute")
    order = sorted((f for f in begun if f in spent), key=begun.__getitem__)
    found = {}
    for before, frame in pairwise(order):
        if frame in arrived:
            found[frame] = max(0.0, begun[before] + spent[before] - arrived[frame])
    return found


def conversion(options: Any, repeats: int = 200) -> dict[str, Any]:
    """What it costs to read a picture out of a message, and to put one into one."""
    keep_memory()
    pixels = _blank(options.size)
    told = message(IMAGE, image_fields(pixels, 0.0))
    times: dict[str, list[float]] = {"read": [], "write": []}
    for _ in range(repeats):
        for name, act in (
            ("read", lambda: to_rgb(told)),
            ("write", lambda: message(IMAGE, image_fields(pixels, 0.0))),
        ):
            begun = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - begun)
    height, width = options.size
    made = {"case": "conversion", "image": f"{width}x{height}", "frames": repeats}
    for name, spent in times.items():
        made |= {f"{name}_median_ms": _ms(spent, 50), f"{name}_p99_ms": _ms(spent, 99)}
    return made


def _blank(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def _ms(values: Any, percentile: float) -> float | None:
    values = list(values)
    return round(1e3 * float(np.percentile(values, percentile)), 3) if values else None


def _growth(memory: np.ndarray) -> float | None:
    """MiB a minute over the last two thirds: what is left once all is warm."""
    warm = memory[len(memory) // 3 :]
    if len(warm) < 5 or np.isnan(warm).any():
        return None
    return round(60.0 * float(np.polyfit(warm[:, 0], warm[:, 1], 1)[0]), 3)


def measure(options: Any) -> dict[str, Any]:
    """All rows."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        rate = [f"rate_hz={options.rate:g}"]
        config.save(config.load(options.contract, rate, kind="ros"), Path(file.name))
        options.contract = file.name
        rows = [conversion(options)]
        same = {}
        for form in options.forms:
            logs, sent = run_form(form, options)
            rows.append(row(form, logs, sent, options))
            if options.frames_in_lockstep:
                same[form] = run_form(form, options, options.frames_in_lockstep)[1]
        if len(same) == 2:
            equal = [a is not None and a == b for a, b in zip(*same.values(), strict=True)]
            rows[-1] |= {"compared_with_fused": len(equal), "identical_to_fused": sum(equal)}
    about = report.provenance(0, "python -m vla_prune_ros.measure")
    about["cyclonedds"] = os.environ.get("CYCLONEDDS_URI", "").rpartition("/")[2]
    if options.out:  # where to, which is no part of what was measured
        about["command"] = about["command"].replace(f" --out {options.out}", "")
    settings = {name: getattr(options, name) for name in ("policy", "recipe", "keep")}
    return about | {**settings, "rows": rows}


def main() -> None:
    """Measure, print the rows, and write them."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--seconds", type=float, default=20.0, help="of each form")
    parse.add_argument("--rate", type=float, default=30.0, help="frames and ticks per second")
    parse.add_argument("--size", default="640x480", type=_size)
    parse.add_argument("--policy", default="pocket_arm_timing")
    parse.add_argument("--recipe", default="dual_level")
    parse.add_argument("--keep", type=float, default=0.25)
    parse.add_argument("--contract", default="arm")
    parse.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parse.add_argument("--frames-in-lockstep", type=int, default=30, help="to compare forms")
    parse.add_argument("--out", type=Path)
    for name in ("--role", "--form"):
        parse.add_argument(name, default="", help=argparse.SUPPRESS)
    parse.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    parse.add_argument("--lockstep", type=int, default=0, help=argparse.SUPPRESS)
    options = parse.parse_args()
    if options.role == "cameras":
        camera_process(options)
    elif options.role:
        node_process(options.form, options.role.split(","), options)
    else:
        text = json.dumps(measure(options), indent=1)
        if options.out:
            options.out.write_text(text + "\n", encoding="utf-8")
        sys.stdout.write(text + "\n")


def _size(text: str) -> tuple[int, int]:
    """Height and width out of ``640x480``."""
    width, height = text.split("x")
    return int(height), int(width)


if __name__ == "__main__":
    main()
