"""Demonstrations of the scripted expert in LIBERO, written as HDF5.

The files follow LIBERO's own layout (``data/demo_i/obs/agentview_rgb``, ``actions`` and so on)
with one deviation: pictures exist at sampled steps only, which ``frame_index`` names. ``actions``
are what the expert would do at each step; ``executed`` is what was done, which differs in bursts
that push the hand away so that the way back is seen. The eight steps after every sampled frame are
undisturbed, so ``actions[frame_index[f]:frame_index[f] + 8]`` is a true chunk. Every key stands in
``sim/libero/README.md``. Knows no model.

    python -m vla_prune_sim.train.demos --suite libero_object --out runs/demos --episodes 500

With ``--policy`` that policy drives, and each of its looks comes with the expert's chunk from
there (DAgger), under ``chunks``. With ``--glances`` an episode is only the start of the way to one
thing after the other, each time with another instruction: words and things are learned from many
layouts instead of many steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from vla_prune_sim.libero.env import VIEWS, LiberoEnv, proprio
from vla_prune_sim.libero.expert import GOALS, Expert
from vla_prune_sim.libero.labels import patches, pixel
from vla_prune_sim.libero.layouts import RandomLayout
from vla_prune_sim.train.dagger import EXPERT, Look, add_arguments, learners

from vla_prune.errors import VlaPruneError
from vla_prune.types import Observation

CHUNK = 8
EXECUTED = 4  # rows of a policy's chunk, as in the tables
SIZE = 144
TRAIN_STATES = 30  # shipped states from this one on are for evaluation
FORMAT = 1
Maker = Callable[[LiberoEnv, int], list[tuple[dict, dict]]]
Drive = Callable[[], np.ndarray]  # the next actions ``[EXECUTED, 7]``
Driver = Callable[[LiberoEnv, str], Drive]  # a new one for every episode


class Disturbance:
    """Bursts that take the hand off its way, each announced eight steps ahead."""

    def __init__(self, rng: np.random.Generator, most: int) -> None:
        self._rng, self._left = rng, most
        self._calm, self._start, self._end = 0, -1, -1

    def quiet(self, step: int) -> bool:
        """Whether the eight steps from `step` on stay undisturbed."""
        return self._start < 0 or step + CHUNK <= self._start

    def __call__(self, step: int, clean: np.ndarray, near: bool) -> np.ndarray:
        """The action to execute instead of `clean`, ``[7]``."""
        if self._start >= 0 and step >= self._end:
            self._start, self._calm = -1, 0
        if self._start < 0:
            self._calm += 1
            if self._left and self._calm > 10 and self._rng.random() < (0.10 if near else 0.03):
                self._plan(step + CHUNK)
        if self._start < 0 or step < self._start:
            return clean
        if self._kind == "grip":
            return np.append(clean[:6], -clean[6])
        if self._kind == "noise":
            return np.clip(clean + np.append(self._rng.normal(0, 0.6, 6), 0.0), -1, 1)
        return np.append(self._push, clean[6])

    def _plan(self, start: int) -> None:
        rng = self._rng
        self._left -= 1
        self._kind = rng.choice(["push", "noise", "grip"], p=[0.6, 0.2, 0.2])
        length = {"push": (3, 8), "noise": (6, 11), "grip": (4, 9)}[self._kind]
        self._start, self._end = start, start + int(rng.integers(*length))
        way = rng.normal(size=3)
        turn = rng.uniform(-0.4, 0.4, 3) * (rng.random() < 0.5)
        self._push = np.concatenate([way / np.linalg.norm(way) * rng.uniform(0.5, 1.0), turn])


class Frames:
    """Pictures and labels of the sampled steps of one episode."""

    def __init__(self, env: LiberoEnv, target: str, goal: str) -> None:
        self._env, self._target, self._goal = env, target, goal
        self.rows: dict[str, list] = {}

    def take(self, step: int, holding: bool) -> None:
        """Add the present instant."""
        scene = self._env.scene()
        state = proprio(scene)
        row = {
            "frame_index": np.int32(step),
            "states8": state,
            "obs/ee_pos": state[:3],
            "obs/ee_ori": state[3:6],
            "obs/gripper_states": state[6:],
            "aux/holding": np.bool_(holding),
        }
        # The released convention shows the mirror image of the true view.
        for view, key in (("agentview", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
            row[f"obs/{key}"] = self._env.raw_image(view, SIZE)[::-1, ::-1]
        seen = [
            patches(scene, self._target, self._goal, camera)[:, ::-1] for camera in VIEWS.values()
        ]
        row["aux/patches"] = np.stack(seen)
        for role, name in (("target", self._target), ("goal", self._goal)):
            corners = scene.corners(name)
            point = (corners.min(0) + corners.max(0)) / 2
            spots = [pixel(scene, point, camera) for camera in VIEWS.values()]
            row[f"aux/{role}_pos"] = point.astype(np.float32)
            row[f"aux/{role}_uv"] = np.array([[1.0 - uv[0], uv[1]] for uv, _ in spots], np.float32)
            row[f"aux/{role}_in_view"] = np.array([inside for _, inside in spots])
        for key, value in row.items():
            self.rows.setdefault(key, []).append(value)


def record(env: LiberoEnv, seed: int) -> list[tuple[dict, dict]]:
    """One episode: arrays and attributes, or nothing when the layout or the expert failed.

    Args:
        env: one task.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    begun = _begin(env, seed, rng)
    if begun is None:
        return []
    expert, frames, about = begun
    disturb = Disturbance(rng, int(rng.choice([0, 1, 2, 3, 4], p=[0.3, 0.1, 0.2, 0.2, 0.2])))
    actions, executed, due = [], [], 0
    done_at = None
    for step in range(env.max_steps):
        clean = expert.act().astype(np.float32)
        near = _near(expert)
        action = disturb(step, clean, near).astype(np.float32)
        if done_at is None and step >= due and disturb.quiet(step):
            frames.take(step, expert.holding)
            due = step + (2 if near else int(rng.integers(3, 5)))
        actions.append(clean)
        executed.append(action)
        _, _, success, cut, _ = env.step(action)
        if success and done_at is None:
            done_at = step + 1
        # A little longer, so that the last frames have whole chunks.
        if done_at is not None and step + 1 >= done_at + CHUNK:
            break
        if cut and done_at is None:
            return []
    if done_at is None:
        return []
    return [(_arrays(frames, actions, executed), about | {"steps": done_at, "success": True})]


