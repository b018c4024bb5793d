"""Overlay, replay, bridge, bring-up and the assembly of loops from parameters."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from rosbags.rosbag2 import StoragePlugin, Writer
from vla_prune_ros import assemble, params, wire
from vla_prune_ros.bring_up import TRANSITIONS, bring_up
from vla_prune_ros.contract import Contract, load_contract, read_contract
from vla_prune_ros.convert import to_rgb
from vla_prune_ros.overlay import Overlay
from vla_prune_ros.replay import Recording, Replay
from vla_prune_sim_bridge.bridge import Bridge, read_options

from vla_prune import config
from vla_prune.errors import ConfigError, MissingError, VlaPruneError
from vla_prune.runtime.clock import ManualClock
from vla_prune.types import Observation

from .scene import CHUNK, IMAGE, START_S, chunk, fused, image

# Overlay


def test_an_overlay_dims_what_was_dropped_and_keeps_its_pace() -> None:
    with fused(keep=(0.25,)) as (loop, robot, clock):
        overlay = Overlay("image", clock, 5.0)
        robot.sense()
        overlay.put_chunk(wire.make(CHUNK, loop.turn()))
        frame = image(clock.now(), robot.frames)
        drawn = to_rgb(wire.make(IMAGE, overlay.draw(frame)))
        plain = to_rgb(frame)
        same = (drawn == plain).all(-1)[24:]  # below the writing
        assert 0.02 < same.mean() < 0.6
        assert overlay.draw(image(clock.now())) is None
        pictures = 0
        for i in range(30):
            clock.advance(1 / 30)
            pictures += overlay.draw(image(clock.now(), i)) is not None
        assert pictures == 5


def test_an_overlay_without_a_chunk_shows_the_camera() -> None:
    frame = image(1.0, 4)
    drawn = to_rgb(wire.make(IMAGE, Overlay("image", ManualClock()).draw(frame)))
    np.testing.assert_array_equal(drawn[24:], to_rgb(frame)[24:])


# Replay


def record(folder: Path, plugin: StoragePlugin) -> list[bytes]:
    kind, sent = "std_msgs/msg/String", []
    with Writer(folder, version=9, storage_plugin=plugin) as writer:
        told = writer.add_connection("/task", kind, typestore=wire.types())
        seen = writer.add_connection("/front/image_raw", IMAGE, typestore=wire.types())
        for i in range(4):
            time = int((START_S + 0.1 * i) * 1e9)
            for connection, message in (
                (told, wire.make(kind, {"data": f"task {i}"})),
                (seen, image(START_S + 0.1 * i, i, 16)),
            ):
                data = bytes(wire.encode(message, connection.msgtype))
                writer.write(connection, time, data)
                sent.append(data)
    return sent


@pytest.mark.parametrize("plugin", list(StoragePlugin), ids=lambda p: p.name)
def test_a_recording_comes_back_byte_for_byte(plugin: StoragePlugin, tmp_path: Path) -> None:
    sent = record(tmp_path / "bag", plugin)
    recording = Recording(tmp_path / "bag")
    assert recording.topics() == {"/task": "std_msgs/msg/String", "/front/image_raw": IMAGE}
    assert [bytes(m.data) for m in recording.messages()] == sent


def test_what_is_due_follows_the_rate(tmp_path: Path) -> None:
    record(tmp_path / "bag", StoragePlugin.SQLITE3)
    replay = Replay(Recording(tmp_path / "bag", rate=2.0))
    assert [len(replay.due(t)) for t in (0.0, 0.04, 0.05, 0.16)] == [2, 0, 2, 4]
    assert replay.over


def test_a_loop_takes_recorded_time_back(tmp_path: Path) -> None:
    record(tmp_path / "bag", StoragePlugin.SQLITE3)
    replay = Replay(Recording(tmp_path / "bag", loop=True))
    found = replay.due(0.65)
    assert [m.round for m in found] == [0] * 8 + [1] * 8 + [2] * 2
    times = [m.time_s for m in found]
    assert times[8] == times[0] < times[7]
    assert [m.due_s for m in found] == sorted(m.due_s for m in found)
    assert not replay.over


def test_recorded_commands_and_chunks_are_not_played(tmp_path: Path) -> None:
    sent = {
        "/front/image_raw": (IMAGE, image(START_S, 0, 16)),
        "/action_chunk": (CHUNK, chunk(START_S)),
        "/plan": ("nav_msgs/msg/Path", path(START_S, (1.0,))),
    }
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        for topic, (kind, message) in sent.items():
            connection = writer.add_connection(topic, kind, typestore=wire.types())
            writer.write(connection, int(START_S * 1e9), bytes(wire.encode(message, kind)))
    observed = Recording(tmp_path / "bag", only=["/front/image_raw", "/wrist/image_raw"])
    assert observed.topics() == {"/front/image_raw": IMAGE}
    assert [m.topic for m in observed.messages()] == ["/front/image_raw"]
    assert set(Recording(tmp_path / "bag").topics()) == set(sent)
    with pytest.raises(ConfigError, match="no observation of the contract; it has /front/image"):
        Recording(tmp_path / "bag", only=["/camera/CAM_FRONT/image_raw"])


def test_a_recording_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is no folder"):
        Recording(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="above 0"):
        Recording(tmp_path, rate=0.0)
    with pytest.raises(MissingError, match="parameter 'bag' is empty"):
        Recording("", only=["/task"])
    with pytest.raises(MissingError, match="no rosbag2 recording"):
        Recording(tmp_path, only=["/task"])


# Bridge


class Belt:
    """A world on a belt: every step moves it by the action, or along the path."""

    def open(self, suite: str, task: int) -> Belt:
        self.outcome = {"score": 0.0}
        return self

    step_s, instructions, over = 0.1, ("go on",), True

    def start(self, state: int, seed: int) -> Observation:
        self.over, self.steps, self.x, self.moves, self.seed = False, 0, 0.0, [], seed
        return self.observe()

    def observe(self) -> Observation:
        frame = np.full((4, 6, 3), int(self.x) % 256, np.uint8)
        return Observation({"front": frame}, "go on", np.array([self.x], np.float32))

    def move(self, move) -> None:
        self.moves.append(move)
        self.steps += 1
        self.x += float(move.action[0])
        self.over = self.steps >= 5
        self.outcome = {"score": self.x, "collision_s": None}

    def guide(self, driver: str) -> Observation:
        self.steps, self.x = self.steps + 1, self.x + 10.0
        return self.observe()

    def close(self) -> None:
        self.over = True


def bridge(**options) -> Bridge:
    return Bridge("tests.ros.test_nodes_besides:Belt", {}, "belt", 0, **options)


def path(stamp_s: float, x: tuple[float, ...]) -> object:
    poses = [{"pose": {"position": {"x": v}}} for v in x]
    fields = {"header": {"stamp": {"sec": int(stamp_s), "nanosec": round(stamp_s % 1 * 1e9)}}}
    return wire.make("nav_msgs/msg/Path", fields | {"poses": poses})


def test_a_simulated_robot_shows_itself_and_follows() -> None:
    robot = bridge()
    shown = robot.start()
    assert wire.make(IMAGE, shown.images["front"]).header.stamp.sec == 1
    robot.step()
    assert robot.episodes.moves == []  # no command came yet: the world waits, time does not
    assert robot.time_s == pytest.approx(1.1)
    robot.put_path(path(1.0, (3.0, 6.0, 7.0)))
    shown = robot.step()
    assert shown.state["data"] == [3.0]
    assert shown.clock["clock"] == {"sec": 1, "nanosec": 200_000_000}
    move = robot.episodes.moves[0]
    np.testing.assert_array_equal(move.path, [[3, 0], [3, 0], [1, 0]])
    assert move.elapsed_s == pytest.approx(0.1)
    assert move.fresh
    robot.step()
    assert not robot.episodes.moves[1].fresh


def test_episodes_follow_each_other_and_time_never_goes_back() -> None:
    robot = bridge()
    robot.start()
    robot.put_action(chunk(1.0, [[2.0, 0.0]]))
    times = []
    while not robot.over:
        shown = robot.step()
        times.append(shown.time_s)
    assert shown.outcome == {"score": 10.0, "collision_s": None}
    assert shown.told == "score 10, collision_s -"
    again = robot.start()
    assert again.time_s > times[-1]  # a camera takes no second frame of one stamp
    assert robot.episodes.seed == 1
    assert again.state["data"] == [0.0]


def test_a_replay_is_moved_by_its_driver_alone() -> None:
    robot = bridge(driver="expert")
    robot.start()
    robot.put_action(chunk(1.0, [[2.0, 0.0]]))
    assert robot.step().state["data"] == [10.0]


def test_a_command_of_the_episode_before_moves_nothing() -> None:
    robot = bridge()
    robot.start()
    robot.put_path(path(1.0, (3.0,)))
    while not robot.over:
        robot.step()
    robot.start()
    robot.put_path(path(1.0, (3.0,)))
    assert "the episode before" in robot.refused
    assert robot.step().state["data"] == [0.0]
    robot.put_path(path(robot.time_s, (3.0,)))
    assert robot.step().state["data"] == [3.0]


def test_values_that_are_no_rows_move_nothing() -> None:
    robot = bridge()
    robot.start()
    for rows in (0, 3):
        message = chunk(1.0, [[2.0, 0.0]])
        message.horizon = rows
        robot.put_action(message)
        assert f"2 values came for {rows} rows" in robot.refused


def test_a_command_that_is_nan_moves_nothing() -> None:
    robot = bridge()
    robot.start()
    robot.put_path(path(1.0, (float("nan"),)))
    assert "not finite" in robot.refused
    robot.step()
    assert robot.episodes.moves == []


def belt_contract(**changes) -> dict:
    """Of the belt: one camera, one number, one action."""
    camera = {"key": "images.front", "topic": "front", "type": IMAGE}
    place = {"key": "state", "topic": "state", "type": "std_msgs/msg/Float64MultiArray"}
    return {
        "rate_hz": 10,
        "observations": [
            camera | changes.get("camera", {}),
            place | {"selector": {"names": ["data.0"]}} | changes.get("state", {}),
        ],
        "actions": [
            {"publish": {"topic": "move", "type": CHUNK}, "selector": {"names": ["x", "y"]}}
        ],
    }


def shows(**changes) -> Contract:
    """The same, read."""
    return read_contract(belt_contract(**changes), "belt.yaml")


def test_a_contract_of_what_the_world_shows_is_taken_and_the_world_is_as_new() -> None:
    robot = bridge(driver="expert")
    robot.check(shows())
    assert robot.start().state["data"] == [0.0]
    assert (robot.time_s, robot.episodes.seed) == (1.0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera": {"key": "images.frnt"}}, "belt.yaml: .* 'frnt' is unknown; did you mean 'fro"),
        (
            {"camera": {"type": "sensor_msgs/msg/CompressedImage"}},
            "camera 'front' as sensor_msgs/msg/CompressedImage, a simulator sends",
        ),
        (
            {"state": {"selector": {"names": ["data.0", "data.1"]}}},
            "data.1 of the state, of which this world has 1 numbers",
        ),
        (
            {
                "state": {
                    "type": "sensor_msgs/msg/JointState",
                    "selector": {"names": ["position.a"]},
                }
            },
            "the state as sensor_msgs/msg/JointState, a simulator sends std_msgs/msg/Float",
        ),
    ],
)
def test_a_contract_of_what_the_world_does_not_show_is_refused(
    changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bridge().check(shows(**changes))


def test_a_driver_that_takes_several_steps_at_a_time_is_refused() -> None:
    """Its replay would run that much faster than its time."""
    robot = bridge(driver="expert")
    guide = robot.episodes.guide
    robot.episodes.guide = lambda driver: [guide(driver) for _ in range(5)][-1]
    with pytest.raises(
        ConfigError, match="'driver': 'expert' moves the world by 5 steps at a tim"
    ):
        robot.check(shows())


def test_a_world_moves_at_every_step_of_a_replay(tmp_path: Path) -> None:
    """As world.launch.py starts it, but for the pictures' size."""
    options = {"root": None, "folder": str(tmp_path), "scenes": 1, "square": 32, "plan_steps": 1}
    robot = Bridge(WORLD, options, "drive", 0, driver="rule_expert")
    robot.check(load_contract("vehicle"))
    robot.start()
    robot.step()
    before = robot.episodes.steps
    robot.step()
    assert robot.episodes.steps == before + 1
    with pytest.raises(ConfigError, match=r"driver 'expert' is unknown; .*rule_expert"):
        Bridge(WORLD, options, "drive", 0, driver="expert").check(load_contract("vehicle"))


