"""Time in a fake world, where everything can be counted by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from vla_prune_sim.realtime.config import Load, RealtimeConfig, Setting
from vla_prune_sim.realtime.latency import ProfileLatency, device_factor
from vla_prune_sim.realtime.loop import RealtimeLoop, Thought
from vla_prune_sim.realtime.move import Move

from vla_prune.errors import ConfigError
from vla_prune.types import ActionChunk, Observation

STEP = 0.1


@dataclass
class Counting:
    """A world that only counts its steps; what is seen is their number."""

    length: int = 20
    step_s: float = STEP
    steps: int = 0
    looks: list[int] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.steps >= self.length

    def observe(self) -> Observation:
        self.looks.append(self.steps)
        return Observation({}, "count", np.array([self.steps], np.float32))

    def move(self, move: Move) -> None:
        self.moves.append(move)
        self.steps += 1


def play(
    world: Counting, seconds: float | list[float], limit_s: float | None = None, **options
) -> tuple[RealtimeLoop, list[float]]:
    """Row ``i`` of a chunk says: seen at step ``n``, for step ``n + i``. Dense rows of 0.1 s."""
    given = {"period_s": 0.2, "execute": 2, "hold": {"name": "hold", "action": [-1.0]}}
    config = RealtimeConfig(**given | options)
    starts: list[float] = []

    def think(seen: Observation, now: float) -> Thought:
        cost = seconds if isinstance(seconds, float) else seconds[len(starts) % len(seconds)]
        starts.append(round(now, 6))
        rows = 100.0 * seen.state[0] + np.arange(8, dtype=np.float32)[:, None]
        return Thought(ActionChunk(rows.astype(np.float32), STEP, seen.stamp_s), cost)

    loop = RealtimeLoop(config, world, think, limit_s)
    loop.run(world.observe())
    return loop, starts


def played(world: Counting) -> list[int]:
    return [int(move.action[0]) for move in world.moves]


@pytest.mark.parametrize("mode", ["synchronous", "overlap", "asynchronous", "realtime_chunking"])
def test_without_latency_all_modes_replan_every_period_and_miss_nothing(mode: str) -> None:
    world = Counting(8)
    loop, starts = play(world, 0.0, mode=mode)
    assert starts == [0.0, 0.2, 0.4, 0.6]
    assert played(world) == [0, 1, 200, 201, 400, 401, 600, 601]
    told = loop.figures()
    assert (told["misses"], told["longest_miss_run"], told["stale_ratio"]) == (0, 0, 0.0)
    assert told["rate_hz"] == pytest.approx(10.0)
    assert told["age_p50_ms"] == pytest.approx(50.0)


def test_synchronous_waits_for_each_chunk_and_holds() -> None:
    """0.3 s of thinking, then 0.2 s of playing from row 0: two of five steps are fresh."""
    world = Counting(10)
    loop, starts = play(world, 0.3, align="arrival")
    assert starts == [0.0, 0.5]
    assert played(world) == [-1, -1, -1, 0, 1, -1, -1, -1, 500, 501]
    told = loop.figures()
    assert told["stale_ratio"] == pytest.approx(0.6)
    assert told["rate_hz"] == pytest.approx(4.0)
    # Each chunk is late, and the picture that was due 0.2 s after its own could not be taken.
    assert (told["misses"], told["releases"], told["longest_miss_run"]) == (4, 4, 4)
    # Row 0 is played at an age of 0.3 s, row 1 at 0.4 s; before the first chunk there is none.
    assert told["age_p50_ms"] >= 300.0


def test_a_gripper_or_a_chunk_may_go_on_while_it_waits() -> None:
    world = Counting(10)
    play(world, 0.3, hold={"name": "continue_chunk", "then": {"name": "hold", "action": [-1.0]}})
    # Aligned by time: the chunk of step 0 comes at step 3 and is played from row 3 on.
    assert played(world) == [-1, -1, -1, 3, 4, 5, 6, 7, 503, 504]


def test_the_newest_of_several_pictures_in_a_period_is_thought_about() -> None:
    """The camera runs at 10 Hz; with one picture a period the chunk would be 0.1 s older."""
    for camera, looks in ((0.1, [0, 3, 6, 9]), (None, [0, 2, 6, 8])):
        world = Counting(12)
        loop, starts = play(world, 0.3, mode="asynchronous", camera_s=camera, deadline_s=9.0)
        assert starts[:4] == [0.0, 0.3, 0.6, 0.9]
        assert [look for look in world.looks if look in looks] == looks
        # In every third period nothing can start, whatever the camera does.
        assert loop.figures()["misses"] == 2


@pytest.mark.parametrize("camera", [0.1, None])
@pytest.mark.parametrize("transport", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.19, 0.25, 0.3, 0.55, 1.0, 2.45])
def test_each_period_is_one_release_and_at_most_one_thought(
    camera: float | None, transport: float, seconds: float
) -> None:
    options = {"mode": "asynchronous", "camera_s": camera, "transport_s": transport}
    loop, starts = play(Counting(110), seconds, deadline_s=9.0, **options)
    told = loop.figures()
    # Left open are periods whose pictures wait or are on their way when the episode ends.
    assert 53 - transport / 0.2 <= told["releases"] <= 55
    assert told["misses"] == told["releases"] - len(starts)
    if seconds < 0.2:
        assert told["misses"] == 0
    else:
        assert told["misses"] == pytest.approx(told["releases"] * (1 - 0.2 / seconds), abs=2)


def test_a_camera_faster_than_the_period_makes_no_more_plans() -> None:
    world = Counting(12)
    _, starts = play(world, 0.05, mode="asynchronous", camera_s=0.1)
    assert starts == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert world.looks == [0, 2, 4, 6, 8, 10]


def test_periods_that_pass_while_a_call_goes_on_are_missed_whatever_the_camera_does() -> None:
    """0.25 s on periods of 0.2 s: every fifth goes by without a thought."""
    for camera in (0.1, None):
        loop, starts = play(
            Counting(100), 0.25, mode="asynchronous", camera_s=camera, deadline_s=9.0
        )
        assert (len(starts), loop.figures()["misses"]) == (40, 10)


def test_a_camera_slower_than_the_period_is_refused() -> None:
    for camera in (0.0, 0.3):
        with pytest.raises(ConfigError, match=f"camera_s is {camera:g} and period_s 0.2"):
            RealtimeConfig(0.2, 2, "brake", camera_s=camera)
    with pytest.raises(ConfigError, match=r"camera_s is 0\.15, and this world moves in steps of"):
        play(Counting(4), 0.0, mode="asynchronous", camera_s=0.15)


def test_overlap_hides_what_fits_into_the_chunk() -> None:
    world = Counting(12)
    loop, starts = play(world, 0.2, mode="overlap", lead=2)
    assert starts == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert played(world) == [-1, -1, 2, 3, 202, 203, 402, 403, 602, 603, 802, 803]
    assert loop.figures()["misses"] == 0
    assert loop.figures()["stale_ratio"] == pytest.approx(2 / 12)


def test_overlap_takes_no_more_pictures_than_the_period_allows() -> None:
    world = Counting(8)
    _, starts = play(world, 0.0, mode="overlap", lead=2)
    assert starts == [0.0, 0.2, 0.4, 0.6]
    assert played(world) == [0, 1, 200, 201, 400, 401, 600, 601]


def test_asynchronous_thinking_takes_the_newest_picture_and_never_pauses() -> None:
    """0.3 s on pictures every 0.2 s: half of the releases cannot be served."""
    world = Counting(20)
    loop, starts = play(world, 0.3, mode="asynchronous")
    # Free at 0.3: the picture of 0.2 waited 0.1 s. Free at 0.6: the one of 0.6 is there.
    assert starts == [0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8]
    # Pictures of 0.4, 1.0 and 1.6 are overwritten before anybody has time for them; undrawn.
    assert world.looks == [0, 2, 6, 8, 12, 14, 18]
    told = loop.figures()
    assert told["releases"] == 10
    assert told["misses"] == 10
    assert told["longest_miss_run"] == 10


def test_the_age_at_the_actuator_has_all_its_parts() -> None:
    """Transport 0.1, thinking 0.2, actuation 0.1: played 0.4 s after the picture."""
    world = Counting(12)
    options = {"transport_s": 0.1, "actuation_s": 0.1, "align": "observation", "period_s": 0.4}
    loop, starts = play(world, 0.2, mode="synchronous", **options)
    assert starts == [0.1, 0.7]
    assert played(world)[4:6] == [4, 5]
    fresh = [m for m in world.moves if m.action[0] >= 0]
    assert fresh[0].elapsed_s == pytest.approx(0.4)
    assert loop.figures()["misses"] == 0


def test_a_deadline_is_met_at_the_actuator() -> None:
    """0.1 s of thinking meet 0.25 s, and with 0.2 s behind them they do not."""
    for actuation, missed in ((0.1, 0), (0.2, 3)):
        options = {"actuation_s": actuation, "deadline_s": 0.25, "period_s": 0.4}
        loop, starts = play(Counting(12), 0.1, mode="asynchronous", **options)
        assert (len(starts), loop.figures()["misses"]) == (3, missed)


def test_realtime_chunking_switches_when_it_said_it_would() -> None:
    """Ready after 0.1 s, but three rows were frozen: the new chunk begins with its row 3."""
    world = Counting(12)
    play(world, 0.1, mode="realtime_chunking", prefix=3, period_s=0.4, execute=4)
    # The first one has nothing to honour.
    assert played(world) == [-1, 1, 2, 3, 4, -1, -1, 403, 404, 405, 406, 803]


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_realtime_chunking_plays_every_chunk_however_long_its_prefix(seconds: float) -> None:
    """A prefix of two periods: two chunks wait at a time, and a faster policy loses none."""
    world = Counting(20)
    loop, _ = play(world, seconds, mode="realtime_chunking", prefix=4, execute=8)
    known = played(world)[4:]
    assert min(known) >= 0
    assert loop.figures()["stale_ratio"] <= 0.2
    if seconds <= 0.2:
        assert loop.player.switches == 7  # pictures of 0.2 to 1.4 s take over at 0.6 to 1.8 s
        assert known[2::2][:3] == [204, 404, 604]


@pytest.mark.parametrize("mode", ["synchronous", "overlap", "asynchronous", "realtime_chunking"])
def test_a_slower_policy_misses_no_smaller_share_in_any_mode(mode: str) -> None:
    rates = []
    for seconds in (0.05, 0.15, 0.35, 0.5, 1.0, 2.4):
        options = {"period_s": 0.1, "deadline_s": 0.2, "mode": mode, "execute": 8, "prefix": 0}
        loop, _ = play(Counting(60), seconds, **options, lead=8 * (mode == "overlap"))
        rates.append(loop.figures()["miss_rate"])
    assert rates == sorted(rates)
    assert rates[0] == 0.0 < rates[1]
    assert rates[-1] == 1.0


def test_a_picture_that_could_not_be_taken_is_a_miss_in_waiting_modes_too() -> None:
    """0.35 s on a period of 0.1 s: the pictures of 0.1, 0.2 and 0.3 s are wanted and missed."""
    for seconds, missed in ((0.1, 0), (0.2, 1), (0.3, 2)):
        loop, starts = play(
            Counting(30), seconds, mode="overlap", lead=2, period_s=0.1, deadline_s=0.3
        )
        told = loop.figures()
        assert told["misses"] == missed * len(starts)
        assert told["releases"] == (missed + 1) * len(starts)


def test_a_hold_of_another_machine_ends_the_run_at_the_first_chunk() -> None:
    with pytest.raises(ConfigError, match="realtime: hold: the hold action has 2 numbers"):
        play(Counting(10), 0.0, hold={"name": "hold", "action": [0.0, 0.0]})


def test_chunks_that_are_refused_are_counted_apart_from_late_ones_with_the_reason() -> None:
    world, config = Counting(8), RealtimeConfig(0.2, 2, {"name": "hold", "action": [-1.0]})
    values = iter((0.0, np.nan, 0.0, np.nan))

    def think(seen: Observation, now: float) -> Thought:
        return Thought(ActionChunk(np.full((8, 1), next(values), np.float32), STEP, now), 0.0)

    loop = RealtimeLoop(config, world, think)
    loop.run(world.observe())
    told = loop.figures()
    assert (told["refused"], told["too_late"]) == (2, 0)
    assert "NaN or infinite" in told["refused_because"]


def test_what_comes_between_two_steps_is_felt_at_the_next() -> None:
    world = Counting(4)
    play(world, 0.15)
    assert played(world) == [-1, -1, 2, 3]


def test_a_chunk_that_is_late_for_all_of_its_rows_is_not_played() -> None:
    world = Counting(20)
    loop, _ = play(world, 0.9)
    assert played(world) == [-1] * 20
    assert loop.figures()["too_late"] == 2
    assert loop.figures()["rate_hz"] == 0.0


def test_rows_beyond_the_age_limit_are_not_played() -> None:
    world = Counting(10)
    hold = {"name": "continue_chunk", "then": {"name": "hold", "action": [-1.0]}}
    play(world, [0.0, 0.9], hold=hold, max_age_s=0.4)
    assert played(world) == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
def test_a_picture_that_comes_too_old_is_a_miss(mode: str) -> None:
    """On its way for 0.3 s, and none is thought about beyond 0.25 s."""
    loop, starts = play(Counting(10), 0.0, transport_s=0.3, max_age_s=0.25, mode=mode)
    assert starts == []
    told = loop.figures()
    # Waiting modes also miss the picture that is due while the lost one is on its way.
    per_picture = 2 if mode == "synchronous" else 1
    assert told["misses"] == told["releases"] == per_picture * loop.slot.drops.too_old > 0
    assert told["miss_rate"] == 1.0


def test_handed_over_with_the_first_chunk() -> None:
    world = Counting(4)
    _, starts = play(world, 0.1, handover=True, transport_s=0.1)
    assert starts[0] == 0.0
    assert played(world)[:2] == [0, 1]


def test_a_limit_ends_the_episode() -> None:
    world = Counting(100)
    loop, _ = play(world, 0.0, limit_s=0.5)
    assert world.steps == 5
    assert loop.now_s == pytest.approx(0.5)


def test_a_path_is_handed_on_whole_and_once() -> None:
    """Worlds of plans look ahead on all rows; they are told when the path is another one."""
    world = Counting(4)
    play(world, 0.0)
    assert [move.fresh for move in world.moves] == [True, False, True, False]
    assert world.moves[1].path.shape == (8, 1)
    assert [move.elapsed_s for move in world.moves] == pytest.approx([0.0, 0.1, 0.0, 0.1])


def test_the_same_seed_draws_the_same_latencies() -> None:
    rounds = {16: np.linspace(0.1, 0.3, 7), 4: np.linspace(0.01, 0.03, 7)}

    def drawn(seed: int, tokens: int = 16, setting: Setting | None = None) -> list[float]:
        setting = setting or Setting()
        factor = device_factor(rounds[16], setting, 0.2)
        made = ProfileLatency(rounds, factor, setting.load, [seed])
        return [made.seconds(tokens, 0.1 * i, 9.9) for i in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    # The same rounds in every bucket, and one constant on all of them.
    np.testing.assert_allclose(drawn(1, 4), np.array(drawn(1)) / 10)
    slow = drawn(1, setting=Setting(dense_periods=2.5))
    np.testing.assert_allclose(slow, np.array(drawn(1)) * 2.5 * 0.2 / 0.2)
    with pytest.raises(ConfigError, match=r"kept 9 tokens.*has buckets of 4, 16; profile that"):
        drawn(1, tokens=9)


def test_loads_rise_and_fall() -> None:
    step = Load(step_at_s=1.0, step_until_s=2.0, step=3.0)
    assert [step.factor(t) for t in (0.9, 1.0, 1.9, 2.0)] == [1.0, 3.0, 3.0, 1.0]
    drift = Load(drift_tau_s=2.0, drift=1.5)
    assert drift.factor(0.0) == 1.0
    assert drift.factor(2.0) == pytest.approx(1.0 + 0.5 * (1 - np.exp(-1)))
    assert drift.factor(1e3) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "asynch"}, "mode 'asynch' is unknown; did you mean 'asynchronous'"),
        ({"period_s": 0.25}, "moves in steps of 0.1 s; give a multiple"),
        ({"period_s": 0.0}, "all are above 0"),
        ({"transport_s": -0.1}, "would make the clock go backwards"),
        ({"hold": {"name": "stop"}}, "rule 'stop' is unknown"),
        ({"lead": 3}, "lead is 0 to execute"),
        ({"deadline_s": 0.0}, "deadline_s is 0; give more than 0, or leave it out"),
        ({"deadline_s": -0.1}, "deadline_s is -0.1"),
        ({"latency": "profile"}, "a profile goes with latency 'profile'"),
        ({"ladder": [0.5, 1.0]}, "the largest first"),
        ({"ladder": []}, "the largest first"),
        ({"settings": {"a": {"dense_periods": 2.0}}}, "dense_periods needs latency 'profile'"),
        ({"settings": {"a": {"load": {"step_at_s": 2.0, "step_until_s": 1.0}}}}, "in order"),
        ({"settings": {"a": {"factor": 0.0}}}, "give more than 0"),
        ({"settings": {"a": {"fctor": 1.0}}}, "did you mean 'factor'"),
        ({"settings": {"a": {"factor": "3x"}}}, "factor is '3x'; it takes a number"),
        ({"settings": {"a": 2.0}}, "settings.a: 2.0 is no mapping"),
        ({"settings": {"a": {"load": 2.0}}}, "load: 2.0 is no mapping"),
        ({"settings": {"a": {"factor": 3.0, "dense_periods": 2.5}}}, "give one of them"),
        ({"settings": {"a": {"factor": 3.0}}}, "latency is 'none'; take latency 'profile'"),
        ({"prefix": 2}, "prefix 2 does nothing in mode 'synchronous'"),
        ({"lead": 1, "mode": "asynchronous"}, "lead 1 does nothing in mode 'asynchronous'"),
        ({"transport_s": np.inf}, "transport_s inf"),
        ({"actuation_s": np.nan}, "actuation_s nan"),
        ({"period_s": np.inf}, "the period is finite"),
        ({"commit": "maybe"}, "commit is warn, refuse or ignore"),
        ({"seed": -1}, "the seed 0 or more"),
        ({"charged_as": {"grid": "dual_level"}}, "names recipes of a profile, and latency is"),
        ({"controller": {"patiense": 1}}, "did you mean 'patience'"),
        ({"controller": {"patience": "4"}}, "patience is '4'; it takes a whole number"),
        ({"controller": {"patience": 0}}, "all are at least 1"),
        ({"controller": {"easy": 9}}, "easy is rung 9; there are 0 to 4"),
        ({"controller": {"percentile": "p99"}}, "percentile 'p99'; give a number from 0 to 100"),
        ({"controller": {"period_s": 1.0}}, "period_s follows from ladder"),
    ],
)
def test_mistakes_are_named(given: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        play(Counting(1), 0.0, **given)


@pytest.mark.parametrize("limit", [-5.0, np.nan, np.inf])
def test_a_limit_that_is_no_time_is_refused(limit: float) -> None:
    with pytest.raises(ConfigError, match="limit_s: drive is over after"):
        RealtimeConfig(0.2, 2, "brake", limit_s={"drive": limit})


def test_a_world_whose_clock_would_go_backwards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the world's step is -0\.1 s, so its clock would not"):
        play(Counting(1, step_s=-0.1), 0.0)


def test_handing_over_stops_what_is_played_and_what_comes() -> None:
    world, config = Counting(8), RealtimeConfig(0.2, 4, {"name": "hold", "action": [-1.0]})
    over = iter((False, True, False, False))

    def think(seen: Observation, now: float) -> Thought:
        rows = 100.0 * seen.state[0] + np.arange(8, dtype=np.float32)[:, None]
        return Thought(ActionChunk(rows.astype(np.float32), STEP, now), 0.0, next(over))

    config = replace(config, mode="asynchronous")
    RealtimeLoop(config, world, think).run(world.observe())
    assert played(world) == [0, 1, -1, -1, 400, 401, 600, 601]
