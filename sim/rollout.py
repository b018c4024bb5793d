"""One policy in one environment, many episodes: resumable, durable, paired.

A table is a list of rows (recipe, keep ratio, control) times a list of places (suite, task,
state). Worker processes take one (suite, task) at a time, so that a simulator is built once for
all rows; every finished episode is a line of JSON on disk before the next one starts. A killed run
goes on where it stopped and counts nothing twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty
from typing import Any

from vla_prune_sim.realtime.config import RealtimeConfig, check_rows, settings
from vla_prune_sim.realtime.tuned import resolved
from vla_prune_sim.spans import numbers
from vla_prune_sim.survey import Survey, marks, spoken, survey, tasks_there

from vla_prune import report
from vla_prune.config import PLAIN, check_keys
from vla_prune.errors import ConfigError, VlaPruneError, did_you_mean

log = logging.getLogger(__name__)

CONTROLS = ("none", "black", "other_images", "wrong_instruction")
WORLDS = {
    "drive": "vla_prune_sim.drive.world:DriveWorld",
    "libero": "vla_prune_sim.libero.world:LiberoWorld",
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        recipe: a recipe by name or path; empty where a driver is named.
        keep_ratio: fraction kept; 1.0 for recipes that have none, such as ``dense`` and ``blind``.
        control: ``none``; ``black`` images; ``other_images``, those of another task's dense
            episode; ``wrong_instruction``, that of another task of the suite.
        states: how many of the config's states this row runs, the first ones; None for all.
        tasks: how many of its tasks, likewise.
        driver: a reference driver of the world (LIBERO's ``expert``, say) in the policy's place.
        controller: in real time, the run-time controller picks the keep ratio of each call.
        settings: of the real-time section, which this row runs in; None for all.
        tuned: in real time, a ``tuned.yaml`` of ``vla-prune tune`` (or suite -> file), whose
            recipe and budget, or with ``controller`` whose ladder, the row takes.
        ladder: keep ratios of the controller; None for the real-time section's.
    """

    recipe: str = ""
    keep_ratio: float = 1.0
    control: str = "none"
    states: int | None = None
    tasks: int | None = None
    driver: str = ""
    controller: bool = False
    settings: list[str] | None = None
    tuned: Any = ""
    ladder: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """The recipe's or the driver's; the file's before its recipe is known."""
        return self.recipe or self.driver or str(self.tuned)

    @property
    def budget(self) -> str:
        """What picks the budget: a keep ratio, ``tuned``, ``controller`` or both."""
        parts = ["tuned"] * bool(self.tuned) + ["controller"] * self.controller
        return "_".join(parts) or f"{self.keep_ratio:g}"


@dataclass(frozen=True)
class SuiteConfig:
    """One suite and the policy that serves it.

    Attributes:
        policy: a policy config.
        tasks: numbers, or a text such as ``0-9,12``.
        states: initial states, likewise.
    """

    policy: str
    tasks: Any
    states: Any

    def __post_init__(self) -> None:
        """Spell texts out."""
        for name in ("tasks", "states"):
            object.__setattr__(self, name, numbers(getattr(self, name), f"run: {name}"))