WORLD = "vla_prune_sim.drive.world:DriveWorld"


@pytest.mark.parametrize(
    ("world", "options", "message"),
    [
        ("DriveWorld", "{}", "parameter 'world': 'DriveWorld' names no class"),
        (
            "vla_prune_sim.drive.world:Drive",
            "{}",
            "parameter 'world': .* has no attribute 'Drive'",
        ),
        ("vla_prune_sim.fly:World", "{}", "parameter 'world': .*No module named"),
        ("tests.ros.test_nodes_besides:Belt", "{length: 3}", "parameter 'options': .* takes no"),
        ("tests.ros.test_nodes_besides:Belt", "[3]", "parameter 'options': .* a mapping"),
        ("tests.ros.test_nodes_besides:Belt", "{a: ", "parameter 'options': .* cannot be read"),
    ],
)
def test_a_world_that_cannot_be_opened_is_named(world: str, options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bridge(world, read_options(options), "belt", 0)


# Bring-up


class Slow:
    """A life-cycle node that needs some seconds for each transition, and may lose messages."""

    def __init__(
        self,
        name: str,
        clock: ManualClock,
        needs_s: float = 0.0,
        mute: bool = False,
        dead: bool = False,
        lost: int = 0,
    ):
        self.name, self.clock, self.needs_s, self.mute, self.dead = (
            name,
            clock,
            needs_s,
            mute,
            dead,
        )
        self.lost, self.label, self.asked = lost, "unconfigured", 0
        self.ready_s, self.next = 0.0, ""

    def change(self, transition: str, timeout_s: float) -> bool | None:
        if self.dead or self.lost > 0:
            self.lost -= 1
            self.clock.advance(timeout_s)
            return None
        if self.settle() != TRANSITIONS[transition][0]:
            return False
        self.asked += 1
        self.ready_s = self.clock.steady() + self.needs_s
        _, self.label, self.next = TRANSITIONS[transition]
        if self.mute or self.needs_s > timeout_s:
            self.clock.advance(timeout_s)
            return None
        self.clock.advance(self.needs_s)
        return True

    def settle(self) -> str:
        if self.next and self.clock.steady() >= self.ready_s - 1e-9:
            self.label, self.next = self.next, ""
        return self.label

    def state(self, timeout_s: float) -> str | None:
        if self.dead:
            self.clock.advance(timeout_s)
            return None
        return self.settle()


class Waits(ManualClock):
    """A clock that a bring-up may wait on."""

    def wait(self, seconds: float) -> None:
        self.advance(seconds)

    def now(self) -> float:
        return self.steady()


def test_all_become_active_in_order_though_replies_get_lost() -> None:
    said: list[str] = []
    clock = Waits(START_S)
    peers = [Slow("a", clock), Slow("b", clock, needs_s=9.0, mute=True)]
    assert bring_up(peers, 10.0, said.append, clock) == ""
    assert said == ["a is inactive.", "b is inactive.", "a is active.", "b is active."]
    assert [peer.asked for peer in peers] == [2, 2]


def test_a_request_that_went_to_a_dead_process_is_sent_again() -> None:
    clock = Waits(START_S)
    peer = Slow("policy_node", clock, needs_s=20.0, lost=2)
    assert bring_up([peer], 60.0, clock=clock) == ""
    assert peer.asked == 2  # once for each transition


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dead": True}, "b did not answer 'configure' within 10 s and tells no state"),
        ({"needs_s": 60.0}, "b did not finish 'configure' within 10 s and is still configuring"),
    ],
)
def test_who_hangs_is_said(options: dict, message: str) -> None:
    clock = Waits(START_S)
    begun = clock.now()
    failed = bring_up([Slow("a", clock), Slow("b", clock, **options)], 10.0, clock=clock)
    assert message in failed
    assert clock.now() - begun <= 20.0


