"""What only pi0 has: its inputs, its noise, its own denoising loop over a cut cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from vla_prune.adapters import pi0
from vla_prune.adapters.pi0 import MeanStd, Pi0Adapter
from vla_prune.budgets import ConstantBudget
from vla_prune.errors import ConfigError, ShapeError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION, ActionHistory, Cut, Pruner
from vla_prune.scorers import NormScorer
from vla_prune.selectors import TopKSelector
from vla_prune.types import PolicyState

from .hosts import LAYERS, Pi0Host, call, hashed_words, observation, tiny_pi0_config

CAMERAS = ("front", "wrist")


@pytest.fixture
def host(made) -> Pi0Host:
    return made("pi0 padded")


def cut(site: str, keep: float = 0.5) -> Pruner:
    one = Cut(site, (NormScorer(),), TopKSelector(), ConstantBudget(keep))
    return Pruner((one,), ActionHistory())


# --- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 16), (24, 40), (50, 20), (8, 12), (7, 3)])
def test_images_are_what_the_processor_of_pi0_makes(host: Pi0Host, shape, close):
    """transformers' PIL backend with the settings of its PI0ImageProcessor."""
    images = {
        name: np.random.default_rng(n).integers(0, 256, (*shape, 3), dtype=np.uint8)
        for n, name in enumerate(CAMERAS)
    }
    processor = PilBackend(
        do_convert_rgb=True,
        do_resize=True,
        size={"max_height": 16, "max_width": 16},
        default_to_square=False,
        resample=Image.Resampling.BICUBIC,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=IMAGENET_STANDARD_MEAN,
        image_std=IMAGENET_STANDARD_STD,
        do_pad=True,
        pad_size={"height": 16, "width": 16},
    )
    expected = processor(list(images.values()), return_tensors="pt")["pixel_values"]
    given = replace(host.observations[0], images=images)
    close(host.adapter.prepare([given]).pixel_values[0], expected.float())


def test_the_prefix_is_images_then_start_words_newline(host: Pi0Host):
    inputs = host.adapter.prepare(host.observations[:2])
    words, valid = hashed_words([f"{o.instruction}\n" for o in host.observations[:2]])
    assert inputs.input_ids[:, :32].eq(63).all()
    assert torch.equal(inputs.input_ids[:, 32:], words)
    assert torch.equal(inputs.attention_mask[:, 32:], valid)
    assert inputs.attention_mask[:, :32].all()
    assert not inputs.attention_mask.all()  # the second prompt is padded
    assert inputs.pixel_attention_mask.all()


def test_the_order_of_the_cameras_is_that_of_the_policy(host: Pi0Host):
    given = host.observations[0]
    turned = replace(given, images=dict(reversed(given.images.items())))
    one, two = (host.adapter.prepare([o]).pixel_values for o in (given, turned))
    assert torch.equal(one, two)


def test_the_state_is_normalised_and_padded(host: Pi0Host, close):
    stats = MeanStd((1.0, 2.0, 3.0), (2.0, 1.0, 0.5))
    adapter = Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, state_stats=stats)
    given = replace(host.observations[0], state=np.array([3.0, 2.0, 2.0], np.float32))
    expected = torch.tensor([[1.0, 0.0, -2.0, 0.0, 0.0, 0.0]])
    close(adapter.prepare([given]).state, expected)


def test_actions_come_back_in_physical_units(host: Pi0Host, close):
    stats = MeanStd((1.0, -1.0, 0.0), (2.0, 0.5, 3.0))
    adapter = Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, action_stats=stats)
    plain = host.model.sample_actions(
        **vars(adapter.prepare(host.observations[:1])), noise=adapter.noise([0])
    )
    with attach(Pruner(), adapter) as policy:
        chunk = policy.act_one(host.observations[0], policy.new_state())
    expected = plain[0, :, :3] * torch.tensor(stats.std) + torch.tensor(stats.mean)
    close(chunk.actions, expected)


