"""Driving while the policy thinks: no latency changes nothing, latency costs metres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from vla_prune_sim import rollout
from vla_prune_sim.drive import env as drive_env
from vla_prune_sim.drive import world as drive_world
from vla_prune_sim.drive.load import World
from vla_prune_sim.drive.scene import EGO_LENGTH, ego_centre
from vla_prune_sim.drive.simulation import Simulation
from vla_prune_sim.drive.world import DriveEpisodes
from vla_prune_sim.realtime.config import RealtimeConfig
from vla_prune_sim.realtime.loop import RealtimeLoop, Thought
from vla_prune_sim.realtime.move import Move

from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import ShapeError
from vla_prune.policy import attach
from vla_prune.types import ActionChunk, Observation

from .test_drive_env import POLICY
from .tiny_drive import CAR, SPEED_MPS, tiny_scene

pytest.importorskip("nuscenes")

SMALL = {"image_size": [64, 36], "square": 16}
ONE_VIEW = {"cameras": ["CAM_FRONT"]}
EVERY_HALF_SECOND = {"period_s": 0.5, "execute": 1, "hold": "brake"}
MODES = ("synchronous", "overlap", "asynchronous", "realtime_chunking")


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def street(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DriveEpisodes]:
    """Three seconds of the straight street, at 8 m/s, with nothing but some boxes on it."""

    def make(boxes: Sequence = (), **options) -> DriveEpisodes:
        world = World("tiny", ("tiny",), lambda name: tiny_scene(boxes, buildings=()))
        monkeypatch.setattr(drive_env, "open_world", lambda root: world)
        monkeypatch.setattr(drive_world, "count_scenes", lambda root: (1, "tiny"))
        return DriveEpisodes("tiny", 0, SMALL | options)

    return make


def driven(simulation: Simulation) -> np.ndarray:
    """Every bit of the ego and of the others."""
    rows = zip(simulation.record.bodies, simulation.record.others, strict=True)
    return np.stack(
        [np.concatenate([b.pose, [b.speed, b.accel, b.steer], o.pose.ravel()]) for b, o in rows]
    )


@pytest.mark.parametrize("mode", MODES)
def test_without_latency_it_is_the_frozen_rollout_bit_for_bit(
    street: Callable[..., DriveEpisodes], policy_file: Path, mode: str
) -> None:
    episodes = street([CAR])
    adapter = build_adapter(str(policy_file))
    pruner = build_recipe("dual_level", 0.25, cut_layer=2)
    with attach(pruner, adapter) as policy:
        state, seen = policy.new_state(), episodes.start(0, 7)
        while not episodes.over:
            seen = episodes.advance(policy.act_one(seen, state).actions)
        frozen, outcome = driven(episodes.env.simulation), episodes.outcome

        again = policy.new_state()
        config = RealtimeConfig(**EVERY_HALF_SECOND, mode=mode, handover=True)
        loop = RealtimeLoop(
            config, episodes, lambda picture, now: Thought(policy.act_one(picture, again), 0.0)
        )
        loop.run(episodes.start(0, 7))
    assert np.array_equal(driven(episodes.env.simulation), frozen)
    assert episodes.outcome == outcome
    assert again.tick == state.tick
    assert loop.figures()["misses"] == 0


def test_a_table_without_latency_has_the_frozen_tables_results(
    street: Callable[..., DriveEpisodes], policy_file: Path, tmp_path: Path
) -> None:
    street()
    config = rollout.RunConfig(
        world="drive",
        suites={"drive": {"policy": str(policy_file), "tasks": [0], "states": [0]}},
        rows=[{"recipe": "dense"}, {"driver": "stop"}],
        results=str(tmp_path / "frozen.json"),
        work=str(tmp_path / "frozen"),
        cut_layer=2,
        workers=1,
        sim={"root": "tiny", **SMALL},
    )
    frozen = rollout.run(config)
    moving = rollout.RunConfig(
        **{name: getattr(config, name) for name in config.__dataclass_fields__}
        | {"work": str(tmp_path / "moving"), "realtime": EVERY_HALF_SECOND}
    )
    again = rollout.run(moving)
    for before, after in zip(frozen, again, strict=True):
        assert (after["key"], after["outcome"]) == (before["key"], before["outcome"])
        assert (after["steps"], after.get("calls")) == (before["steps"], before.get("calls"))
    assert frozen[0]["mark"] != again[0]["mark"]


def braked(episodes: DriveEpisodes, seconds: float, seen_at: float = 0.5) -> Simulation:
    """A policy that drives on, and says to stand as soon as a picture of ``seen_at`` says so."""
    on = np.tile(np.array([[SPEED_MPS * 0.5, 0.0]], np.float32), (6, 1))

    def think(picture: Observation, now: float) -> Thought:
        rows = on if picture.stamp_s < seen_at - 1e-6 else np.zeros_like(on)
        return Thought(ActionChunk(rows, 0.5, picture.stamp_s), seconds)

    config = RealtimeConfig(
        period_s=0.1, execute=1, hold="continue_chunk", mode="asynchronous", handover=True
    )
    RealtimeLoop(config, episodes, think).run(episodes.start(0, 0))
    return episodes.env.simulation


def test_each_tenth_of_a_second_of_latency_is_eight_tenths_of_a_metre(street) -> None:
    episodes = street(**ONE_VIEW)
    stopped = {}
    for seconds in (0.0, 0.1, 0.2, 0.4):
        simulation = braked(episodes, seconds)
        assert simulation.body.speed < 0.1
        stopped[seconds] = simulation.body.pose[0] - stopped.get(0.0, 0.0)
    for seconds in (0.1, 0.2, 0.4):
        # Whether a plan brakes hard is seen against the speed at which it was made.
        assert stopped[seconds] == pytest.approx(seconds * SPEED_MPS, abs=0.02)


def test_who_thinks_too_long_hits_what_stands_there(street) -> None:
    free = braked(street(**ONE_VIEW), 0.0).body.pose
    bumper = ego_centre(free)[0] + EGO_LENGTH / 2
    # Two metres are left when there is no latency; 0.4 s are 3.2 m.
    episodes = street([(CAR[0], CAR[1], (bumper + 2.0 + CAR[1][0] / 2, 0.0, 0.0))], **ONE_VIEW)
    assert braked(episodes, 0.0).ended == "time"
    assert braked(episodes, 0.4).ended == "collision"


@pytest.mark.parametrize(("hold", "speed"), [("brake", 0.5), ("continue_chunk", SPEED_MPS)])
def test_the_hold_rule_drives_when_nothing_comes(street, hold: str, speed: float) -> None:
    """Half a second of the only plan, then 2.5 s at -3 m/s^2, or on along the plan."""
    episodes = street(**ONE_VIEW)
    on = np.tile(np.array([[SPEED_MPS * 0.5, 0.0]], np.float32), (6, 1))
    config = RealtimeConfig(period_s=0.5, execute=1, hold=hold, handover=True)
    calls = iter((0.0, 99.0))
    loop = RealtimeLoop(
        config,
        episodes,
        lambda seen, now: Thought(ActionChunk(on, 0.5, seen.stamp_s), next(calls)),
    )
    loop.run(episodes.start(0, 0))
    assert episodes.env.simulation.body.speed == pytest.approx(speed, abs=0.4)
    assert loop.figures()["stale_ratio"] == pytest.approx(25 / 30)


def test_a_path_that_is_not_finite_moves_nothing(street) -> None:
    """The player refuses it before it gets here; a world that is used without one does, too."""
    episodes = street(**ONE_VIEW)
    episodes.start(0, 0)
    with pytest.raises(ShapeError, match="the plan is not finite"):
        episodes.move(Move(None, np.full((6, 2), np.nan), 0.0, True))
