"""What only OpenVLA has: shipped recipes' warm-up, units, images, mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.tiny import OFT
from vla_prune.adapters.openvla import OpenVLAAdapter, build, hashed_words
from vla_prune.build import build_recipe
from vla_prune.errors import ConfigError, ShapeError
from vla_prune.models import OpenVLA
from vla_prune.models.actions import Statistics
from vla_prune.policy import attach
from vla_prune.types import ActionChunk, Observation, PolicyState

DEEP = replace(OFT, llm=OFT.llm | {"num_hidden_layers": 5})
WORDS = ("pick up the bowl", "open the top drawer and put the red bowl inside", "push")


@pytest.fixture
def adapter() -> OpenVLAAdapter:
    torch.manual_seed(0)
    return OpenVLAAdapter(OpenVLA(DEEP), hashed_words)


def observations(adapter: OpenVLAAdapter) -> list[Observation]:
    rng = np.random.default_rng(3)
    made = []
    for seed, sentence in enumerate(WORDS):
        images = adapter.example_observation(seed).images
        state = rng.normal(size=5).astype(np.float32)
        made.append(Observation(images, sentence, state, float(seed)))
    return made


def run(
    adapter, recipe: str, keep: float | None, shown: list, calls: int = 1
) -> list[ActionChunk]:
    pruner = build_recipe(recipe, keep, cut_layer=2)
    with attach(pruner, adapter) as policy:
        states = [policy.new_state() for _ in shown]
        for _ in range(calls):
            chunks = policy.act(shown, states)
    return chunks


def test_the_paper_warms_up_dense_and_ours_does_not(adapter: OpenVLAAdapter):
    shown = observations(adapter)
    for recipe, first in (("vla_pruner", []), ("dual_level", ["decoder.2"])):
        assert [list(c.kept) for c in run(adapter, recipe, 0.25, shown, calls=3)] == [first] * 3
    assert list(run(adapter, "vla_pruner", 0.25, shown, calls=4)[0].kept) == ["decoder.2"]


def test_actions_come_in_physical_units_with_the_gripper_named():
    statistics = Statistics(
        {"x": {"action": {"q01": [0.0, -1.0], "q99": [10.0, 1.0], "mask": [True, False]},
               "proprio": {"q01": [-1.0] * 5, "q99": [1.0] * 5}}}
    )  # fmt: skip
    model = OpenVLA(DEEP, statistics)
    plain = OpenVLAAdapter(model, hashed_words)
    signed = OpenVLAAdapter(model, hashed_words, gripper="sign")
    shown = observations(plain)[:1]
    [a], [b] = run(plain, "dense", None, shown), run(signed, "dense", None, shown)
    assert np.abs(a.actions[:, 0] - 5.0).max() < 5.0
    assert set(np.unique(b.actions[:, 1])) <= {-1.0, 1.0}
    assert np.array_equal(np.sign(a.actions[:, 1]), b.actions[:, 1])
    with pytest.raises(ConfigError, match="gripper 'sing' is unknown; did you mean 'sign'"):
        OpenVLAAdapter(model, hashed_words, gripper="sing")


def test_bad_observations_get_one_sentence(adapter: OpenVLAAdapter):
    [good] = observations(adapter)[:1]
    image = good.images["image"]
    for shown, message in (
        (
            replace(good, images={"image": image}),
            "needs camera 'wrist'; the observation has image",
        ),
        (replace(good, images=good.images | {"image": image[0]}), r"image has shape \(28, 3\)"),
        (
            replace(good, images=good.images | {"image": image / 255.0}),
            "dtype float64; give uint8",
        ),
        (replace(good, images=good.images | {"image": image[:0]}), r"shape \(0, 28, 3\)"),
        (replace(good, state=np.zeros(4, np.float32)), "state has 4 entries, this policy takes 5"),
        (replace(good, state=None), "state has None entries"),
        (replace(good, instruction="word " * 3000), "the model takes 2048; shorten"),
    ):
        with (
            attach(build_recipe("dense"), adapter) as policy,
            pytest.raises(ShapeError, match=message),
        ):
            policy.act_one(shown, PolicyState())


def test_images_of_another_size_are_resized(adapter: OpenVLAAdapter):
    [good] = observations(adapter)[:1]
    large = {k: v.repeat(2, axis=0).repeat(2, axis=1) for k, v in good.images.items()}
    chunks = run(adapter, "dense", None, [replace(good, images=large)])
    assert chunks[0].actions.shape == (3, 2)


def test_random_weights_of_a_published_size_are_named_by_preset():
    with pytest.raises(ConfigError, match="did you mean 'openvla_7b'"):
        build({"weights": "random", "preset": "openvla_7B"})
    with pytest.raises(ConfigError, match="field 'wieghts' is unknown"):
        build({"wieghts": "random"})
