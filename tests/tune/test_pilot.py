"""A controller at work: what it is told, and the file that it comes from."""

from __future__ import annotations

import numpy as np
import pytest

from vla_prune.errors import ConfigError
from vla_prune.tune.controller import Controller, ControllerConfig
from vla_prune.tune.pilot import Pilot, read_controller
from vla_prune.types import ActionChunk

CONFIG = {"buckets": [1.0, 0.5, 0.25], "latency_s": [0.09, 0.06, 0.03], "period_s": 0.12}


def chunk(speed: float = 0.0, **signals: float) -> ActionChunk:
    actions = np.full((2, 1), speed, np.float32)
    return ActionChunk(actions, 0.1, 0.0, {"decoder.2": np.arange(4)}, signals=signals)


def test_a_load_leads_down_and_its_end_up_again() -> None:
    pilot = Pilot(Controller(ControllerConfig(**CONFIG)))
    rungs = []
    for cycle in range(60):
        load = 3.0 if 10 <= cycle < 25 else 1.0
        rung = pilot.choose(0.0).rung
        rungs.append(rung)
        pilot.learn(rung, load * CONFIG["latency_s"][rung], chunk())
    assert rungs[9] == 0
    assert rungs[24] == 2
    assert rungs[-1] == 0
    assert pilot.handed_over == 0


def test_a_call_that_was_refused_does_not_count_the_one_before_again() -> None:
    pilot = Pilot(Controller(ControllerConfig(**CONFIG)))
    pilot.learn(pilot.choose(0.0).rung, 0.5, chunk())  # one slow call, and then none that is told
    for _ in range(5):
        pilot.choose(0.0)
    assert list(pilot.state.loads) == pytest.approx([0.5 / 0.09])


@pytest.mark.parametrize("name", ["entropy", "disagreement"])
def test_an_easy_scene_runs_at_less_and_a_hard_one_at_all_there_is_time_for(name: str) -> None:
    config = ControllerConfig(**CONFIG, easy=2, **{name: (0.2, 0.8)})
    pilot = Pilot(Controller(config))
    assert pilot.reads_signals
    for value, last in ((0.1, 2), (0.9, 0)):
        for _ in range(40):
            rung = pilot.choose(0.0).rung
            pilot.learn(rung, CONFIG["latency_s"][rung], chunk(**{name: value}))
        assert rung == last


def test_motion_comes_from_the_first_row() -> None:
    pilot = Pilot(Controller(ControllerConfig(**CONFIG, easy=2, motion=(0.0, 1.0))))
    assert not pilot.reads_signals
    for _ in range(40):
        rung = pilot.choose(0.0).rung
        pilot.learn(rung, CONFIG["latency_s"][rung], chunk(speed=0.0))
    assert rung == 2


def test_a_standing_arm_with_a_closed_gripper_does_not_move() -> None:
    config = ControllerConfig(**CONFIG, easy=2, motion=(0.0, 0.5), motion_numbers=[0, 1])
    pilot = Pilot(Controller(config))
    still = ActionChunk(np.array([[0.0, 0.0, -1.0]]), 0.1, 0.0, {"decoder.2": np.arange(4)})
    for _ in range(40):
        rung = pilot.choose(0.0).rung
        pilot.learn(rung, CONFIG["latency_s"][rung], still)
    assert rung == 2


def test_the_period_can_change_and_come_back() -> None:
    pilot = Pilot(Controller(ControllerConfig(**CONFIG)))
    pilot.set_period(0.05)
    assert [pilot.choose(0.0).rung for _ in range(5)][-1] == 2
    with pytest.raises(ConfigError, match=r"the period is 0\.01 s, and the fastest bucket"):
        pilot.set_period(0.01)
    assert pilot.controller.config.period_s == 0.05
    pilot.set_period(0.0)
    assert pilot.controller.config.period_s == 0.12


def test_a_tuned_file_is_read_and_what_is_none_is_refused() -> None:
    assert read_controller("f", {"policy": "p", "controller": CONFIG}).config.period_s == 0.12
    assert read_controller("f", CONFIG).config.buckets == (1.0, 0.5, 0.25)
    with pytest.raises(ConfigError, match="f: there is no section 'controller'"):
        read_controller("f", {"policy": "p"})
    with pytest.raises(ConfigError, match="did you mean 'margin'"):
        read_controller("f", {"controller": {**CONFIG, "margn": 0.1}})
    for name, wrong, said in (
        ("period_s", "100ms", "it takes a number"),
        ("buckets", 0.5, "it takes a list of numbers"),
        ("buckets", ["a"], "it takes a list of numbers"),
        ("patience", "4", "it takes a whole number"),
        ("window", 4.0, "it takes a whole number"),
    ):
        with pytest.raises(ConfigError, match=f"f: controller: {name} is .*; {said}"):
            read_controller("f", {"controller": {**CONFIG, name: wrong}})