def test_a_refusal_is_not_taken_for_a_hang() -> None:
    class Refuses(Slow):
        def change(self, transition: str, timeout_s: float) -> bool:
            return False

    clock = Waits(START_S)
    failed = bring_up([Refuses("a", clock)], 10.0, clock=clock)
    assert "a refused 'configure' and is unconfigured" in failed


# Assembly

TINY = """
adapter: openvla
weights: random
config:
  towers: [{kind: conv, image_size: 48, patch_size: 12, hidden_size: 16, layers: 1, heads: 2}]
  llm: {vocab_size: 320, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2,
        num_attention_heads: 4, pad_token_id: 0}
  views: [CAM_FRONT_LEFT, CAM_FRONT, CAM_FRONT_RIGHT]
  form: oft
  chunk: 6
  slots_per_step: 1
  action_dim: 2
  proprio_dim: 10
  action_vocab: 300
  learned_slots: true
  shifted_read: false
dt_s: 0.5
device: cpu
"""


def parameters(tmp_path: Path, **changes) -> dict:
    (tmp_path / "tiny.yaml").write_text(TINY)
    given = {"policy": str(tmp_path / "tiny.yaml"), "contract": "vehicle", "warmup_calls": 1}
    return params.defaults("policy_node") | given | {"recipe": "divprune"} | changes


