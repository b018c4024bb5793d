"""The processes that :mod:`vla_prune_ros.measure` starts: nodes that are watched, and cameras.

Nothing in the nodes knows of it: their loops' methods are wrapped before they become active.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message

from vla_prune_ros.command_node import CommandNode
from vla_prune_ros.contract import Contract, load_contract
from vla_prune_ros.convert import image_fields
from vla_prune_ros.memory import allocated
from vla_prune_ros.node import ManagedNode, run
from vla_prune_ros.policy_node import PolicyNode
from vla_prune_ros.pruner_node import PrunerNode
from vla_prune_ros.ros_messages import get_message, message
from vla_prune_ros.split import see
from vla_prune_ros.stamps import header_fields, seconds
from vla_prune_ros.tokens import Origin, pack_tokens

IMAGE, TOKENS = "sensor_msgs/msg/Image", "vla_prune_msgs/msg/VisualTokens"
CHUNK, SCORES = "vla_prune_msgs/msg/ActionChunk", "vla_prune_msgs/msg/TokenScores"
READY_S, SETTLE_S = 300.0, 2.0
FRAMES = 8  # pictures that the cameras repeat
COLUMNS = (
    *("arrived", "begun", "compute", "published", "taken", "played", "spent"),  # by frame
    *("ticks", "act_ages", "tick_ages", "memory", "allocated"),
)


class Column:
    """Pairs of a frame (or time) and a number, in memory that is all taken at the start."""

    def __init__(self, rows: int) -> None:
        self.rows, self.used = np.full((rows, 2), np.nan), 0

    def add(self, name: float, value: float) -> None:
        """One pair; nothing once it is full."""
        if self.used < len(self.rows):
            self.rows[self.used] = name, value
            self.used += 1


class Log:
    """What one process saw: frames by the microseconds of their stamp, seconds of steady time.

    Args:
        rows: most entries of a column.
    """

    def __init__(self, rows: int) -> None:
        self.columns = {name: Column(rows) for name in COLUMNS}
        self.pictures = 0
        self.bytes: dict[str, int] = {}

    def __getattr__(self, name: str) -> Column:
        """A column by its name."""
        return self.columns[name]

    def save(self, path: Path) -> None:
        """For :class:`Seen`."""
        columns = {name: column.rows[: column.used] for name, column in self.columns.items()}
        with path.open("wb") as file:
            np.savez(file, told=json.dumps([self.pictures, self.bytes]), **columns)


def key(stamp_s: float) -> int:
    """Of a frame: its stamp in whole microseconds."""
    return round(1e6 * stamp_s)


def watch_pictures(node: Any, log: Log) -> None:
    """When pictures come."""
    senses, put = node.loop.senses, node.loop.senses.put_image

    def timed(camera: str, picture: Any) -> bool:
        log.arrived.add(key(seconds(picture.header.stamp)), time.monotonic())
        log.pictures += 1
        return put(camera, picture)

    senses.put_image = timed


def timed_compute(act: Callable[..., Any], log: Log, stamp: Callable[..., float]) -> Any:
    """A policy's own function, timed by frame; ``stamp`` finds the frame in its arguments."""

    def timed(*given: Any) -> Any:
        frame, begun = stamp(*given), time.monotonic()
        log.act_ages.add(key(frame), time.time() - frame)
        made = act(*given)
        log.begun.add(key(frame), begun)
        log.compute.add(key(frame), time.monotonic() - begun)
        return made

    return timed


def watch_chunks(node: PolicyNode, log: Log) -> None:
    """When chunks have been published."""
    say = node.chunks

    def timed(fields: Any) -> None:
        say(fields)
        stamp = fields["header"]["stamp"]
        log.published.add(key(stamp["sec"] + stamp["nanosec"] / 1e9), time.monotonic())

    node.chunks = timed