def dagger(env: LiberoEnv, seed: int, drivers: Sequence[Driver]) -> list[tuple[dict, dict]]:
    """One episode that a policy drives, with what the expert would do at each of its looks.

    The states are the policy's own (see `train.dagger`). A chunk is had by letting the expert go
    on from there and putting the world back.

    Args:
        env: one task.
        seed: of everything.
        drivers: policies, of which one drives.
    """
    rng = np.random.default_rng(seed)
    begun = _begin(env, seed, rng)
    if begun is None:
        return []
    expert, frames, about = begun
    drive = drivers[int(rng.integers(len(drivers)))](env, about["instruction"])
    actions, executed, chunks = [], [], []
    success = cut = False
    while not (success or cut):
        frames.take(len(actions), expert.holding)
        chunks.append(ahead(env, expert))
        rows = chunks[-1] if rng.random() < EXPERT else drive()
        for row in rows[:EXECUTED]:
            actions.append(expert.act().astype(np.float32))
            executed.append(row.astype(np.float32))
            _, _, success, cut, _ = env.step(row)
            if success or cut:
                break
    arrays = {key: np.stack(rows) for key, rows in frames.rows.items()}
    arrays |= {"chunks": np.stack(chunks), "actions": np.stack(actions)}
    about |= {"steps": len(actions), "success": success}
    return [(arrays | {"executed": np.stack(executed)}, about)]


