"""LIBERO as the rollout harness sees it."""

from __future__ import annotations

import numpy as np
import pytest
from vla_prune_sim.libero.world import LAYOUTS_FROM, LiberoWorld

from vla_prune.errors import ConfigError

pytestmark = pytest.mark.libero


def test_episodes_start_go_on_and_end():
    episodes = LiberoWorld(image_size=32, look="fast").open("libero_object", 0)
    try:
        shipped = episodes.start(30, seed=1)
        assert len(episodes.instructions) == 10
        assert shipped.instruction == episodes.instructions[0]
        assert {view: image.shape for view, image in shipped.images.items()} == {
            "agentview": (32, 32, 3),
            "wrist": (32, 32, 3),
        }
        later = episodes.advance(np.tile([1.0, 0, 0, 0, 0, 0, -1], (8, 1)))
        assert (episodes.steps, episodes.over) == (8, False)
        assert (later.images["agentview"] != shipped.images["agentview"]).any()

        layout = [episodes.start(LAYOUTS_FROM + 3, seed=1) for _ in range(2)]
        np.testing.assert_array_equal(layout[0].state, layout[1].state)
        assert layout[0].instruction == layout[1].instruction
        assert (layout[0].images["agentview"] != shipped.images["agentview"]).any()

        episodes.env.max_steps = 5
        episodes.advance(np.zeros((8, 7)))
        assert (episodes.over, episodes.outcome, episodes.steps) == (True, {"success": 0.0}, 5)
    finally:
        episodes.close()


def test_the_expert_can_sit_in_the_policys_place():
    episodes = LiberoWorld(image_size=16, look="fast").open("libero_object", 4)
    try:
        episodes.start(30, seed=0)
        while not episodes.over:
            episodes.guide("expert")
        assert episodes.outcome == {"success": 1.0}
        with pytest.raises(
            ConfigError, match="driver 'experts' is unknown; did you mean 'expert'"
        ):
            episodes.guide("experts")
    finally:
        episodes.close()
