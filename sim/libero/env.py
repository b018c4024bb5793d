"""LIBERO as a Gymnasium environment, over unmodified hf-libero. Knows no policy.

>>> import gymnasium
>>> env = gymnasium.make("vla_prune_sim:VlaPrune/Libero-v0", suite="libero_object", task=3)
... # doctest: +SKIP
>>> obs, info = env.reset(seed=0, options={"init": 7})  # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import string
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from vla_prune.errors import ConfigError, did_you_mean
from vla_prune.types import Observation

from . import gl
from .assets import check_assets, configure_libero, find_assets, package_dir, tree_hash

if TYPE_CHECKING:
    from .scene import Scene

# Step caps as LeRobot uses them.
CAPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
VIEWS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}
# What is done to a picture whose first row is the lowest.
CONVENTIONS = {"upright": (slice(None, None, -1),), "released": (slice(None, None, -1),) * 2}
# Beyond what the arm can reach: metres, radians, metres.
STATE_LIMIT = np.array([3, 3, 3, *[2 * np.pi] * 3, 0.1, 0.1], np.float32)
SETTLE = np.array([0.0, 0, 0, 0, 0, 0, -1.0])


class LiberoEnv(gymnasium.Env):
    """One task of one LIBERO suite.

    Observation: ``images`` (``agentview`` and ``wrist``, ``[S, S, 3]`` uint8), ``state`` (``[8]``
    float32: hand position in metres, axis-angle in radians, the two finger joints in metres) and
    ``instruction``. Action: ``[7]`` in -1 to 1, OSC_POSE deltas and gripper (1 closes).

    Args:
        suite: `libero_spatial`, `libero_object`, `libero_goal`, `libero_10` or `libero_90`.
        task: index within the suite.
        init: index of the shipped initial state; None draws one at each reset. ``options={"init":
            i}`` of `reset` overrides it.
        image_size: pixels a side.
        image_convention: `upright` shows the true view; `released` its mirror image, which
            released checkpoints expect, whose pipelines turn LIBERO's upside-down pictures by 180
            degrees.
        look: name in `camera.LOOKS`; `stock` is LIBERO's own.
        lazy_images: `step` repeats the last pictures, with ``info["images_fresh"]`` False, and
            only `observe` draws new ones.
        max_steps: the cap after which an episode is truncated; None is the suite's.
        images: False draws nothing at all (black pictures), for experts.
        quick_physics: solve the contacts once a physics step instead of three times. The same
            equations, to the solver's tolerance; a third faster. For making demonstrations only.
        render_mode: `rgb_array`, or None where nobody calls `render`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        suite: str = "libero_spatial",
        task: int = 0,
        init: int | None = None,
        image_size: int = 224,
        image_convention: str = "released",
        look: str = "stock",
        lazy_images: bool = False,
        max_steps: int | None = None,
        images: bool = True,
        quick_physics: bool = False,
        render_mode: str | None = None,
    ) -> None:
        problem = problem_file(suite, task)
        from .camera import LOOKS  # MuJoCo, whose GL is chosen by now

        if look not in LOOKS:
            raise did_you_mean("LiberoEnv", "look", look, LOOKS)
        if image_convention not in CONVENTIONS:
            raise did_you_mean("LiberoEnv", "image_convention", image_convention, CONVENTIONS)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise did_you_mean(
                "LiberoEnv", "render_mode", render_mode, self.metadata["render_modes"]
            )
        self.suite, self.task, self.init = suite, task, init
        self.image_size, self.image_convention, self.look = image_size, image_convention, look
        self.lazy_images, self.images = lazy_images, images
        self.quick_physics = quick_physics
        self.max_steps = max_steps or CAPS[suite]
        self.render_mode = render_mode
        self.assets = find_assets()
        check_assets(problem, self.assets)
        self._inner, self.init_states = _build(problem, self.assets)
        self.instruction = self._instruction = instructions(suite)[task]
        # Nobody reads robosuite's own sensors here; they cost a tenth of the physics.
        self._inner._observables = {}
        self._camera = None
        self._scene: Scene | None = None
        self._goal = list(self._inner.parsed_problem["goal_state"])
        self._task_goal = list(self._goal)
        self._frames = {name: np.zeros((image_size, image_size, 3), np.uint8) for name in VIEWS}
        picture = gymnasium.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict({name: picture for name in VIEWS}),
                "state": gymnasium.spaces.Box(-STATE_LIMIT, STATE_LIMIT),
                "instruction": gymnasium.spaces.Text(
                    200, charset=string.ascii_letters + string.digits + " .,_-"
                ),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict, dict]:
        """Start an episode.

        Args:
            seed: fixes everything that LIBERO draws, such as where fixtures stand.
            options: ``init`` (index of the shipped state), ``layout`` (an object of `layouts`,
                put in after the shipped state).
        """
        super().reset(seed=seed)
        options = options or {}
        draw = int(self.np_random.integers(2**31)) if seed is None else seed
        init = options.get("init", self.init)
        if init is None:
            init = int(self.np_random.integers(len(self.init_states)))
        if not 0 <= init < len(self.init_states):
            raise ConfigError(
                f"LiberoEnv.reset: init {init} is not a shipped state of {self.suite} task"
                f" {self.task}; choose 0 to {len(self.init_states) - 1}."
            )
        with _numpy_seed(draw):
            _place(self._inner.reset)
        self._inner._observables = {}
        # A soft reset leaves the finger command of the last episode behind.
        gripper = self._inner.robots[0].gripper
        gripper.current_action = np.zeros(gripper.dof)
        sim = self._inner.sim
        sim.set_state_from_flattened(self.init_states[init])
        sim.forward()
        self._goal = list(self._task_goal)
        self._instruction = self.instruction
        layout = options.get("layout")
        if layout is not None:
            layout.apply(self)
            self._goal, self._instruction = layout.goal or self._goal, layout.instruction
        self._inner._post_process()
        self._steps = 0
        for _ in range(10):
            self._advance(SETTLE)
        self._draw()
        info = {"init": init, "draw": draw, "is_success": False, "images_fresh": self.images}
        return self._observation(), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """One control step of 0.05 s."""
        self._advance(np.clip(np.asarray(action, np.float64), -1.0, 1.0))
        self._steps += 1
        success = self.is_success()
        if not self.lazy_images:
            self._draw()
        info = {"is_success": success, "images_fresh": self.images and not self.lazy_images}
        cut = not success and self._steps >= self.max_steps
        return self._observation(), float(success), success, cut, info

    def observe(self) -> dict:
        """The observation of this instant, with pictures drawn now."""
        self._draw()
        return self._observation()

    def render(self) -> np.ndarray | None:
        """The outer camera, upright, ``[S, S, 3]``; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("LiberoEnv.render: make it with render_mode='rgb_array'.")
            return None
        return self.raw_image("agentview", self.image_size)[::-1].copy()

    def raw_image(self, view: str, size: int) -> np.ndarray:
        """A picture as GL gives it, bottom row first, ``[size, size, 3]`` uint8."""
        if self._camera is None:
            from .camera import LOOKS, Camera

            sim = self._inner.sim
            self._camera = Camera(sim.model._model, sim.data._data, LOOKS[self.look])
        return self._camera.image(VIEWS[view], size)

    def scene(self) -> Scene:
        """Privileged access to poses and contacts, for experts and labels."""
        from .scene import Scene

        if self._scene is None:
            self._scene = Scene(self._inner)
        return self._scene

    @property
    def goal(self) -> list:
        """Goal predicates of this episode, such as ``[["in", "milk_1", "basket_1"]]``."""
        return self._goal

    def is_success(self) -> bool:
        """Whether LIBERO's own predicates hold."""
        return all(bool(self._inner._eval_predicate(state)) for state in self._goal)

    def about(self) -> dict[str, Any]:
        """What a result must say of this environment."""
        return {
            "suite": self.suite,
            "task": self.task,
            "assets": tree_hash(self.assets),
            "look": self.look,
            "image_convention": self.image_convention,
            "image_size": self.image_size,
        }

    def close(self) -> None:
        """Free the GL context and the simulator."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _advance(self, action: np.ndarray) -> None:
        sim = self._inner.sim
        if self.quick_physics:
            sim.forward = _Forward(sim)
        try:
            self._inner.step(action)
        finally:
            sim.__dict__.pop("forward", None)

    def _draw(self) -> None:
        if not self.images:
            return
        turn = CONVENTIONS[self.image_convention]
        for name in VIEWS:
            self._frames[name] = self.raw_image(name, self.image_size)[turn].copy()

    def _observation(self) -> dict:
        return {
            "images": {name: frame.copy() for name, frame in self._frames.items()},
            "state": proprio(self.scene()),
            "instruction": self._instruction,
        }


class _Forward:
    """Stands in for `MjSim.forward` during a step: what the controller reads, once per time."""

    def __init__(self, sim) -> None:
        self._model, self._data, self._time = sim.model._model, sim.data._data, -1.0

    def __call__(self) -> None:
        if self._data.time != self._time:
            import mujoco

            mujoco.mj_step1(self._model, self._data)
            self._time = self._data.time


def proprio(scene: Scene) -> np.ndarray:
    """Hand position, axis-angle and finger joints, ``[8]`` float32, as LeRobot and OpenVLA-OFT."""
    quat = scene.hand_quat
    w = float(np.clip(quat[3], -1.0, 1.0))
    length = np.sqrt(1.0 - w * w)
    angles = np.zeros(3) if length < 1e-9 else quat[:3] * 2.0 * np.arccos(w) / length
    return np.concatenate([scene.hand, angles, scene.gripper]).astype(np.float32)


def as_observation(obs: dict, stamp_s: float = 0.0) -> Observation:
    """The observation of `LiberoEnv` in the words of `vla_prune.types`."""
    return Observation(obs["images"], obs["instruction"], obs["state"], stamp_s)


def task_names(suite: str) -> tuple[str, ...]:
    """Names of the tasks of a suite, in order, without building anything."""
    if suite not in CAPS:
        raise did_you_mean("LiberoEnv", "suite", suite, CAPS)
    configure_libero()
    gl.ensure()
    from libero.libero.benchmark.libero_suite_task_map import libero_task_map

    return tuple(libero_task_map[suite])


def instructions(suite: str) -> tuple[str, ...]:
    """What the tasks of a suite ask for, in order, without building anything."""
    names = task_names(suite)
    from libero.libero.benchmark import grab_language_from_filename

    return tuple(grab_language_from_filename(name + ".bddl") for name in names)


def problem_file(suite: str, task: int) -> Path:
    """The BDDL file of a task."""
    names = task_names(suite)
    if not 0 <= task < len(names):
        raise ConfigError(f"LiberoEnv: {suite} has no task {task}; choose 0 to {len(names) - 1}.")
    return package_dir() / "bddl_files" / suite / f"{names[task]}.bddl"


def _build(problem: Path, assets: Path) -> tuple[Any, np.ndarray]:
    """The inner environment of a BDDL file, and the shipped initial states ``[N, Q]``."""
    import libero.libero as root
    import torch
    from libero.libero.envs.env_wrapper import ControlEnv

    # hf-libero ignores the assets entry of its own configuration.
    root._assets_path_cache = str(assets)

    def make() -> ControlEnv:
        # hard_reset False keeps the compiled model between episodes: LIBERO draws the same random
        # numbers, and a reset takes 10 ms instead of a second.
        return ControlEnv(
            bddl_file_name=str(problem),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,
            hard_reset=False,
        )

    with _numpy_seed(0):
        inner = _place(make).env
    shipped = package_dir() / "init_files" / problem.parent.name / f"{problem.stem}.pruned_init"
    # The files are pickled arrays: nothing but what an array is made of may be unpickled.
    rebuild = np.zeros(1).__reduce__()[0]
    allowed = [
        (rebuild, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float64)),
    ]
    with torch.serialization.safe_globals(allowed):
        return inner, np.asarray(torch.load(shipped, weights_only=True))


def _place(draw: Callable[[], Any]) -> Any:
    """Call something in which LIBERO draws where things stand, until all find a place."""
    from robosuite.utils.errors import RandomizationError

    for _ in range(100):
        try:
            return draw()
        except RandomizationError as error:
            lost = error
    raise lost


@contextlib.contextmanager
def _numpy_seed(seed: int):
    """LIBERO draws from NumPy's global generator; it is given back as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