def test_normalising_there_and_back(close):
    stats, x = MeanStd((1.0, -2.0), (0.5, 0.0)), torch.tensor([[0.3, -2.0]])
    close(stats.unnormalise(stats.normalise(x)), x)


def test_bfloat16_models_take_bfloat16_inputs():
    host = Pi0Host(CAMERAS)
    host.model.to(torch.bfloat16)
    host.noise = host.adapter.noise(range(3))
    output, _ = call(host, cut("decoder.2", 1.0), [0, 1])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, host.plain([0, 1]))
    with attach(cut("decoder.2"), host.adapter) as policy:
        chunk = policy.act_one(host.observations[0], policy.new_state())
    assert chunk.actions.dtype == np.float32
    assert np.isfinite(chunk.actions).all()


# --- noise -------------------------------------------------------------------------------------


def test_noise_is_a_function_of_seed_and_tick(host: Pi0Host):
    noise = host.adapter.noise([0, 1, 0])
    assert noise.shape == (3, 4, 7)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    torch.manual_seed(99)
    assert torch.equal(host.adapter.noise([1])[0], noise[1])
    other = Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, seed=1)
    assert not torch.equal(other.noise([0])[0], noise[0])


def test_a_call_draws_nothing_from_the_global_generator(host: Pi0Host):
    before = torch.get_rng_state()
    with attach(cut("decoder.2"), host.adapter) as policy:
        policy.act_one(host.observations[0], policy.new_state())
    assert torch.equal(torch.get_rng_state(), before)


# --- the denoising loop ------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["projector", "decoder.2"])
def test_every_step_reads_exactly_the_cut_prefix(host: Pi0Host, site: str):
    """Before each denoising step every layer's cache holds its prefix and nothing of the last."""
    lengths, masks = [], []

    def enter(_module, _args, kwargs):
        lengths.append([layer.get_seq_length() for layer in kwargs["past_key_values"].layers])

    def enter_layer(_module, _args, kwargs):
        masks.append(kwargs["attention_mask"].shape[-1])

    dit = host.model.model.dit
    with attach(cut(site, 0.25), host.adapter) as policy:  # our hooks first, then those that look
        handles = [dit.register_forward_pre_hook(enter, with_kwargs=True)]
        for layer in dit.layers:
            handles.append(layer.register_forward_pre_hook(enter_layer, with_kwargs=True))
        policy.act(host.observations[:2], [PolicyState(), PolicyState()])
        for handle in handles:
            handle.remove()
    text = host.valid.shape[1] - 32
    short, full = 8 + text, 32 + text
    first = short if site == "projector" else full
    expected = [first] * 2 + [short] * (LAYERS - 2)
    assert lengths == [expected] * 3
    assert masks == [n + 5 for n in expected] * 3


def test_the_number_of_steps_is_a_setting(host: Pi0Host):
    adapter = Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, steps=2)
    inputs, noise = adapter.prepare(host.observations[:1]), adapter.noise([0])
    with attach(Pruner(), adapter), torch.inference_mode():
        ours = adapter.run(inputs, noise, Pruner().begin([PolicyState()], adapter.layout))
    plain = host.model.sample_actions(**vars(inputs), noise=noise, num_steps=2)
    assert torch.equal(ours, plain)


def test_history_counts_action_rows_and_not_the_state(host: Pi0Host, close):
    """Probabilities of the image columns alone: at most one in all, and never of 5 rows of 4."""
    state = PolicyState()
    _, running = call(host, cut("decoder.3"), [0], [state])
    values, observed = state.history[ACTION][0]
    assert observed.all()
    assert 0.0 < values.sum() <= 1.0
    actions = host.reference([0], running.kept).actions[1]
    assert actions.shape[1] == 4 * 3
    close(values, actions[0].mean(0)[:32])


# --- building and refusing ---------------------------------------------------------------------