def watch_commands(node: CommandNode, log: Log) -> None:
    """When chunks are taken, and the ticks."""
    loop, put, tick, command = node.loop, node.loop.put_chunk, node.tick, node.loop.tick
    waiting: list[int] = []

    def timed_put(chunk: Any) -> str:
        refused = put(chunk)
        if not refused:
            frame = key(seconds(chunk.header.stamp))
            waiting[:] = [frame]  # a tick on another thread may take it at once
            log.taken.add(frame, time.monotonic())
        return refused

    def timed_tick() -> None:
        begun, played = time.monotonic(), list(waiting)
        waiting.clear()
        tick()
        spent = time.monotonic() - begun
        log.ticks.add(begun, spent)
        for frame in played:
            log.played.add(frame, begun)
            log.spent.add(frame, spent)

    def heard(release_s: float | None = None) -> Any:
        made = command(release_s)
        if made.source == "chunk":
            log.tick_ages.add(time.monotonic(), made.age_s)
        return made

    loop.put_chunk, node.tick, loop.tick = timed_put, timed_tick, heard


def open_nodes(names: Sequence[str], form: str, log: Log, options: Any) -> list[ManagedNode]:
    """Configured, watched and active."""
    nodes: list[Any] = []
    for name in names:
        given = {"contract": options.contract, "heartbeat_hz": 5.0}
        if name != "command":
            given |= {"policy": options.policy, "recipe": options.recipe, "max_rate_hz": 240.0}
            given |= {"buckets": [1.0, options.keep], "keep_ratio": options.keep}
        if name == "policy":
            given["input"] = "images" if form == "fused" else "tokens"
        made = {"policy": PolicyNode, "pruner": PrunerNode, "command": CommandNode}[name](
            parameter_overrides=[Parameter(k, value=v) for k, v in given.items()]
        )
        done = made.trigger_configure()
        if done != TransitionCallbackReturn.SUCCESS:
            raise SystemExit(f"measure: {made.kind} could not be configured; see above.")
        loop = made.loop
        if name == "command":
            watch_commands(made, log)
        elif name == "pruner":
            log.bytes |= token_bytes(made)
            watch_pictures(made, log)
            adapter = loop.side.adapter
            adapter.see = timed_compute(adapter.see, log, lambda seen, _: seen[0].stamp_s)
        elif form == "split":
            adapter = loop.side.adapter
            adapter.act_on = timed_compute(adapter.act_on, log, lambda _, o, __: o[0].stamp_s)
        else:
            watch_pictures(made, log)
            loop.policy.act_one = timed_compute(
                loop.policy.act_one, log, lambda observation, *_: observation.stamp_s
            )
        made.trigger_activate()
        if name == "policy":
            watch_chunks(made, log)
        nodes.append(made)
    return nodes


def token_bytes(node: PrunerNode) -> dict[str, int]:
    """Bytes of one ``VisualTokens`` on the wire at each budget."""
    loop, found = node.loop, {}
    for bucket, keep in enumerate(loop.buckets.keep):
        example = loop.side.adapter.example_observation(0)
        origin = Origin(loop.health.episode_id, 0, 0.0)
        tokens = see(loop.side, example, origin, type(loop.state)(), bucket)
        made = message(TOKENS, pack_tokens(tokens, loop.side.hashes))
        found[f"{keep:g}"] = len(serialize_message(made))
    return found


def node_process(form: str, names: Sequence[str], options: Any) -> None:
    """Runs nodes until SIGTERM, then writes what they logged."""
    log = Log(round(4 * options.rate * (options.seconds + READY_S)))
    over = threading.Event()

    def remember() -> None:
        pages = os.sysconf("SC_PAGE_SIZE")
        while not over.wait(1.0):
            resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            log.memory.add(time.monotonic(), resident * pages / 2**20)
            log.allocated.add(time.monotonic(), allocated() or np.nan)

    def make() -> list[ManagedNode]:
        nodes = open_nodes(names, form, log, options)
        threading.Thread(target=remember, daemon=True).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        return nodes

    run(make, ["--ros-args", "--log-level", "error"])
    over.set()
    log.save(options.log)


