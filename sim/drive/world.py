"""Driving for the rollout harness: task ``i`` is the ``i``-th scene of a root.

Knows no policy.

    >>> episodes = DriveWorld(root="runs/world").open("drive", 3)  # doctest: +SKIP
    >>> observation = episodes.start(state=0, seed=0)  # doctest: +SKIP
"""

from __future__ import annotations

from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
from vla_prune_sim.drive import drivers
from vla_prune_sim.drive.env import INSTRUCTION, DriveEnv, as_observation
from vla_prune_sim.drive.load import count_scenes
from vla_prune_sim.drive.make_world import ensure_root
from vla_prune_sim.drive.scene import STEP_S
from vla_prune_sim.drive.score import PARTS, blameless, feasible_m, score
from vla_prune_sim.drive.simulation import Simulation, drive
from vla_prune_sim.drive.vehicle import PLAN_POINTS
from vla_prune_sim.realtime.move import Move
from vla_prune_sim.survey import Survey, sources

from vla_prune.errors import ConfigError, ShapeError, did_you_mean
from vla_prune.types import Observation

SETTLED = {"root", "scene", "lazy_images", "render_mode"}  # of `DriveEnv`: not for a table to say
NOTHING = dict.fromkeys(PARTS, 0.0)  # what a drive is worth that never came to its end


class DriveWorld:
    """Opens scenes.

    Args:
        root: a nuScenes root, real or synthetic, or a folder of ScenarioNet pickles. None makes a
            synthetic one, once.
        scenes: how many that one has.
        seed: of that one.
        folder: where that one is kept.
        options: of `DriveEnv`.
    """

    def __init__(
        self,
        root: str | None = None,
        scenes: int = 4,
        seed: int = 7,
        folder: str = "runs/worlds",
        **options: Any,
    ) -> None:
        known = {*signature(DriveEnv).parameters} - SETTLED
        for name in options:
            if name not in known:
                own = {*signature(DriveWorld).parameters} - {"options"}
                raise did_you_mean("run: sim", "option", name, known | own)
        self.root = root or str(ensure_root(Path(folder), scenes, seed))
        self.options = options

    @classmethod
    def survey(cls, **options: Any) -> Survey:
        """How many scenes there are; makes the synthetic root, where one is wanted."""
        root = cls(**options).root
        count, assets = count_scenes(root)
        here = Path(__file__).parent
        code = sources(here, here.parent / "metrics")
        return Survey(count, {**options, "root": root}, root, assets, starts=1, code=code)

    def open(self, suite: str, task: int) -> DriveEpisodes:
        """One scene, ready to be driven."""
        return DriveEpisodes(self.root, task, self.options)


class DriveEpisodes:
    """Drives of one scene, one after the other.

    Attributes:
        instructions: the only one.
        assets: what the root calls itself, and a hash of its tables.
        over: whether the drive has ended.
        outcome: ``score``, and its parts once it has ended; ``inside`` where logged pictures are
            re-projected, the share of steps for which they hold; ``on_lanes`` for scenes that are
            not synthetic, whether the route follows lanes. The score is of the driven part
            alone: what a drive that strayed from its log would have done then is not known.
        steps: of 0.1 s so far.
        step_s: length of one.
    """

    instructions = (INSTRUCTION,)
    step_s = STEP_S

    def __init__(self, root: str, task: int, options: dict[str, Any]) -> None:
        self.env = DriveEnv(root, lazy_images=True, **options)
        names = self.env.world.names
        if not 0 <= task < len(names):
            raise ConfigError(
                f"run: {root} has {len(names)} scenes, so there is no task {task}; choose 0 to "
                f"{len(names) - 1}."
            )
        self.name, self.assets = names[task], count_scenes(root)[1]
        self.over, self.outcome, self.steps = True, dict(NOTHING), 0
        self._driver: drivers.Driver | None = None

    def start(self, state: int, seed: int) -> Observation:
        """Begin the drive; a scene has one start, so ``state`` and ``seed`` only name it."""
        self.over, self.outcome, self.steps, self._driver = False, dict(NOTHING), 0, None
        obs, _ = self.env.reset(seed=seed, options={"scene": self.name})
        return as_observation(obs)

    def advance(self, actions: np.ndarray) -> Observation:
        """Follow a policy's ``[6, 2]`` steps (see `steps_of`) until the next plan is due."""
        if len(actions) != PLAN_POINTS:
            raise ConfigError(
                f"run: execute: driving got {len(actions)} steps of a plan; a plan is handed over "
                f"whole, so set execute: {PLAN_POINTS}. How long it is followed is sim.plan_steps."
            )
        return self._follow(np.cumsum(actions, axis=0))

    def observe(self) -> Observation:
        """What is seen now."""
        return as_observation(self.env.observe())

    def move(self, move: Move) -> None:
        """One step of 0.1 s along the path of a move; draws nothing."""
        plan = None
        if move.fresh:
            if not np.isfinite(move.path).all():
                raise ShapeError("DriveEpisodes: the plan is not finite; end the episode before.")
            plan = np.clip(np.cumsum(move.path, axis=0), -100.0, 100.0)
        self.env.simulation.advance(plan, 1, round(move.elapsed_s / STEP_S))
        self._settle()

    def _follow(self, plan: np.ndarray) -> Observation:
        obs, *_ = self.env.step(plan)
        self._settle()
        return as_observation(obs) if self.over else self.observe()

    def _settle(self) -> None:
        """Score the drive if it is over."""
        simulation = self.env.simulation
        self.steps = len(simulation.record.bodies)
        if simulation.over:
            self.over = True
            expert = _expert(self.env.world, self.name, self.env.agents)
            # Cut short by no fault of its own: measured by what could be made until then.
            cut = simulation.ended == "envelope" or blameless(simulation)
            by = simulation.step_index if cut else None
            self.outcome = score(simulation, feasible_m(expert, by))
            if simulation.scene.source != "synthetic":
                self.outcome["on_lanes"] = float(simulation.scene.on_lanes)
            if simulation.envelope is not None:
                self.outcome["inside"] = simulation.inside

    def guide(self, driver: str) -> Observation:
        """Follow a reference driver's plan."""
        if self._driver is None:
            self._driver = drivers.make(driver)
        return self._follow(self._driver.plan(self.env.simulation.situation()))

    def close(self) -> None:
        """Free the pictures."""
        self.env.close()


def steps_of(plan: np.ndarray) -> np.ndarray:
    """A plan ``[6, 2]`` as what a policy says: the way of each half second, not the places.

    Steps are of one size, so that a policy's near future is as exact as its far one.
    """
    return np.diff(plan, axis=0, prepend=np.zeros((1, 2)))


@lru_cache(maxsize=4)
def _expert(world: Any, name: str, agents: str) -> Simulation:
    return drive(world.load(name), drivers.RuleExpert(), agents)