def ahead(env: LiberoEnv, expert: Expert) -> np.ndarray:
    """What the expert would do in the next steps, ``[CHUNK, 7]``; the world stays as it is."""
    sim, gripper = env._inner.sim, env._inner.robots[0].gripper
    state, command, memory = sim.get_state(), gripper.current_action.copy(), dict(vars(expert))
    steps, clock = env._steps, (env._inner.timestep, env._inner.cur_time)
    chunk = []
    for _ in range(CHUNK):
        chunk.append(expert.act().astype(np.float32))
        env.step(chunk[-1])
    sim.set_state(state)
    sim.forward()
    gripper.current_action = command
    vars(expert).update(memory)
    env._steps, (env._inner.timestep, env._inner.cur_time) = steps, clock
    return np.stack(chunk)


def _begin(
    env: LiberoEnv, seed: int, rng: np.random.Generator
) -> tuple[Expert, Frames, dict[str, Any]] | None:
    """A started episode: its expert, its frames, its attributes; None where a layout fell."""
    init = int(rng.integers(TRAIN_STATES))
    layout = RandomLayout(seed) if rng.random() < 0.75 else None
    obs, _ = env.reset(seed=seed, options={"init": init, "layout": layout})
    if layout is not None and not layout.intact(env):
        return None
    target, goal = env.goal[0][1], GOALS[env.suite]
    about = {
        "instruction": obs["instruction"],
        "suite": env.suite,
        "task": env.task,
        "init": init,
        "seed": seed,
        "layout": layout.describe() if layout else "shipped",
        "target": target,
        "goal": goal,
    }
    return Expert(env.scene(), target, goal), Frames(env, target, goal), about


def glances(env: LiberoEnv, seed: int, targets: int = 4) -> list[tuple[dict, dict]]:
    """Two chunks of the way to each of some targets in one random layout.

    Where a suite's instruction names a place, as in libero_spatial, there is only one target.
    """
    rng = np.random.default_rng(seed)
    init = int(rng.integers(TRAIN_STATES))
    layout = RandomLayout(seed, arm_rad=0.15)
    env.reset(seed=seed, options={"init": init, "layout": layout})
    if not layout.intact(env):
        return []
    scene, goal = env.scene(), GOALS[env.suite]
    made = []
    for target, instruction in layout.choices(rng)[:targets]:
        expert, frames, actions = Expert(scene, target, goal), Frames(env, target, goal), []
        for step in range(2 * CHUNK):
            clean = expert.act().astype(np.float32)
            if step % CHUNK == 0:
                frames.take(step, expert.holding)
            actions.append(clean)
            env.step(clean)
        about = {
            "instruction": instruction,
            "suite": env.suite,
            "task": env.task,
            "init": init,
            "seed": seed,
            "layout": layout.describe(),
            "target": target,
            "goal": goal,
            "steps": len(actions),
        }
        made.append((_arrays(frames, actions, actions), about))
    return made


def _arrays(frames: Frames, actions: list, executed: list) -> dict[str, np.ndarray]:
    """What a demonstration's datasets are, frames without a whole chunk left out."""
    arrays = {key: np.stack(rows) for key, rows in frames.rows.items()}
    whole = arrays["frame_index"] + CHUNK <= len(actions)
    arrays = {key: rows[whole] for key, rows in arrays.items()}
    return arrays | {"actions": np.stack(actions), "executed": np.stack(executed)}


def _near(expert: Expert) -> bool:
    scene = expert.scene
    if expert.holding:
        apart = scene.position(expert.target) - scene.position(expert.goal)
        return bool(np.linalg.norm(apart[:2]) < 0.06)
    return bool(np.linalg.norm(scene.hand - expert.grasp()[0]) < 0.06)


