"""The scripted expert solves an episode of either suite; how often is `main`'s to measure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vla_prune_sim.libero.expert import GOALS, Expert, main, solve
from vla_prune_sim.spans import numbers

from vla_prune.errors import MissingError


def test_states_are_given_as_spans():
    assert numbers("30-31,41", "expert") == [30, 31, 41]


@pytest.mark.libero
def test_it_solves_a_spatial_episode(open_env):
    env = open_env("libero_spatial", 2, images=False)
    success, steps = solve(env, 30)
    assert success
    assert steps < env.max_steps


@pytest.mark.libero
def test_it_solves_an_object_episode_and_says_so_in_json(capsys):
    main(["--suite", "libero_object", "--tasks", "0", "--states", "30"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["success"], result["episodes"], result["states"]) == (1, 1, [30])
    assert result["tasks"][0]["task"] == 0
    assert len(result["assets"]) == 16


@pytest.mark.libero
def test_its_actions_are_in_range_and_open_the_hand_first(open_env):
    env = open_env("libero_object", 0, images=False)
    env.reset(seed=0, options={"init": 0})
    action = Expert(env.scene(), env.goal[0][1], GOALS[env.suite]).act()
    assert env.action_space.contains(action.astype(np.float32))
    assert action[6] == -1


def test_the_command_says_what_is_missing_in_one_line(monkeypatch, capsys):
    def refuse(*_args, **_kwargs):
        raise MissingError("no assets.")

    monkeypatch.setattr("vla_prune_sim.libero.expert.LiberoEnv", refuse)
    with pytest.raises(SystemExit) as caught:
        main(["--suite", "libero_object"])
    assert caught.value.code == 2
    assert "no assets." in capsys.readouterr().err
