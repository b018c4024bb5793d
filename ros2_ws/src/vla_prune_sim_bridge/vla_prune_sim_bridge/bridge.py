"""The bridge without ROS: a world of ``vla_prune_sim`` that moves on by itself, and what it shows.

The world makes one own step per ``step_s`` of simulated time with the newest command, however long
the policy takes; its pictures, state and ``/clock`` are messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from vla_prune_ros.contract import Contract, Source
from vla_prune_ros.convert import image_fields
from vla_prune_ros.stamps import seconds, time_fields
from vla_prune_sim.realtime.move import Move
from yaml import YAMLError

from vla_prune.build import import_object
from vla_prune.errors import ConfigError, did_you_mean
from vla_prune.types import Observation
from vla_prune_sim_bridge.resets import Peer, Resets

PICTURES = ("sensor_msgs/msg/Image",)
STATES = ("std_msgs/msg/Float64MultiArray", "std_msgs/msg/Float32MultiArray")
EARLY_S = 1e-6  # of a stamp: rounding


@dataclass(frozen=True)
class Shown:
    """What one step shows.

    Attributes:
        time_s: simulated.
        images: camera -> fields of an ``Image``.
        state: fields of a ``Float64MultiArray``.
        clock: fields of a ``Clock``.
        task: the instruction.
        over: whether the episode ended with this step.
        outcome: of the episode, once it ended; None for what did not happen in it.
    """

    time_s: float
    images: Mapping[str, Mapping[str, Any]]
    state: Mapping[str, Any]
    clock: Mapping[str, Any]
    task: str
    over: bool
    outcome: Mapping[str, float | None]

    @property
    def told(self) -> str:
        """The outcome in words."""
        return ", ".join(
            f"{name} {'-' if value is None else format(value, 'g')}"
            for name, value in self.outcome.items()
        )


class Bridge:
    """One world, episode after episode.

    Simulated time goes on from episode to episode and never back. Nodes that remember an episode
    are told to forget it before the next one shows itself: its machine stands elsewhere.

    Args:
        world: ``module:Class`` of a simulator.
        options: its arguments.
        suite: of tasks.
        task: number of the task or scene.
        state: initial state.
        seed: of the first episode.
        driver: a reference driver moves it in the place of commands: a replay.
        start_s: simulated time of the first frame.
        peers: nodes that remember, in the way of the data.
        again: begin the next episode at the end of one.

    Attributes:
        waits_for: the node that has yet to forget before the next episode begins; else empty.
    """

    def __init__(
        self,
        world: str,
        options: Mapping[str, Any],
        suite: str,
        task: int,
        state: int = 0,
        seed: int = 0,
        driver: str = "",
        start_s: float = 1.0,
        peers: Sequence[Peer] = (),
        again: bool = True,
    ) -> None:
        self.episodes = _world(world, options).open(suite, task)
        self.task, self.state, self.seed, self.driver = task, state, seed, driver
        self.time_s = self._began = start_s
        self.resets, self.again = Resets(peers), again
        self.refused = self.waits_for = ""
        self._runs = False
        self._observation: Observation | None = None
        self._action: np.ndarray | None = None
        self._path: tuple[np.ndarray, float] | None = None  # rows, stamp
        self._fresh = False

    @property
    def step_s(self) -> float:
        """Simulated seconds of one step."""
        return float(self.episodes.step_s)

    @property
    def over(self) -> bool:
        """Whether no episode runs."""
        return not self._runs or bool(self.episodes.over)

    def check(self, contract: Contract) -> None:
        """Try how an episode begins.

        Raises:
            VlaPruneError: the world does not know this start or driver, or the contract observes
                what it does not show.
        """
        seen, begun = self.episodes.start(self.state, self.seed), self.episodes
        if self.driver:
            begun.guide(self.driver)  # the first one may count what the log did before
            before = begun.steps
            begun.guide(self.driver)
            if begun.steps - before != 1:
                raise ConfigError(
                    f"parameter 'driver': {self.driver!r} moves the world by "
                    f"{begun.steps - before} steps at a time, and a replay shows each; give the "
                    "world an option such as plan_steps: 1."
                )
        _check_shown(contract, seen)

    def begin(self) -> None:
        """As new: the next turn begins an episode, whatever runs."""
        self._runs = False

    def turn(self, steady_s: float) -> Shown | None:
        """What the world shows next: a step, or the first frame of the next episode.

        None after the last episode, and until all have forgotten the one before.

        Args:
            steady_s: steady time.
        """
        if not self.over:
            return self.step()
        if self._runs and not self.again:
            return None
        self.waits_for = self.resets.waits_for(steady_s)
        return None if self.waits_for else self.start()

    def start(self) -> Shown:
        """Begin the next episode."""
        self.resets.begin()
        if self._observation is not None:
            self.time_s += self.step_s  # or its first frame would have the last one's stamp
        self._observation = self.episodes.start(self.state, self.seed)
        self.seed, self._runs = self.seed + 1, True
        self._action, self._path, self._fresh = None, None, False
        self._began = self.time_s
        return self._shown()

    def put_path(self, message: Any) -> None:
        """A ``nav_msgs/Path``: places in the vehicle's frame at the header's stamp."""
        places = [(p.pose.position.x, p.pose.position.y) for p in message.poses]
        rows = np.diff(np.array(places, np.float32), axis=0, prepend=np.zeros((1, 2), np.float32))
        self._take(rows, seconds(message.header.stamp))

    def put_action(self, message: Any) -> None:
        """An ``ActionChunk`` of one row: the action of now."""
        values, rows = np.asarray(message.values, np.float32), int(message.horizon)
        if rows == 0 or values.size % rows:
            self.refused = f"bridge: {values.size} values came for {rows} rows."
            return
        self._take(values.reshape(rows, -1), seconds(message.header.stamp))

    def step(self) -> Shown:
        """One own step of the world with the newest command, and what is seen then."""
        if self.driver:
            self._observation = self.episodes.guide(self.driver)
        elif self._path is not None:
            rows, stamp = self._path
            elapsed = max(0.0, self.time_s - stamp)
            self.episodes.move(Move(self._action, rows, elapsed, self._fresh))
            self._fresh = False
            self._observation = self.episodes.observe()
        # Before the first command the world waits: there is nothing that it could do.
        self.time_s += self.step_s
        return self._shown()

    def close(self) -> None:
        """Free the simulator."""
        self.episodes.close()

    def _take(self, rows: np.ndarray, stamp_s: float) -> None:
        if rows.ndim != 2 or len(rows) == 0 or not np.isfinite(rows).all():
            self.refused = f"bridge: a command of shape {rows.shape} is empty or not finite."
            return
        if stamp_s < self._began - EARLY_S:
            self.refused = "bridge: a command of the episode before is not taken into this one."
            return
        old = self._path
        self._fresh |= old is None or old[1] != stamp_s or not np.array_equal(old[0], rows)
        self._action, self._path = rows[0], (rows, stamp_s)

    def _shown(self) -> Shown:
        seen = self._observation
        state = [] if seen.state is None else [float(v) for v in seen.state]
        return Shown(
            self.time_s,
            {
                name: image_fields(pixels, self.time_s, name)
                for name, pixels in seen.images.items()
            },
            {"layout": {"dim": [], "data_offset": 0}, "data": state},
            {"clock": time_fields(self.time_s)},
            seen.instruction,
            bool(self.episodes.over),
            dict(self.episodes.outcome) if self.episodes.over else {},
        )


def read_options(text: str) -> dict[str, Any]:
    """A world's arguments out of the parameter ``options``.

    Raises:
        ConfigError: it is no mapping in YAML.
    """
    try:
        options = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(f"parameter 'options': {text!r} cannot be read ({told}).") from error
    if not isinstance(options, dict):
        raise ConfigError(
            f"parameter 'options': {text!r} is no YAML of a mapping; write {{a: 1}}."
        )
    return options


def _world(path: str, options: Mapping[str, Any]) -> Any:
    if path.count(":") != 1:
        raise ConfigError(f"parameter 'world': {path!r} names no class; write module:Class.")
    try:
        world = import_object(path)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"parameter 'world': {path!r} cannot be opened ({error}); write module:Class, and "
            "install what it needs."
        ) from error
    try:
        signature(world).bind(**options)
    except TypeError as error:
        raise ConfigError(
            f"parameter 'options': {path} takes no such ({error}); it has "
            f"{', '.join(signature(world).parameters) or 'none'}."
        ) from error
    return world(**options)


def _check_shown(contract: Contract, seen: Observation) -> None:
    """Raise one sentence if a contract observes what a world does not show."""
    where = f"{contract.where}: observations"
    for source in contract.cameras:
        if source.camera not in seen.images:
            raise did_you_mean(where, "camera", source.camera, seen.images)
        _check_type(where, f"camera {source.camera!r}", source, PICTURES)
    has = 0 if seen.state is None else len(seen.state)
    for source in contract.states:
        _check_type(where, "the state", source, STATES)
        for name in source.names:
            if int(name.removeprefix("data.")) >= has:
                raise ConfigError(
                    f"{where}: {source.topic} asks for {name} of the state, of which this world "
                    f"has {has} numbers; count from data.0."
                )


def _check_type(where: str, what: str, source: Source, known: Sequence[str]) -> None:
    if source.type not in known:
        raise ConfigError(
            f"{where}: {source.topic} takes {what} as {source.type}, a simulator sends "
            f"{' or '.join(known)}; change the type."
        )
