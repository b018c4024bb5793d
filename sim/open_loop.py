"""Open-loop scores of a table's policies: plans made on the log, held against what it did next.

    python -m vla_prune_sim.open_loop configs/run/drive_smoke.yaml --set sim.root=DIR

The ego is put where the log was at every keyframe, sees what it would have seen there, and plans.
Prints one line of JSON with the six scores of `metrics.open_loop` for each recipe. A scene whose
data is broken counts as an error, is named, and is left out. Nobody reacts to a plan: `vla-prune
run` says how well a policy drives.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from vla_prune_sim.drive.scene import STEP_S
from vla_prune_sim.drive.vehicle import PLAN_DT_S
from vla_prune_sim.drive.world import DriveEpisodes, DriveWorld
from vla_prune_sim.metrics.open_loop import Frame, evaluate, frame_at
from vla_prune_sim.play import pruner_of
from vla_prune_sim.rollout import Row, RunConfig, settled
from vla_prune_sim.seats import BROKEN

from vla_prune import config, report
from vla_prune.build import build_adapter
from vla_prune.errors import ActionError, ConfigError, VlaPruneError
from vla_prune.policy import VLAPolicy, attach
from vla_prune.types import Observation, PolicyState

log = logging.getLogger(__name__)


def measure(run_config: RunConfig) -> list[dict[str, Any]]:
    """A row for each recipe of a driving table.

    Args:
        run_config: its world must be ``drive``; reference drivers and controls are left out.

    Returns:
        Rows with ``recipe``, ``keep_ratio``, ``frames`` that count, ``errors`` (answers that were
        no plan, and scenes that are broken), ``broken`` (names of those scenes) and each score's
        ``1s``, ``2s``, ``3s`` and ``avg``.
    """
    if run_config.world != "drive":
        raise ConfigError(
            f"open loop: the world is {run_config.world!r}; only plans of 'drive' are scored so."
        )
    run_config, _ = settled(run_config)
    world = DriveWorld(**{**run_config.sim, "agents": "log"})
    rows = [row for row in run_config.rows if row.recipe and row.control == "none"]
    told = []
    for suite, entry in run_config.suites.items():
        adapter = build_adapter(entry.policy)
        for row in rows:
            with attach(pruner_of(row, run_config.cut_layer), adapter) as policy:
                told.append({"suite": suite, **_row(row, world, entry.tasks, policy)})
    return told


def _row(row: Row, world: DriveWorld, tasks: Sequence[int], policy: VLAPolicy) -> dict[str, Any]:
    plans: list[np.ndarray] = []
    frames: list[Frame] = []
    broken: list[str] = []
    errors = 0
    for task in tasks:
        episodes = world.open("drive", task)
        try:
            # All of a scene or nothing: how far it got before it broke must not weigh in the mean.
            moments = list(_moments(episodes))
        except BROKEN as error:
            log.warning("%s is left out: %s", episodes.name, error)
            broken.append(episodes.name)
            continue
        finally:
            episodes.close()
        state = policy.new_state()
        for seen, frame in moments:
            plan = _plan(policy, seen, state)
            if plan is None:
                errors += 1
            else:
                plans.append(plan)
                frames.append(frame)
    about = {"recipe": row.recipe, "keep_ratio": row.keep_ratio, "errors": errors + len(broken)}
    scores = evaluate(np.stack(plans), frames) if plans else {}
    return about | {"broken": broken, "frames": len(frames)} | scores


def _moments(episodes: DriveEpisodes) -> Iterator[tuple[Observation, Frame]]:
    """What the log saw and then did, every half second that has 3 s of it ahead."""
    seen = episodes.start(0, 0)
    simulation = episodes.env.simulation
    while (frame := frame_at(simulation.scene, simulation.step_index)).complete:
        yield seen, frame
        simulation.relive(round(PLAN_DT_S / STEP_S))
        seen = episodes.observe()


def _plan(policy: VLAPolicy, seen: Observation, state: PolicyState) -> np.ndarray | None:
    """Places ``[6, 2]``; None where the answer is no plan."""
    try:
        steps = policy.act_one(seen, state).actions
    except ActionError:
        return None
    return np.cumsum(steps, axis=0) if np.isfinite(steps).all() else None


def main(argv: list[str] | None = None) -> None:
    """The command line: one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configs/run/*.yaml of the world drive")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    args = parser.parse_args(argv)
    try:
        data = config.load(args.config, args.overrides, kind="run")
        config.check_keys(args.config, RunConfig, data)
        run_config = RunConfig(**data)
        rows = measure(run_config)
    except VlaPruneError as error:
        parser.error(str(error))
    about = report.provenance(run_config.seed, "python -m vla_prune_sim.open_loop")
    print(json.dumps(about | {"rows": rows}))


if __name__ == "__main__":
    main()