def tiny_data(**changes) -> dict:
    config = tiny_pi0_config("sdpa").to_dict()
    fields = ("vlm_config", "dit_config", "chunk_size", "max_state_dim", "max_action_dim")
    return {
        "weights": "random",
        "config": {name: config[name] for name in (*fields, "num_inference_steps")},
        "cameras": list(CAMERAS),
        "device": "cpu",
        **changes,
    }


def test_building_with_random_weights():
    adapter = pi0.build(
        tiny_data(steps=1, action={"mean": [0.0, 1.0], "std": [1.0, 1.0]}, dt_s=0.1)
    )
    example = adapter.example_observation(0)
    with attach(cut("decoder.2"), adapter) as policy:
        chunk = policy.act_one(example, policy.new_state())
    assert (chunk.actions.shape, chunk.dt_s) == ((4, 2), 0.1)
    assert [site.name for site in adapter.sites()] == [
        "projector",
        *(f"decoder.{k}" for k in range(1, LAYERS)),
    ]
    assert adapter.shape.layers == LAYERS
    assert adapter.other_tokens == len(["pick", "up", "the", "black", "bowl"]) + 2


def test_building_from_a_folder(host: Pi0Host, tmp_path, close):
    """``from_pretrained`` of safetensors; the tokenizer puts the start token in front."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "go": 2, "home": 3, "now": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")
    host.model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    adapter = pi0.build({"weights": str(tmp_path), "cameras": CAMERAS, "device": "cpu"})
    ids, valid = adapter.tokenize(["go home now\n", "go\n"])
    assert ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert valid.tolist() == [[True] * 4, [True, True, False, False]]
    inputs = vars(host.adapter.prepare(host.observations[:1]))
    expected = host.model.sample_actions(**inputs, noise=host.noise[:1])
    close(adapter.model.sample_actions(**inputs, noise=host.noise[:1]), expected)


def test_unknown_fields_are_refused():
    with pytest.raises(ConfigError, match="field 'camera' is unknown; did you mean 'cameras'"):
        pi0.build(tiny_data(camera="front"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "pi0 needs camera 'front'; the observation has none"),
        ({"left": np.zeros((4, 4, 3), np.uint8)}, "needs camera 'front'; the observation has lef"),
        ({"front": np.zeros((4, 4), np.uint8)}, r"camera 'front': image has shape \(4, 4\)"),
        ({"front": np.zeros((0, 4, 3), np.uint8)}, r"image has shape \(0, 4, 3\)"),
        ({"front": np.zeros((4, 4, 3))}, "image has dtype float64; give uint8"),
    ],
)
def test_images_that_do_not_fit(host: Pi0Host, images, message):
    with pytest.raises(ShapeError, match=message):
        host.adapter.prepare([replace(host.observations[0], images=images)])


@pytest.mark.parametrize("size", [None, 0, 7])
def test_states_that_do_not_fit(host: Pi0Host, size):
    state = None if size is None else np.zeros(size, np.float32)
    with pytest.raises(ShapeError, match=f"state has {size or 0} entries, this policy takes at"):
        host.adapter.prepare([replace(host.observations[0], state=state)])


def test_a_state_of_another_robot(host: Pi0Host):
    stats = MeanStd((0.0,) * 3, (1.0,) * 3)
    adapter = Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, state_stats=stats)
    with pytest.raises(ShapeError, match="state has 6 entries, this policy takes 3"):
        adapter.prepare([observation(0, CAMERAS, "go")])


def test_statistics_that_do_not_fit(host: Pi0Host):
    with pytest.raises(ConfigError, match="2 means but 1 deviations"):
        MeanStd((0.0, 0.0), (1.0,))
    with pytest.raises(ConfigError, match="9 action dimensions with statistics of 7"):
        Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, action_dim=9)
    two = MeanStd((0.0, 0.0), (1.0, 1.0))
    with pytest.raises(ConfigError, match="3 action dimensions with statistics of 2"):
        Pi0Adapter(host.model, hashed_words, CAMERAS, 0.02, action_stats=two, action_dim=3)
