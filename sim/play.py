"""Plays episodes of a table: a policy, one or many seats, one result per episode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from vla_prune_sim.seats import Glimpse, LocalSeat, ProcessSeat, Seat

from vla_prune import report
from vla_prune.build import build_adapter, build_recipe
from vla_prune.config import PLAIN
from vla_prune.errors import ActionError, ConfigError
from vla_prune.policy import VLAPolicy, attach
from vla_prune.pruner import Pruner
from vla_prune.types import ActionChunk, Observation, PolicyState

if TYPE_CHECKING:
    from vla_prune_sim.rollout import Episode, Row, RunConfig

LLM_STAGES = ("prefill", "selection", "decode")
TIMING_ROUNDS = 3


def pruner_of(row: Row, cut_layer: int, keep_ratio: float | None = None) -> Pruner:
    """The recipe of a row, built.

    Args:
        row: one with a recipe.
        cut_layer: of its table.
        keep_ratio: in place of the row's own, as a controller's ladder wants it.
    """
    keep = None if row.recipe in PLAIN else keep_ratio or row.keep_ratio
    return build_recipe(row.recipe, keep, cut_layer=cut_layer)


@dataclass
class _Running:
    """An episode on a seat, and what it has gathered."""

    episode: Episode
    seat: Seat
    seed: int
    state: PolicyState
    disguise: Callable[[Observation, int], Observation] | None = None
    glimpse: Glimpse | None = None
    llm_ms: list[float] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    unpruned: int = 0  # calls in which nothing was cut, such as a recipe's dense warm-up
    frames: list[np.ndarray] = field(default_factory=list)
    shown: Observation | None = None

    def note(self, chunk: ActionChunk) -> None:
        """Gather what a call took and kept; a dense call among pruned ones is only counted."""
        kept = {site: len(index) for site, index in chunk.kept.items()}
        self.llm_ms.append(_llm_ms(chunk))
        self.unpruned += not kept
        self.kept = kept or self.kept


class Player:
    """What one worker holds: its seats, and one adapter per suite.

    Args:
        config: the table.
        world: ``module:Class`` of the simulator.
        keep_frames: write what the dense policy saw, for the control ``other_images``.
        seats: environments that move together, one process each; 1 is in this process.
    """

    def __init__(self, config: RunConfig, world: str, keep_frames: bool, seats: int = 1) -> None:
        self.config = config
        self.frames = Path(config.work) / "frames"
        self.keep_frames, self.commit = keep_frames, report.commit()
        kind = LocalSeat if seats == 1 else ProcessSeat
        self.seats: list[Seat] = [kind(world, config.sim) for _ in range(seats)]
        self.adapters: dict[str, Any] = {}

    def play(self, episodes: Sequence[Episode]) -> Iterator[dict[str, Any]]:
        """Results as they come, row after row."""
        for (suite, row), group in groupby(episodes, key=lambda e: (e.suite, e.row)):
            if row.driver:
                yield from (self._result(run) for run in self._row(None, list(group)))
                continue
            adapter = self._adapter(suite)
            pruner = pruner_of(row, self.config.cut_layer)
            with attach(pruner, adapter, time_stages=True) as policy:
                for run in self._row(policy, list(group)):
                    result = self._result(run)
                    if row.recipe != "dense" and not run.glimpse.error:
                        # What dense would have said may be no action: then nothing is compared.
                        with suppress(ActionError):
                            result["time_ratio"] = _time_ratio(policy, run.shown, run.state)
                    yield result

    def close(self) -> None:
        """Free the environments."""
        for seat in self.seats:
            seat.close()

    def _row(self, policy: VLAPolicy | None, waiting: list[Episode]) -> Iterator[_Running]:
        """Episodes of one row as they end: free seats take the next one, all others go on."""
        free, running = list(self.seats), []
        while waiting or running:
            while free and waiting:
                running.append(self._begin(free.pop(), waiting.pop(0)))
            for run in running:
                run.glimpse = run.seat.look()
            for run in [run for run in running if run.glimpse.over]:
                running.remove(run)
                free.append(run.seat)
                yield run
            if policy is None:
                for run in running:
                    run.seat.guide(run.episode.row.driver)
            elif running:
                self._act(policy, running)

    def _begin(self, seat: Seat, episode: Episode) -> _Running:
        seed = self.config.seed * 100_003 + episode.state
        seat.start(episode.suite, episode.task, episode.state, seed)
        state = PolicyState(draw=seed + 1009 * episode.task)
        return _Running(episode, seat, seed, state)

    def _act(self, policy: VLAPolicy, running: Sequence[_Running]) -> None:
        for run in running:
            if run.disguise is None:
                run.disguise = self._disguise(run.glimpse.instructions, run.episode)
            run.shown = run.disguise(run.glimpse.observation, len(run.llm_ms))
            if self.keep_frames and _is_dense(run.episode):
                images = run.shown.images
                run.frames.append(np.stack([images[name] for name in sorted(images)]))
        for run, chunk in _asked(policy, list(running)):
            run.note(chunk)
            run.seat.advance(chunk.actions[: self.config.execute])

    def _result(self, run: _Running) -> dict[str, Any]:
        episode, glimpse = run.episode, run.glimpse
        if run.frames:
            self.frames.mkdir(parents=True, exist_ok=True)
            np.save(self._frame_file(episode, episode.task), np.stack(run.frames))
        row = episode.row
        result = {
            "key": episode.key,
            "suite": episode.suite,
            "task": episode.task,
            "state": episode.state,
            "seed": run.seed,
            **({"driver": row.driver} if row.driver else {"recipe": row.recipe}),
            "keep_ratio": row.keep_ratio,
            "control": row.control,
            "outcome": dict(glimpse.outcome),
            **({"error": glimpse.error} if glimpse.error else {}),
            "steps": glimpse.steps,
            "assets": glimpse.assets,
            "commit": self.commit,
        }
        if run.llm_ms:
            calls = {"calls": len(run.llm_ms), "llm_ms": float(np.median(run.llm_ms))}
            result |= calls | {"unpruned_calls": run.unpruned, "kept": run.kept}
        return result

    def _adapter(self, suite: str) -> Any:
        if suite not in self.adapters:
            self.adapters[suite] = build_adapter(self.config.suites[suite].policy)
        return self.adapters[suite]

    def _disguise(
        self, instructions: Sequence[str], episode: Episode
    ) -> Callable[[Observation, int], Observation]:
        """What a control does to what the policy sees."""
        control = episode.row.control
        if control == "black":
            return lambda o, _: replace(
                o, images={k: np.zeros_like(v) for k, v in o.images.items()}
            )
        if control == "wrong_instruction":
            if len(instructions) < 2:
                raise ConfigError(
                    f"control wrong_instruction: {episode.suite} has one instruction only; take "
                    "the row out."
                )
            other = (episode.task + len(instructions) // 2) % len(instructions)
            return lambda o, _: replace(o, instruction=instructions[other])
        if control == "other_images":
            frames = np.load(self._others_frames(episode))  # [calls, V, H, W, 3]
            return lambda o, call: replace(
                o, images=dict(zip(sorted(o.images), frames[call % len(frames)], strict=True))
            )
        return lambda o, _: o

    def _others_frames(self, episode: Episode) -> Path:
        """What dense saw in another task, half the config's tasks on or behind that.

        The first that lasted as long as dense in this one, else the longest: at the end of a short
        one the same pictures come again.
        """
        tasks = self.config.suites[episode.suite].tasks
        at = tasks.index(episode.task) + len(tasks) // 2
        calls: dict[Path, int] = {}
        for other in [tasks[(at + i) % len(tasks)] for i in range(len(tasks))]:
            file = self._frame_file(episode, other)
            if other != episode.task and file.exists():
                calls[file] = _calls(file)
        own = self._frame_file(episode, episode.task)
        wanted = _calls(own) if own.exists() else 0
        if calls:
            longest = max(calls, key=lambda file: calls[file])
            return next((file for file in calls if calls[file] >= wanted), longest)
        raise ConfigError(
            f"control other_images needs the dense episode of another task than {episode.task} of "
            f"{episode.suite} with state {episode.state}; put two tasks in the config."
        )

    def _frame_file(self, episode: Episode, task: int) -> Path:
        return self.frames / f"{episode.suite}_{task}_{episode.state}.npy"


def _calls(file: Path) -> int:
    return len(np.load(file, mmap_mode="r"))


def _asked(policy: VLAPolicy, running: list[_Running]) -> list[tuple[_Running, ActionChunk]]:
    """What the policy says; where that is no action, the episode breaks off."""
    while running:
        try:
            chunks = policy.act([run.shown for run in running], [run.state for run in running])
            return list(zip(running, chunks, strict=True))
        except ActionError as error:
            rows = set(error.rows or range(len(running)))
            for row in rows:
                running[row].seat.fail(str(error))
            running = [run for row, run in enumerate(running) if row not in rows]
    return []


def _is_dense(episode: Episode) -> bool:
    return episode.row.recipe == "dense" and episode.row.control == "none"


def _llm_ms(chunk: ActionChunk) -> float:
    return sum(chunk.stage_ms.get(stage, 0.0) for stage in LLM_STAGES)


def _time_ratio(policy: VLAPolicy, shown: Observation, state: PolicyState) -> float:
    """Language-model time of this recipe over dense: both take turns on an episode's last look.

    Taking turns keeps the load of the machine, which changes within minutes, out of the ratio. The
    first round only warms up.
    """
    # A call of its own that runs dense (a refresh) would say nothing: time the one behind it.
    state = copy.deepcopy(state)
    state.tick += policy.pruners[0].warming_up(state)
    # The hooks of an attached adapter obey whichever pruner begins a call.
    dense = VLAPolicy(policy.adapter, Pruner(), time_stages=True)
    ratios = []
    for _ in range(1 + TIMING_ROUNDS):
        ours, theirs = (p.act_one(shown, copy.deepcopy(state)) for p in (policy, dense))
        ratios.append(_llm_ms(ours) / _llm_ms(theirs))
    return float(np.median(ratios[1:]))
