"""The OpenVLA adapter, both forms: full budget, batches, warm-up, units, mistakes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.models.tiny import AUTOREGRESSIVE, OFT, POCKET
from vla_prune.adapters.openvla import OpenVLAAdapter, build, hashed_words
from vla_prune.build import build_recipe
from vla_prune.errors import ConfigError, ShapeError
from vla_prune.models import OpenVLA
from vla_prune.models.actions import Statistics
from vla_prune.policy import attach
from vla_prune.types import Observation, PolicyState

DEEP = {"num_hidden_layers": 5}
FORMS = {
    name: replace(config, llm=config.llm | DEEP)
    for name, config in (("autoregressive", AUTOREGRESSIVE), ("oft", OFT), ("pocket", POCKET))
}
RECIPES = ["fastv", "divprune", "vla_pruner", "dual_level", "random", "grid", "blind"]
WORDS = ("pick up the bowl", "open the top drawer and put the red bowl inside", "push")


def adapter_of(form: str) -> OpenVLAAdapter:
    torch.manual_seed(0)
    return OpenVLAAdapter(OpenVLA(FORMS[form]), hashed_words)


@pytest.fixture(params=FORMS)
def adapter(request: pytest.FixtureRequest) -> OpenVLAAdapter:
    return adapter_of(request.param)


def observations(adapter: OpenVLAAdapter, words=WORDS) -> list[Observation]:
    rng = np.random.default_rng(3)
    made = []
    for seed, sentence in enumerate(words):
        example = adapter.example_observation(seed)
        state = None if example.state is None else rng.normal(size=5).astype(np.float32)
        made.append(Observation(example.images, sentence, state, float(seed)))
    return made


def run(adapter, recipe: str, keep: float | None, shown: list, calls: int = 5):
    pruner = build_recipe(recipe, keep, cut_layer=2)
    with attach(pruner, adapter) as policy:
        states = [policy.new_state() for _ in shown]
        for _ in range(calls):
            chunks = policy.act(shown, states)
    return chunks, states


@pytest.mark.parametrize("recipe", ["dense", "fastv", "vla_pruner", "dual_level", "divprune"])
def test_full_budget_is_the_plain_model_bit_for_bit(adapter: OpenVLAAdapter, recipe: str):
    [shown] = observations(adapter, WORDS[:1])
    ids, _ = hashed_words([shown.instruction])
    images, proprio = adapter._images([shown]), adapter._proprio([shown])
    with torch.inference_mode():
        plain = adapter.model(images, ids, proprio)
    chunks, _ = run(adapter, recipe, 1.0, [shown])
    assert torch.equal(torch.from_numpy(chunks[0].actions), plain[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_batch_of_robots_equals_singles(adapter: OpenVLAAdapter, recipe: str, close):
    shown = observations(adapter)
    together, _ = run(adapter, recipe, 0.25, shown)
    for number, single in enumerate(shown):
        [alone], _ = run(adapter, recipe, 0.25, [single])
        for site, kept in alone.kept.items():
            assert np.array_equal(kept, together[number].kept[site])
        close(together[number].actions, alone.actions)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r != "blind"])
def test_each_view_keeps_its_share_in_order(adapter: OpenVLAAdapter, recipe: str):
    chunks, _ = run(adapter, recipe, 0.25, observations(adapter))
    size = adapter.layout.views[0].size
    for chunk in chunks:
        [kept] = chunk.kept.values()
        assert (np.diff(kept) > 0).all()
        counts = [((kept // size) == view).sum() for view in range(len(adapter.layout.views))]
        assert counts == [round(size * 0.25)] * len(counts)


def test_blind_keeps_nothing_and_still_acts(adapter: OpenVLAAdapter):
    shown = observations(adapter)
    other = [replace(o, images={k: 255 - v for k, v in o.images.items()}) for o in shown]
    ours, theirs = run(adapter, "blind", None, shown)[0], run(adapter, "blind", None, other)[0]
    for a, b in zip(ours, theirs, strict=True):
        assert len(a.kept["projector"]) == 0
        assert np.array_equal(a.actions, b.actions)


def test_the_paper_warms_up_dense_and_ours_does_not():
    adapter = adapter_of("oft")
    shown = observations(adapter)
    for recipe, first in (("vla_pruner", []), ("dual_level", ["decoder.2"])):
        assert [list(c.kept) for c in run(adapter, recipe, 0.25, shown, calls=3)[0]] == [first] * 3
    assert list(run(adapter, "vla_pruner", 0.25, shown, calls=4)[0][0].kept) == ["decoder.2"]


def test_action_attention_is_a_share_of_probability(adapter: OpenVLAAdapter):
    """History entries are means of probabilities, zero and unobserved where a token was cut."""
    _, states = run(adapter, "vla_pruner", 0.25, observations(adapter), calls=4)
    for state in states:
        full, cut = state.history["action_attention"][0], state.history["action_attention"][-1]
        assert bool(full[1].all())
        assert 0.0 < float(full[0].sum()) < 1.0
        layer = len(adapter.model.language_model.model.layers) // 2 - 1
        assert bool(cut[1].all()) == (layer < 2)
        assert float(cut[0][~cut[1]].sum()) == 0.0


def test_actions_come_in_physical_units_with_the_gripper_named():
    statistics = Statistics(
        {"x": {"action": {"q01": [0.0, -1.0], "q99": [10.0, 1.0], "mask": [True, False]},
               "proprio": {"q01": [-1.0] * 5, "q99": [1.0] * 5}}}
    )  # fmt: skip
    model = OpenVLA(FORMS["oft"], statistics)
    plain = OpenVLAAdapter(model, hashed_words)
    signed = OpenVLAAdapter(model, hashed_words, gripper="sign")
    shown = observations(plain)[:1]
    [a], [b] = run(plain, "dense", None, shown)[0], run(signed, "dense", None, shown)[0]
    assert np.abs(a.actions[:, 0] - 5.0).max() < 5.0
    assert set(np.unique(b.actions[:, 1])) <= {-1.0, 1.0}
    assert np.array_equal(np.sign(a.actions[:, 1]), b.actions[:, 1])
    with pytest.raises(ConfigError, match="gripper 'sing' is unknown; did you mean 'sign'"):
        OpenVLAAdapter(model, hashed_words, gripper="sing")


def test_bad_observations_get_one_sentence():
    adapter = adapter_of("oft")
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


def test_images_of_another_size_are_resized():
    adapter = adapter_of("oft")
    [good] = observations(adapter)[:1]
    large = {k: v.repeat(2, axis=0).repeat(2, axis=1) for k, v in good.images.items()}
    chunks, _ = run(adapter, "dense", None, [replace(good, images=large)])
    assert chunks[0].actions.shape == (3, 2)


def test_random_weights_of_a_published_size_are_named_by_preset():
    with pytest.raises(ConfigError, match="did you mean 'openvla_7b'"):
        build({"weights": "random", "preset": "openvla_7B"})
    with pytest.raises(ConfigError, match="field 'wieghts' is unknown"):
        build({"wieghts": "random"})