@dataclass(frozen=True)
class RunConfig:
    """What ``configs/run/*.yaml`` may hold.

    Attributes:
        world: simulator, a key of ``WORLDS`` or ``module:Class``.
        suites: suite name -> policy, tasks and states.
        rows: what is compared; the first must be dense, the reference of every pair. Suites and
            rows may be given as mappings.
        results: JSON file to write.
        work: folder for the episode lines; a run resumes from it.
        cut_layer: moves the recipes' decoder cuts, for decoders of another depth.
        execute: steps of a chunk that are executed before the policy is asked again.
        seed: of the simulator's draws; with the state's number it fixes an episode.
        workers: processes; 0 for one per core, 1 for this process alone. Without effect where
            a batch is larger than 1.
        batch: environments, one process each, that one policy serves in one forward pass; 0 for
            one on a CPU and one per core (at most 16) on CUDA.
        threads: torch threads in each worker.
        sim: handed to the world, such as image size and look.
        ablation: rows of the results also bear `variant`, their name without its folder.
        realtime: fields of `realtime.config.RealtimeConfig`; None freezes the world while the
            policy thinks.
    """

    world: str
    suites: Mapping[str, Any]
    rows: list[Any]
    results: str
    work: str
    cut_layer: int | None = None
    execute: int = 8
    seed: int = 7
    workers: int = 0
    batch: int = 0
    threads: int = 1
    sim: Mapping[str, Any] = field(default_factory=dict)
    ablation: bool = False
    realtime: Any = None

    def __post_init__(self) -> None:
        """Make objects of suites and rows; refuse what cannot be run."""
        suites = {
            name: _made(f"run: suites.{name}", SuiteConfig, data)
            for name, data in self.suites.items()
        }
        rows = [_made(f"run: rows[{i}]", Row, data) for i, data in enumerate(self.rows)]
        object.__setattr__(self, "suites", suites)
        object.__setattr__(self, "rows", rows)
        for row in rows:
            if row.control not in CONTROLS:
                raise did_you_mean("run: rows", "control", row.control, CONTROLS)
            if [row.recipe, row.driver, row.tuned].count("") != 2 or row.ladder is not None:
                raise ConfigError(
                    f"run: rows: {row} names neither or several of a recipe, a driver and a tuned "
                    "file, or a ladder of its own; give one of the three, and no ladder."
                )
            for name in ("states", "tasks"):
                wanted = getattr(row, name)
                if wanted is not None and wanted < 1:
                    raise ConfigError(
                        f"run: rows: {row.name} plays {wanted} {name}; give 1 or more, or leave "
                        "it out for all."
                    )
            if row.keep_ratio != 1.0 and (row.driver or row.tuned or row.recipe in PLAIN):
                raise ConfigError(
                    f"run: rows: {row.name!r} has no budget, so keep_ratio {row.keep_ratio:g} "
                    "would only mislabel it; take it out."
                )
            if row.driver and row.control != "none":
                raise ConfigError(
                    f"run: rows: driver {row.driver!r} looks at no images or words, so control "
                    f"{row.control!r} does nothing to it; take it out."
                )
        size = ("states", "tasks", "settings")
        if not rows or rows[0] != Row("dense", **{name: getattr(rows[0], name) for name in size}):
            raise ConfigError("run: the first row must be dense; every other is paired with it.")
        if self.realtime is not None:
            realtime = _made("run: realtime", RealtimeConfig, self.realtime)
            object.__setattr__(self, "realtime", realtime)
        check_rows(self.realtime, rows, list(suites))


@dataclass(frozen=True)
class Episode:
    """One entry of a table; its key names it on the command line."""

    suite: str
    task: int
    state: int
    row: Row
    setting: str = ""

    @property
    def key(self) -> str:
        """``SUITE:TASK:STATE:RECIPE:KEEP``, ``:CONTROL`` and ``@SETTING`` behind it if any."""
        parts = [self.suite, self.task, self.state, self.row.name, self.row.budget]
        return (
            ":".join(map(str, parts))
            + ("" if self.row.control == "none" else f":{self.row.control}")
            + (f"@{self.setting}" if self.setting else "")
        )


def episodes(config: RunConfig) -> list[Episode]:
    """All entries of the table, dense first."""
    made = []
    for row in config.rows:
        for suite, entry in config.suites.items():
            states, tasks = entry.states[: row.states], entry.tasks[: row.tasks]
            plain = replace(row, states=None, tasks=None, settings=None)
            plain = resolved(plain, suite, config.cut_layer)
            made += [
                Episode(suite, task, state, plain, setting)
                for setting in settings(config.realtime, row)
                for task in tasks
                for state in states
            ]
    return made