def write_shard(
    path: Path, suite: str, task: int, episodes: int, seed: int, make: Maker = record
) -> tuple[int, int]:
    """Make one file with `make`; returns how many demonstrations and frames it has."""
    env = LiberoEnv(suite, task, look="fast", images=False, max_steps=220, quick_physics=True)
    part = path.with_suffix(".part")
    count = frames = tries = good = 0
    try:
        with h5py.File(part, "w") as file:
            data = file.create_group("data")
            # More than ten failures would be a broken expert, not bad luck.
            while good < episodes and tries < episodes + 10:
                made = make(env, seed + tries)
                tries += 1
                good += bool(made)
                for arrays, about in made:
                    _write(data.create_group(f"demo_{count}"), arrays, about)
                    count += 1
                    frames += len(arrays["frame_index"])
            data.attrs.update(
                {
                    **env.about(),
                    "image_size": SIZE,
                    "image_convention": "released",
                    "format": FORMAT,
                    "chunk": CHUNK,
                    "control_hz": 20,
                    "quick_physics": True,
                    "tries": tries,
                    "num_demos": count,
                    "num_frames": frames,
                    "views": json.dumps(list(VIEWS)),
                    "patch_labels": json.dumps(
                        ["background", "target", "goal", "robot", "other object"]
                    ),
                }
            )
    finally:
        env.close()
    if not count:
        part.unlink()
        raise RuntimeError(f"{suite} task {task}: the expert failed {tries} times out of {tries}.")
    part.replace(path)
    return count, frames


def _write(demo: h5py.Group, arrays: dict[str, np.ndarray], about: dict) -> None:
    for key, value in arrays.items():
        if key.endswith("_rgb"):
            chunks = (1, *value.shape[1:])
            demo.create_dataset(
                key, data=value, chunks=chunks, compression="gzip", compression_opts=1
            )
        else:
            demo.create_dataset(key, data=value)
    demo.attrs.update(about)


def shards(
    out: Path,
    suite: str,
    episodes: int,
    per_shard: int,
    seed: int,
    worker: tuple[int, int],
    tasks: Sequence[int] = tuple(range(10)),
) -> Iterator[tuple[Path, int, int]]:
    """Files still to be made by this worker: path, task, seed. Tasks take turns."""
    index = -1
    for shard in range(-(-episodes // (len(tasks) * per_shard))):
        for task in tasks:
            index += 1
            path = out / suite / f"task_{task:02d}_shard_{shard:04d}.hdf5"
            if index % worker[1] == worker[0] and not path.exists():
                yield path, task, seed * 1_000_003 + (shard * 10 + task) * 1000


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=sorted(GOALS), required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/demos"))
    parser.add_argument("--episodes", type=int, default=500, help="of all tasks together")
    parser.add_argument("--tasks", type=int, nargs="+", default=range(10))
    parser.add_argument("--per-shard", type=int, default=4)
    parser.add_argument("--glances", action="store_true", help="starts of ways, many layouts")
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", default="0/1", help="i/n: this is worker i of n")
    args = parser.parse_args(argv)
    index, of = args.worker.split("/")
    worker = (int(index), int(of))
    (args.out / args.suite).mkdir(parents=True, exist_ok=True)
    try:
        _make(args, worker)
    except VlaPruneError as error:
        parser.error(str(error))


def _driver(begin: Callable[[], Look], env: LiberoEnv, instruction: str) -> Drive:
    """What this policy would execute of its next chunk in this environment."""
    look = begin()

    def drive() -> np.ndarray:
        images = {view: env.raw_image(view, SIZE)[::-1, ::-1].copy() for view in VIEWS}
        return look(Observation(images, instruction, proprio(env.scene())))[:EXECUTED]

    return drive


def _make(args: argparse.Namespace, worker: tuple[int, int]) -> None:
    start, made, seen = time.time(), 0, 0
    part = args.episodes, args.per_shard, args.seed, worker, tuple(args.tasks)
    todo = shards(args.out, args.suite, *part)
    make = glances if args.glances else record
    if args.policy:
        drivers = [partial(_driver, begin) for begin in learners(args)]
        make = partial(dagger, drivers=drivers)
    for path, task, seed in todo:
        count, frames = write_shard(path, args.suite, task, args.per_shard, seed, make)
        made, seen = made + count, seen + frames
        rate = seen / (time.time() - start)
        print(
            f"{args.suite} {path.name}: {count} demonstrations, {frames} frames; in all {made},"
            f" {seen} frames, {rate:.1f} frames/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
