"""Where an environment sits while a policy plays it: in this process, or in one of its own.

A world (such as `libero.world`) opens tasks; a seat keeps the task that it has open and changes it
when an episode asks for another. Processes let many environments move at once, while one policy
serves all of them in one batch. Knows no policy.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vla_prune.build import import_object
from vla_prune.errors import MissingError, ShapeError, VlaPruneError
from vla_prune.types import Observation

BROKEN = (ShapeError, MissingError)


@dataclass(frozen=True)
class Glimpse:
    """What an environment tells after a move.

    Attributes:
        observation: of this instant.
        over: whether the episode has ended.
        outcome: how it went: name -> number, what counts most first and 0 before the end.
        steps: control steps so far.
        instructions: of all tasks of the suite, in order.
        assets: hash of what is drawn.
        error: why it broke off; empty otherwise.
    """

    observation: Observation | None
    over: bool
    outcome: Mapping[str, float]
    steps: int
    instructions: tuple[str, ...]
    assets: str
    error: str = ""


class Seat(Protocol):
    """One environment. Every command is followed by one :meth:`look` before the next."""

    def start(self, suite: str, task: int, state: int, seed: int) -> None:
        """Begin an episode."""
        ...

    def advance(self, actions: np.ndarray) -> None:
        """Execute ``[n, A]`` actions."""
        ...

    def guide(self, driver: str) -> None:
        """Execute what a reference driver of the world would do now."""
        ...

    def fail(self, error: str) -> None:
        """Break the episode off."""
        ...

    def look(self) -> Glimpse:
        """What the last command led to; waits for it."""
        ...

    def close(self) -> None:
        """Free the environment."""
        ...


class LocalSeat:
    """An environment in this process.

    What is broken in one episode's data (`BROKEN`) ends that episode; what would break all of
    them, such as a config or a task that cannot be opened, is raised.

    Args:
        world: ``module:Class`` of the simulator.
        options: its arguments.
    """

    def __init__(self, world: str, options: Mapping[str, Any]) -> None:
        self.world = import_object(world)(**options)
        self.task: tuple[str, int] | None = None
        self.env: Any = None
        self.observation: Observation | None = None
        self.error = ""

    def start(self, suite: str, task: int, state: int, seed: int) -> None:
        """Begin an episode; opens the task if it is not the open one."""
        if self.task != (suite, task):
            self.close()
            self.env, self.task = self.world.open(suite, task), (suite, task)
        self.observation = None
        self._do(self.env.start, state, seed)

    def advance(self, actions: np.ndarray) -> None:
        """Execute actions."""
        self._do(self.env.advance, actions)

    def guide(self, driver: str) -> None:
        """Execute a reference driver's."""
        self._do(self.env.guide, driver)

    def fail(self, error: str) -> None:
        """Break the episode off."""
        self.error = error

    def look(self) -> Glimpse:
        """The present instant."""
        env = self.env
        return Glimpse(
            self.observation,
            env.over or bool(self.error),
            dict(env.outcome),
            env.steps,
            tuple(env.instructions),
            env.assets,
            self.error,
        )

    def close(self) -> None:
        """Free the environment."""
        if self.env is not None:
            self.env.close()
        self.env, self.task = None, None

    def _do(self, command: Callable[..., Observation], *arguments: Any) -> None:
        self.error = ""
        try:
            self.observation = command(*arguments)
        except BROKEN as error:
            self.error = str(error)


class ProcessSeat:
    """A :class:`LocalSeat` in a process of its own; commands return at once.

    Args:
        world: ``module:Class`` of the simulator.
        options: its arguments.
    """

    def __init__(self, world: str, options: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, world, dict(options)))
        self._process.daemon = True
        self._process.start()
        theirs.close()

    def start(self, suite: str, task: int, state: int, seed: int) -> None:
        """Begin an episode."""
        self._pipe.send(("start", (suite, task, state, seed)))

    def advance(self, actions: np.ndarray) -> None:
        """Execute actions."""
        self._pipe.send(("advance", (actions,)))

    def guide(self, driver: str) -> None:
        """Execute a reference driver's."""
        self._pipe.send(("guide", (driver,)))

    def fail(self, error: str) -> None:
        """Break the episode off."""
        self._pipe.send(("fail", (error,)))

    def look(self) -> Glimpse:
        """What the last command led to; raises what went wrong in the other process."""
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError(
                f"an environment's process ended with code {self._process.exitcode}."
            ) from None
        if kind == "mistake":
            raise value
        if kind == "crash":
            raise RuntimeError(f"an environment failed:\n{value}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5.0)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Any, world: str, options: Mapping[str, Any]) -> None:
    """Answer commands until the pipe closes."""
    seat = None
    try:
        while True:
            name, arguments = pipe.recv()
            try:
                seat = seat or LocalSeat(world, options)
                getattr(seat, name)(*arguments)
                pipe.send(("glimpse", seat.look()))
            except VlaPruneError as error:
                pipe.send(("mistake", error))
            except Exception:
                pipe.send(("crash", traceback.format_exc()))
    except (EOFError, BrokenPipeError):
        pass
    finally:
        if seat is not None:
            seat.close()
