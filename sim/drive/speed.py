"""What the driving environment costs: processor time of one core, printed as JSON.

    python -m vla_prune_sim.drive.speed --root runs/world

Without a root a town is made from a seed. Times are of this process's processor time, so that
other load on the machine disturbs them little; OpenCV runs on one thread. No policy is asked: the
way that the rule-based expert drove before is the plan.

``steps_per_s`` is `DriveEnv.step` of 0.1 s each with three pictures at every step, which no policy
at 2 Hz needs; ``plans_per_s`` is `DriveEnv.step` of half a second with three pictures. Shares are
of the former. ``traffic_ms`` is one step of all others; ``reference_drive_s`` the rule-based
expert's drive that progress in a scene is measured by, once for all rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from vla_prune_sim.drive.drivers import RuleExpert
from vla_prune_sim.drive.env import DriveEnv
from vla_prune_sim.drive.geometry import to_local
from vla_prune_sim.drive.make_world import make_root
from vla_prune_sim.drive.render import Renderer
from vla_prune_sim.drive.scene import Scene
from vla_prune_sim.drive.score import feasible_m, score
from vla_prune_sim.drive.simulation import PRIMED, Simulation, drive
from vla_prune_sim.drive.traffic import Traffic
from vla_prune_sim.drive.vehicle import PLAN_POINTS

from vla_prune import report

VIEW = (400, 224)
COSTS = ("steps", "plans", "traffic", "metrics", "build", "render", "reference")


def measure(root: Path, scenes: int = 2, plans: int = 38) -> dict[str, Any]:
    """Costs over the first scenes of a root.

    Args:
        root: a nuScenes root or a folder of ScenarioNet pickles.
        scenes: how many of them.
        plans: half seconds driven in each, at most.
    """
    cv2.setNumThreads(1)
    env = DriveEnv(root, image_size=VIEW)
    names = env.world.names[:scenes]
    total = {name: 0.0 for name in COSTS}
    count = {"steps": 0, "plans": 0, "render": 0}
    agents = 0
    for name in names:
        scene = env.world.load(name)
        agents = max(agents, len(scene.tracks))
        start = time.process_time()
        expert = drive(scene, RuleExpert())
        total["reference"] += time.process_time() - start
        score(expert, feasible_m(expert))  # once, to prepare the ground
        for kind, steps in (("plans", 5), ("steps", 1)):
            env.plan_steps = steps
            env.reset(options={"scene": name})
            with _spent(Traffic, "advance") as traffic:
                for step in range(PRIMED, PRIMED + 5 * plans, steps):
                    plan = _plan(expert, step, env.simulation.body.pose)
                    start = time.process_time()
                    _, _, terminated, truncated, _ = env.step(plan)
                    total[kind] += time.process_time() - start
                    count[kind] += 1
                    if terminated or truncated:
                        break
            if kind == "steps":
                total["traffic"] += traffic()
        total["metrics"] += _time(lambda: score(env.simulation, feasible_m(expert)))  # noqa: B023
        total["build"] += _time(lambda: Renderer(scene, VIEW))  # noqa: B023
        total["render"] += _render(scene, expert, count)
    steps_s = total["steps"] + total["metrics"]
    return {
        "steps_per_s": round(count["steps"] / total["steps"], 1),
        "plans_per_s": round(count["plans"] / total["plans"], 1),
        "render_six_masks_ms": round(1000 * total["render"] / count["render"], 2),
        "renderer_build_s": round(total["build"] / len(names), 3),
        "traffic_ms": round(1000 * total["traffic"] / count["steps"], 3),
        "reference_drive_s": round(total["reference"] / len(names), 3),
        "traffic_share": round(total["traffic"] / steps_s, 4),
        "metrics_share": round(total["metrics"] / steps_s, 4),
        "traffic_and_metrics_share": round((total["traffic"] + total["metrics"]) / steps_s, 4),
        "steps": count["steps"],
        "scenes": list(names),
        "most_agents": agents,
        "view": VIEW,
        "cameras": len(env.cameras),
    }


def _plan(expert: Simulation, step: int, pose: np.ndarray) -> np.ndarray:
    """Where the expert was in the six half seconds after a step, in the frame of ``pose``."""
    bodies = expert.record.bodies
    after = [bodies[min(step + 5 * i, len(bodies) - 1)] for i in range(1, PLAN_POINTS + 1)]
    return to_local(np.stack([body.pose[:2] for body in after]), pose)


def _render(scene: Scene, expert: Simulation, count: dict[str, int]) -> float:
    """Seconds for all six views with masks along the expert's drive, every half second."""
    renderer, start = Renderer(scene, VIEW), time.process_time()
    for body, others in list(zip(expert.record.bodies, expert.record.others, strict=True))[::5]:
        renderer.render(body.pose, others.pose, others.present, masks=True)
        count["render"] += 1
    return time.process_time() - start


def _time(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@contextmanager
def _spent(cls: type, method: str) -> Iterator[Callable[[], float]]:
    """Gives the seconds that a method of a class has taken so far."""
    plain, spent = getattr(cls, method), [0.0]

    def timed(*arguments: Any) -> Any:
        start = time.process_time()
        try:
            return plain(*arguments)
        finally:
            spent[0] += time.process_time() - start

    setattr(cls, method, timed)
    try:
        yield lambda: spent[0]
    finally:
        setattr(cls, method, plain)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="scenes; a synthetic one is made where missing")
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7, help="of the scenes that are made")
    parser.add_argument("--plans", type=int, default=38, help="half seconds driven in each scene")
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        root = args.root or make_root(Path(folder) / "root", args.scenes, args.seed)
        about = report.provenance(args.seed, "python -m vla_prune_sim.drive.speed")
        print(json.dumps(about | measure(root, args.scenes, args.plans)))


if __name__ == "__main__":
    main()