def test_parameters_become_a_warm_policy_and_a_command_loop(tmp_path: Path) -> None:
    clock = ManualClock(START_S)
    with ExitStack() as stack:
        values = parameters(tmp_path)
        model = assemble.open_model(values, stack)
        assert (model.keep, model.state_dim, model.actions) == ((1.0, 0.5, 0.25, 0.125), 10, 2)
        loop = assemble.policy_loop(values, clock, model)
        assert loop.health.keep_ratio == 0.25
        for camera in ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"):
            loop.senses.put_image(camera, image(clock.now()))
        state = wire.make("std_msgs/msg/Float64MultiArray", {"data": np.zeros(10)})
        loop.senses.put_state(loop.senses.contract.states[0], state)
        message = wire.make(CHUNK, loop.turn())
    values = params.defaults("command_node") | {"contract": "vehicle", "execute": 6}
    commander = assemble.command_loop(values, clock)
    assert commander.put_chunk(message) == ""
    made = commander.tick()
    assert made.source == "chunk"
    assert set(made.messages) == {"plan"}


def test_a_replay_at_ten_times_the_speed_is_no_jump_of_the_clock(tmp_path: Path) -> None:
    clock = ManualClock(START_S)
    with ExitStack() as stack:
        values = parameters(tmp_path, buckets=[0.25], clock_rate=10.0)
        model = assemble.open_model(values, stack)
        loops = [
            make(values, clock, model)
            for make in (assemble.policy_loop, assemble.pruner_loop, assemble.token_loop)
        ]
        command = params.defaults("command_node") | {"contract": "vehicle", "clock_rate": 10.0}
        loops.append(assemble.command_loop(command, clock))
        watches = [getattr(loop, "senses", loop).watch for loop in loops]
        for _ in range(3):
            assert [watch.check(clock) for watch in watches] == [None] * 4
            clock.advance(0.5)
            clock.jump(clock.now() + 4.5)  # a load pause of half a second
        clock.jump(START_S)
        assert None not in [watch.check(clock) for watch in watches]


