"""Driving as a Gymnasium environment.

>>> import gymnasium
>>> env = gymnasium.make("vla_prune_sim:VlaPrune/Drive-v0", root="runs/world")
... # doctest: +SKIP
>>> obs, info = env.reset(seed=0, options={"scene": "scene-0003"})  # doctest: +SKIP
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import gymnasium
import numpy as np
from vla_prune_sim.drive.envelope import Envelope
from vla_prune_sim.drive.load import open_world
from vla_prune_sim.drive.render import Renderer
from vla_prune_sim.drive.reproject import Reprojector
from vla_prune_sim.drive.simulation import STATE_DIM, Simulation
from vla_prune_sim.drive.vehicle import PLAN_POINTS

from vla_prune.errors import ConfigError, ShapeError, did_you_mean
from vla_prune.types import Observation

FRONT = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")
OBSERVATIONS = ("synthetic", "reproject")
INSTRUCTION = "drive along the route"


class DriveEnv(gymnasium.Env):
    """Scenes of one root.

    Observation: ``images`` (each camera ``[H, W, 3]`` uint8), ``state`` (``[10]`` float32, see
    `Simulation.state`) and ``instruction``. Action: a plan ``[6, 2]``, the places of the rear axle
    every 0.5 s, metres in the ego's frame (x forward, y left). The reward is the way made along
    the route, metres. An episode terminates at a collision (being hit from behind apart) or far
    off the route, and is truncated at the end of the scene, or where logged pictures end to hold:
    with ``reproject``, ``info`` also has `Stray` as ``stray`` and the share of steps ``inside``.

    Args:
        root: a nuScenes root, real or synthetic, or a folder of ScenarioNet pickles.
        scene: name of the scene; None draws one at each reset. ``options={"scene": name}`` of
            `reset` overrides it.
        agents: ``idm`` reacts to the ego, ``log`` does not.
        observation: ``synthetic`` is drawn; ``reproject`` moves logged pictures, whose agents can
            only follow the log.
        cameras: channels that are drawn.
        image_size: width and height of a view, pixels.
        square: pixels; squeeze each view to a square of this side, as image towers want it.
        plan_steps: steps of 0.1 s that a plan is followed: 5 plans at 2 Hz, 1 at every step.
        lazy_images: `step` repeats the last pictures; only `observe` draws.
        render_mode: `rgb_array` (the front camera), or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
        root: str | Path,
        scene: str | None = None,
        agents: str = "idm",
        observation: str = "synthetic",
        cameras: Sequence[str] = FRONT,
        image_size: tuple[int, int] = (400, 224),
        square: int | None = None,
        plan_steps: int = 5,
        lazy_images: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.world_path, self.world = Path(root), open_world(root)
        self.agents, self.observation, self.cameras = agents, observation, tuple(cameras)
        self.plan_steps, self.lazy_images, self.render_mode = plan_steps, lazy_images, render_mode
        if not 1 <= plan_steps <= 5:
            raise ConfigError(
                f"DriveEnv: plan_steps is {plan_steps}; a plan is followed for 1 to 5 steps of "
                "0.1 s."
            )
        sides = np.atleast_1d(image_size)
        if sides.shape != (2,) or (sides < 8).any() or (square is not None and square < 8):
            raise ConfigError(
                f"DriveEnv: image_size is {image_size} and square {square}; give [width, height] "
                "and one side, 8 pixels or more each."
            )
        if observation not in OBSERVATIONS:
            raise did_you_mean("DriveEnv", "observation", observation, OBSERVATIONS)
        if observation == "reproject" and agents != "log":
            raise ConfigError(
                f"DriveEnv: observation 'reproject' goes with agents 'log', not {agents!r}; those "
                "in logged pictures cannot react."
            )
        self.image_size, self.square = tuple(image_size), square
        self.name = scene if scene is None else self._known(scene)
        self.simulation: Simulation | None = None
        self._renderer: Renderer | Reprojector | None = None
        self._frames: dict[str, np.ndarray] = {}
        width, height = (square, square) if square else self.image_size
        image = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict({name: image for name in self.cameras}),
                "state": gymnasium.spaces.Box(-1000.0, 1000.0, (STATE_DIM,), np.float32),
                "instruction": gymnasium.spaces.Text(64, charset=string.ascii_lowercase + " "),
            }
        )
        self.action_space = gymnasium.spaces.Box(-100.0, 100.0, (PLAN_POINTS, 2), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start a scene after its first second.

        Args:
            seed: fixes which scene is drawn where none is named. A scene itself is no chance.
            options: ``scene``, its name.
        """
        super().reset(seed=seed)
        name = (options or {}).get("scene", self.name)
        if name is None:
            name = self.world.names[int(self.np_random.integers(len(self.world.names)))]
        scene = self.world.load(self._known(name))
        if self.simulation is None or self.simulation.scene is not scene:
            self._renderer = None
        envelope = Envelope(scene) if self.observation == "reproject" else None
        self.simulation = Simulation(scene, self.agents, envelope=envelope)
        self._draw()
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Follow a plan."""
        if self.simulation is None:
            raise ShapeError("DriveEnv.step: no scene is begun; call reset() first.")
        if np.shape(action) != (PLAN_POINTS, 2):
            raise ShapeError(
                f"DriveEnv.step: the plan has shape {np.shape(action)}; it needs "
                f"({PLAN_POINTS}, 2), places in metres."
            )
        if not np.isfinite(action).all():
            raise ShapeError("DriveEnv.step: the plan is not finite; end the episode before it.")
        simulation = self.simulation
        before = simulation.along
        simulation.advance(np.clip(action, -100.0, 100.0), self.plan_steps)
        if not self.lazy_images:
            self._draw()
        cut = simulation.ended in ("time", "envelope")
        reward = float(simulation.along - before)
        return self._observation(), reward, simulation.over and not cut, cut, self._info()

    def observe(self) -> dict:
        """The observation of this instant, with pictures drawn now."""
        self._draw()
        return self._observation()

    def render(self) -> np.ndarray | None:
        """The front camera ``[H, W, 3]``; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("DriveEnv.render: make it with render_mode='rgb_array'.")
            return None
        front = "CAM_FRONT" if "CAM_FRONT" in self._frames else self.cameras[0]
        return self._frames[front].copy()

    def _known(self, name: str) -> str:
        if name not in self.world.names:
            raise did_you_mean("DriveEnv", "scene", name, self.world.names)
        return name

    def _draw(self) -> None:
        simulation = self.simulation
        if self._renderer is None:
            kind = Reprojector if self.observation == "reproject" else Renderer
            self._renderer = kind(simulation.scene, self.image_size, self.cameras)
        others = simulation.record.others[-1]
        instant = simulation.body.pose, others.pose, others.present
        if self.observation == "reproject":
            views = self._renderer.render(*instant, step=simulation.step_index)
        else:
            views = self._renderer.render(*instant)
        if self.square:
            side = (self.square, self.square)
            views = {
                k: cv2.resize(v, side, interpolation=cv2.INTER_AREA) for k, v in views.items()
            }
        self._frames = views

    def _info(self) -> dict[str, Any]:
        simulation = self.simulation
        info = {"scene": simulation.scene.name, "ended": simulation.ended}
        if simulation.envelope is None:
            return info
        stray = simulation.envelope.stray(simulation.body.pose, simulation.step_index)
        return info | {"stray": stray, "inside": simulation.inside}

    def _observation(self) -> dict:
        return {
            "images": {name: frame.copy() for name, frame in self._frames.items()},
            "state": self.simulation.state(),
            "instruction": INSTRUCTION,
        }


def squeeze(view: np.ndarray, side: int) -> np.ndarray:
    """A view ``[H, W, 3]`` as a square ``[side, side, 3]``: all of it, out of proportion."""
    return cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA)


def as_observation(obs: dict, stamp_s: float = 0.0) -> Observation:
    """The observation of `DriveEnv` in the words of `vla_prune.types`."""
    return Observation(obs["images"], obs["instruction"], obs["state"], stamp_s)