def _made(where: str, cls: type, data: Any) -> Any:
    """An object from a mapping, or as it is."""
    if isinstance(data, cls):
        return data
    check_keys(where, cls, data)
    return cls(**data)


def world_path(world: str) -> str:
    """``module:Class`` of a simulator, from a name of ``WORLDS`` or given as such."""
    if ":" in world:
        return world
    if world not in WORLDS:
        raise did_you_mean("run", "world", world, WORLDS)
    return WORLDS[world]


def run(
    config: RunConfig, only: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Run what is not yet done and return one result per episode of the table.

    Args:
        config: the table.
        only: episode keys; empty for all. These are run anew and not written to the work folder.
        progress: called with (done, total) after every episode.
    """
    config, found = settled(config)
    wanted = episodes(config)
    for key, times in Counter(episode.key for episode in wanted).items():
        if times > 1:
            raise ConfigError(f"run: {key!r} stands in the table twice; take one of them out.")
    if only:
        known = {episode.key: episode for episode in wanted}
        for key in only:
            if key not in known:
                raise did_you_mean("--only", "entry", key, known)
        asked = [known[key] for key in only]
        _check(config, asked)
        return list(_work(config, asked, keep_frames=False))
    mark = marks(config, found, wanted)
    folder = Path(config.work)
    folder.mkdir(parents=True, exist_ok=True)
    with _claimed(folder):
        lines = folder / "episodes.jsonl"
        # Lines without a mark are from before there were marks.
        done = {
            result["key"]: result
            for result in read_lines(lines)
            if result["key"] in mark and result.get("mark", "") in ("", mark[result["key"]])
        }
        results = list(done.values())
        _tell_commits(results)
        todo = [episode for episode in wanted if episode.key not in done]
        _check(config, todo)
        # Controls that show another episode's images need the dense episodes first.
        first = [episode for episode in todo if episode.row == Row("dense")]
        _end_line(lines)
        for phase in (first, [episode for episode in todo if episode.row != Row("dense")]):
            with lines.open("a", encoding="utf-8") as file:
                for result in _work(config, phase, keep_frames=True):
                    result["mark"] = mark[result["key"]]
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    results.append(result)
                    if progress:
                        progress(len(results), len(wanted))
    order = {episode.key: place for place, episode in enumerate(wanted)}
    return sorted(results, key=lambda result: order[result["key"]])


def settled(config: RunConfig) -> tuple[RunConfig, Survey | None]:
    """The config with the tasks that its world has, and what the world told (see `survey`).

    A world that is made from a seed is made here, once for all workers.

    Raises:
        MissingError: a policy's weights are not there.
        ConfigError: the world has none of a suite's tasks, or states that would be the same
            episode again.
    """
    path = world_path(config.world)
    marks(config, None, episodes(config))  # what is missing is named before a world is made
    found = survey(path, config.sim)
    if found is None:
        return config, None
    suites = {}
    for name, entry in config.suites.items():
        # In real time a state also draws the latencies.
        if config.realtime is None and 0 < found.starts < len(entry.states):
            raise ConfigError(
                f"run: suites.{name}.states: {spoken(entry.states)} are the same episode again "
                f"and would narrow the intervals for nothing; give {found.starts} of them."
            )
        there, lost = tasks_there(name, entry.tasks, found)
        if lost:
            log.warning(
                "%s has %d scenes; tasks %s of %s are left out.",
                found.place, found.tasks, spoken(lost), name,
            )  # fmt: skip
        suites[name] = replace(entry, tasks=there)
    return replace(config, suites=suites, sim=found.options), found


def _tell_commits(done: Sequence[Mapping[str, Any]]) -> None:
    """Say it where a table goes on with episodes of other commits."""
    others = {result.get("commit", "unknown") for result in done} - {report.commit()}
    if others:
        log.warning(
            "run: episodes of commit %s count as done; give another 'work' to play them anew.",
            ", ".join(sorted(others)),
        )


def _check(config: RunConfig, todo: Sequence[Episode]) -> None:
    """Refuse what real time cannot play, before anything is played."""
    if config.realtime and todo:
        from vla_prune_sim.realtime.check import check

        check(config, todo)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Finished episodes; a line that a killed run left half-written is dropped."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _end_line(path: Path) -> None:
    """Close a line that a killed run left half-written, or the next would be lost with it."""
    if path.exists() and (told := path.read_bytes()) and not told.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold the folder; a second run in it is refused."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{folder} is in use by another run; wait for it, or set 'work' to another folder."
            ) from None
        yield


def _work(
    config: RunConfig, todo: Sequence[Episode], keep_frames: bool
) -> Iterator[dict[str, Any]]:
    """Results as they come: from worker processes, or from one with many seats."""
    if not todo:
        return
    seats = 1 if config.realtime else min(config.batch or _default_batch(), len(todo))
    if seats > 1:
        # One policy serves all seats, so a batch shares suite and row.
        yield from _played(config, sorted(todo, key=lambda e: e.suite), keep_frames, seats)
        return
    groups: dict[tuple[str, int], list[Episode]] = {}
    for episode in todo:
        groups.setdefault((episode.suite, episode.task), []).append(episode)
    # Each worker takes one (suite, task) at a time: a simulator is built once for all rows.
    count = min(config.workers or os.cpu_count() or 1, len(groups))
    if count == 1:
        yield from _played(config, [e for group in groups.values() for e in group], keep_frames)
    else:
        yield from _in_processes(config, list(groups.values()), keep_frames, count)


def _default_batch() -> int:
    import torch

    return min(os.cpu_count() or 1, 16) if torch.cuda.is_available() else 1


def _played(
    config: RunConfig, todo: Sequence[Episode], keep_frames: bool, seats: int = 1
) -> Iterator[dict[str, Any]]:
    player = _player(config, keep_frames, seats)
    try:
        yield from player.play(todo)
    finally:
        player.close()


def _player(config: RunConfig, keep_frames: bool, seats: int = 1) -> Any:
    import torch
    from vla_prune_sim.play import Player

    torch.set_num_threads(config.threads)
    if config.realtime:
        from vla_prune_sim.realtime.player import RealtimePlayer

        return RealtimePlayer(config, world_path(config.world))
    return Player(config, world_path(config.world), keep_frames, seats)


def _in_processes(
    config: RunConfig, groups: Sequence[Sequence[Episode]], keep_frames: bool, count: int
) -> Iterator[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    jobs, results = context.Queue(), context.Queue()
    for group in groups:
        jobs.put(group)
    for _ in range(count):
        jobs.put(None)
    workers = [
        context.Process(target=_worker, args=(config, jobs, results, keep_frames), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    left = sum(map(len, groups))
    try:
        while left:
            try:
                kind, value = results.get(timeout=5.0)
            except Empty:
                if not any(worker.is_alive() for worker in workers):
                    raise RuntimeError("all workers ended before the run was done.") from None
                continue
            if kind == "mistake":
                raise value
            if kind == "crash":
                raise RuntimeError(f"a worker failed:\n{value}")
            left -= 1
            yield value
    finally:
        for worker in workers:
            worker.terminate()
            worker.join(timeout=5.0)


def _worker(config: RunConfig, jobs: Any, results: Any, keep_frames: bool) -> None:
    end_with_parent()
    try:
        player = _player(config, keep_frames)
        while (group := jobs.get()) is not None:
            for result in player.play(group):
                results.put(("episode", result))
    except VlaPruneError as error:
        results.put(("mistake", error))
    except Exception:
        results.put(("crash", traceback.format_exc()))
    finally:
        results.close()
        results.join_thread()


def end_with_parent() -> None:
    """This worker ends when the process that started it is gone, however that ended."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