def refused(values: dict) -> str:
    """Why a policy node cannot be configured so."""
    with ExitStack() as stack, pytest.raises(VlaPruneError) as caught:
        assemble.policy_loop(values, ManualClock(), assemble.open_model(values, stack))
    return str(caught.value)


@pytest.mark.parametrize("change", [{"instruction": "go"}, {"deadline_ms": 50.0}])
def test_what_the_policys_half_cannot_follow_is_refused(tmp_path: Path, change: dict) -> None:
    assert "input 'tokens'" in refused(parameters(tmp_path, input="tokens", **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract": "vehicel"}, "parameter 'contract': .* did you mean 'vehicle'"),
        ({"recipe": "fastw"}, "parameter 'recipe': .* did you mean 'fastv'"),
        ({"keep_ratio": 0.01}, "parameter 'keep_ratio': .* no bucket at or below"),
        ({"deadline_ms": 50.0}, "parameter 'deadline_ms': there is no controller"),
        ({"controller": "tuned.yaml", "input": "tokens"}, "parameter 'controller' needs input"),
        ({"controller": "nowhere.yaml"}, "parameter 'controller': nowhere.yaml: no such config"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_loaded(
    tmp_path: Path, change: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "build_adapter", pytest.fail)
    assert re.search(message, refused(parameters(tmp_path, **change)))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("site: decoder.3, scorers: [], selector: maxmin", "has no site 'decoder.3'; it has"),
        ("site: projector, scorers: [], selector: topk", "works with 1 to"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(tmp_path: Path, cut: str, message: str) -> None:
    budget = "budget: {name: constant, keep_ratio: 0.5}"
    (tmp_path / "recipe.yaml").write_text(f"name: r\ncuts: [{{{cut}, {budget}}}]\n")
    told = refused(parameters(tmp_path, recipe=str(tmp_path / "recipe.yaml")))
    assert told.startswith("parameter 'recipe': ")
    assert message in told


WARMING = """
name: warming
cuts:
  - site: decoder.1
    scorers: [{name: semantic, rows: last}]
    selector: topk
    budget: {name: constant, keep_ratio: 0.25}
history: {window: 3, warmup: true, refresh: 3}
"""


def test_a_warm_up_cuts_although_the_history_fills_first(tmp_path: Path) -> None:
    """Of four calls and more, three fill the history and one looks at everything again."""
    (tmp_path / "recipe.yaml").write_text(WARMING)
    values = parameters(tmp_path, recipe=str(tmp_path / "recipe.yaml"), buckets=[0.25])
    with ExitStack() as stack:
        policy = assemble.open_model(values, stack).policy
        chunk = assemble._warm(policy, 0, 1)
    assert list(chunk.kept) == ["decoder.1"]


CONTROLLER = """
controller:
  buckets: [1.0, 0.25]
  latency_s: [0.02, 0.01]
  period_s: 0.1
"""


@pytest.mark.parametrize(
    ("more", "deadline_ms", "message"),
    [
        (
            "motion_numbers: [0, 2]",
            0.0,
            "motion_numbers names 2, the policy's actions have 0 to 1",
        ),
        ("disagreement: [0.1, 0.9]", 0.0, "it reads disagreement, which recipe and policy do not"),
        ("motion: [0.1, 0.9]", 5.0, "parameter 'deadline_ms': controller: the period is 0.005 s"),
    ],
)
def test_a_controller_of_another_policy_is_refused(
    tmp_path: Path, more: str, deadline_ms: float, message: str
) -> None:
    (tmp_path / "tuned.yaml").write_text(f"{CONTROLLER}  {more}\n")
    given = {"controller": str(tmp_path / "tuned.yaml"), "deadline_ms": deadline_ms}
    assert message in refused(parameters(tmp_path, **given))


def test_a_camera_that_the_policy_does_not_see_says_nothing_of_its_tokens(tmp_path: Path) -> None:
    contract = config.load("vehicle", kind="ros")
    rear = {"key": "observation.images.CAM_BACK", "topic": "rear", "type": IMAGE}
    contract["observations"].append(rear | {"align": {"max_age_ms": 10}})
    config.save(contract, tmp_path / "rear.yaml")
    values = parameters(tmp_path, contract=str(tmp_path / "rear.yaml"), buckets=[0.25])
    with ExitStack() as stack:
        model = assemble.open_model(values, stack)
        loop = assemble.token_loop(values, ManualClock(START_S), model)
    assert loop.slot.max_age_s == 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contract": "vehicel"}, "parameter 'contract': .* did you mean 'vehicle'"),
        ({"align": "arrival"}, "parameter 'align' is 'arrival', and vehicle sends a nav_msgs"),
        ({"join": "blend"}, "parameter 'join' is 'blend', and vehicle sends a nav_msgs/msg/Path"),
    ],
)
def test_what_does_not_fit_the_commands_is_refused(change: dict, message: str) -> None:
    values = params.defaults("command_node") | {"contract": "vehicle"} | change
    with pytest.raises(ConfigError, match=message):
        assemble.command_loop(values, ManualClock())
    if "contract" not in change:
        assemble.command_loop(values | {"contract": "arm"}, ManualClock())


@pytest.mark.parametrize(("recipe", "told"), [("divprune", 0), ("fastv", 1)])
def test_a_pruner_that_saves_no_bytes_says_so(
    recipe: str, told: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = parameters(tmp_path, recipe=recipe)
    with ExitStack() as stack:
        model = assemble.open_model(values | {"recipe": "divprune"}, stack)
        if told:  # as if cut in the decoder alone, for which the tiny one is too short
            monkeypatch.setattr(assemble, "PROJECTOR", "elsewhere")
        loop = assemble.pruner_loop(values, ManualClock(START_S), model)
    notes = [note for note in loop.health.notes if "nothing at the projector" in note]
    assert len(notes) == told


FOREGROUND = """
name: by_foreground
cuts:
  - site: projector
    scorers: [{name: foreground, weights: random}]
    selector: topk
    budget: {name: shared, keep_ratio: 0.25, floor: 0.0}
"""


def test_the_reconstructor_is_part_of_what_both_halves_must_share(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(FOREGROUND)
    values = parameters(tmp_path, recipe=str(tmp_path / "recipe.yaml"), buckets=[0.5, 0.25])
    with ExitStack() as stack:
        model = assemble.open_model(values, stack)
        first = assemble.pruner_loop(values, ManualClock(START_S), model).side.hashes
        again = assemble.token_loop(values, ManualClock(START_S), model).side.hashes
        assert first == again
        assert first.reconstructor
        weight = next(model.policy.pruners[0].cuts[0].scorers[0].network.parameters())
        weight.data[0] += 1.0
        changed = assemble.token_loop(values, ManualClock(START_S), model).side.hashes
    assert changed.reconstructor != first.reconstructor
    assert changed.encoder == first.encoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": ""}, "parameter 'policy' is empty"),
        ({"policy": "pocket_libro_object"}, "did you mean 'pocket_libero_object'"),
        ({"buckets": [0.0]}, "give keep ratios"),
        ({"contract": "arm"}, "did you mean|camera 'CAM_FRONT_LEFT' is unknown"),
        ({"keep_ratio": 0.01}, "no bucket at or below"),
    ],
)
def test_parameters_that_cannot_be_are_named(tmp_path: Path, change: dict, message: str) -> None:
    values = parameters(tmp_path, **change)
    with ExitStack() as stack, pytest.raises(ConfigError, match=message):
        assemble.policy_loop(values, ManualClock(), assemble.open_model(values, stack))