class Cameras(Node):
    """Two cameras, joints and a task of the contract, from pictures made before."""

    def __init__(self, contract: Contract, size: tuple[int, int]) -> None:
        super().__init__("cameras")
        self.contract, self.sent, self.late = contract, [], 0
        draw = np.random.default_rng(0)
        self.pictures = {
            source.key: [
                message(
                    IMAGE,
                    image_fields(draw.integers(0, 256, (*size, 3), np.uint8), 0.0, source.camera),
                )
                for _ in range(FRAMES)
            ]
            for source in contract.cameras
        }
        self.mouths = {
            s.key: self.create_publisher(get_message(s.type), s.topic, 1)
            for s in contract.sources
            if s.key != "task"
        }
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        task = self.create_publisher(
            get_message("std_msgs/msg/String"), contract.task.topic, latched
        )
        task.publish(message("std_msgs/msg/String", {"data": "pick up the black bowl"}))
        self.task = task

    def connected(self) -> bool:
        """Whether the nodes listen."""
        return all(mouth.get_subscription_count() for mouth in self.mouths.values())

    def publish(self, number: int) -> int:
        """One frame of everything; its key."""
        stamp = round(time.time(), 6)  # whole microseconds
        for source in self.contract.states:
            names = [name.partition(".")[2] for name in source.names]
            position = np.full(len(names), 0.01 * (number % 10))
            fields = {"header": header_fields(stamp), "name": names, "position": position}
            self.mouths[source.key].publish(message(source.type, fields))
        for source in self.contract.cameras:
            picture = self.pictures[source.key][number % FRAMES]
            fields = header_fields(stamp)["stamp"]
            picture.header.stamp.sec, picture.header.stamp.nanosec = fields.values()
            self.mouths[source.key].publish(picture)
        return key(stamp)


def camera_process(options: Any) -> None:
    """Publishes for some seconds, or in lockstep; writes the frames' keys, or the chunks."""
    rclpy.init(args=[])
    node = Cameras(load_contract(options.contract), options.size)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    chunks: dict[int, list[float]] = {}
    scored: set[int] = set()
    if options.lockstep:
        node.create_subscription(
            get_message(CHUNK),
            "action_chunk",
            lambda m: chunks.__setitem__(key(seconds(m.header.stamp)), list(m.values)),
            10,
        )
        node.create_subscription(
            get_message(SCORES),
            "token_scores",
            lambda m: scored.add(key(seconds(m.header.stamp))),
            10,
        )
    end = time.monotonic() + READY_S
    while not node.connected() and time.monotonic() < end:
        executor.spin_once(0.05)
    time.sleep(SETTLE_S)
    made: Any
    if options.lockstep:
        made = _in_lockstep(node, executor, options, chunks, scored)
    else:
        made, due = {}, time.monotonic()
        end = due + options.seconds
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            made[node.publish(len(made))] = time.monotonic()
            due += 1.0 / options.rate
    time.sleep(SETTLE_S / 4)
    options.log.write_text(json.dumps(made), encoding="utf-8")
    rclpy.try_shutdown()


def _in_lockstep(
    node: Cameras, executor: Any, options: Any, chunks: dict, scored: set
) -> list[list[float] | None]:
    """The values of the chunk of every frame; the next frame waits for chunk and scores."""
    frames = []
    for number in range(options.lockstep):
        frames.append(node.publish(number))
        for heard, wait_s in ((chunks, 5.0), (scored, 0.5)):  # not every recipe has scores
            end = time.monotonic() + wait_s
            while frames[-1] not in heard and time.monotonic() < end:
                executor.spin_once(0.02)
        time.sleep(0.05)
    return [chunks.get(frame) for frame in frames]
