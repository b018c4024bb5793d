"""What only Qwen2.5-VL has: patches, told states, and answers that are text, or are none."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vla_prune import config
from vla_prune.adapters.driver_text import (
    DRIVE_STATE,
    EgoState,
    driver_prompt,
    steps_between,
    waypoints,
)
from vla_prune.adapters.qwen_vl import QwenVLAdapter, build
from vla_prune.build import build_adapter, build_recipe
from vla_prune.errors import ActionError, ConfigError, ShapeError
from vla_prune.policy import attach
from vla_prune.pruner import ACTION
from vla_prune.types import Observation, PolicyState

from .hosts import tiny_qwen_config, tiny_qwen_processor

MARKS = ("<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
SAID = "[(1.0, 0.0), (2.5, 0.1), (4.0, 0.2), (5.5, 0.3), (7.0, 0.4), (8.5, 0.5)]"
PLACES = np.array([[1 + 1.5 * n, 0.1 * n] for n in range(6)], np.float32)
STATE = np.array([5.0, -0.5, 0.1, 0.02, -4.9, 0.12, 0, 1, 0, 0.5], np.float32)
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the marks of the chat form behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(MARKS))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=MARKS[0])


def tiny_model(room: int = 4096) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    tiny = tiny_qwen_config("sdpa")
    tiny.text_config.vocab_size = 261
    tiny.text_config.max_position_embeddings = room
    tiny.image_token_id = 260
    model = Qwen2_5_VLForConditionalGeneration(tiny)
    model.generation_config.eos_token_id = [256]
    return model.eval()


def driver(room: int = 4096, **options) -> QwenVLAdapter:
    return QwenVLAdapter(
        tiny_model(room), tiny_tokenizer(), tiny_qwen_processor(), CAMERAS, (24, 40), **options
    )


def seen(seed: int = 0, instruction: str = "drive along the route") -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (24, 40, 3), dtype=np.uint8) for name in CAMERAS}
    return Observation(images, instruction, STATE)


@contextmanager
def saying(adapter: QwenVLAdapter, script):
    """The model says ``script(batch)`` to the rows of a batch, whatever it sees."""
    step = 0

    def force(_module, _args, logits):
        nonlocal step
        answers = [[*adapter.tokenizer.encode(a), 256] for a in script(len(logits))]
        step = 0 if adapter.hooks.active and adapter.hooks.active.passes == 1 else step + 1
        forced = torch.zeros_like(logits)
        for row, answer in enumerate(answers):
            forced[row, 0, answer[step] if step < len(answer) else 7] = 1.0
        return forced

    handle = adapter.model.lm_head.register_forward_hook(force)
    try:
        yield
    finally:
        handle.remove()


# --- patches ----------------------------------------------------------------------------------


def test_patches_are_those_computed_by_hand():
    """Four patches of a merged token follow one another, tokens in raster order; two times."""
    processor = Qwen2VLImageProcessorPil()
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    made = processor([image], do_resize=False, return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 4, 6]]
    mean, std = np.array(processor.image_mean), np.array(processor.image_std)
    rows = []
    for r, c in ((r, c) for r in range(2) for c in range(3)):  # merged tokens of 28 pixels
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            top, left = 28 * r + 14 * i, 28 * c + 14 * j
            patch = (image[top : top + 14, left : left + 14] / 255.0 - mean) / std
            once = patch.transpose(2, 0, 1)  # [3, 14, 14]
            rows.append(np.stack([once, once], axis=1).ravel())
    assert np.allclose(made["pixel_values"].numpy(), np.array(rows), atol=1e-5)


def test_images_become_what_the_processor_makes_of_the_cameras_pictures():
    adapter, observation = driver(), seen()
    odd = replace(
        observation,
        images={k: np.pad(v, ((0, 3), (0, 2), (0, 0))) for k, v in seen().images.items()},
    )
    for size, shown in (((24, 40), observation), ((27, 42), odd)):
        adapter = QwenVLAdapter(
            tiny_model(), tiny_tokenizer(), tiny_qwen_processor(), CAMERAS, size
        )
        ours = adapter.prepare([shown])
        theirs = tiny_qwen_processor()([shown.images[c] for c in CAMERAS], return_tensors="pt")
        assert torch.equal(ours.pixel_values, theirs["pixel_values"])
        assert torch.equal(ours.image_grid_thw, theirs["image_grid_thw"])
    assert [(v.rows, v.cols) for v in adapter.layout.views] == [(3, 5)] * 2
    assert adapter.prepare([replace(shown, images={k: v[::2] for k, v in shown.images.items()})])


# --- text in ----------------------------------------------------------------------------------


def test_the_state_is_told_in_words_and_only_the_past():
    told = EgoState(("speed", "acceleration", "yaw_rate", "steering", "x_1.0", "y_1.0", "-"))
    assert told.said(STATE[:7]) == (
        "(t-1.0s) [-4.9, 0.12], (t-0.0s) [0.0, 0.0], Acceleration: X -0.5, Y 0.5 m/s^2, "
        "Velocity: 5.0 m/s, Steering angle: 0.02 (positive: left turn, negative: right turn)"
    )
    assert EgoState(("x_1", "x_2", "y_1", "y_2")).said(np.array([1, 2, -0.001, 4])) == (
        "(t-2.0s) [2.0, 4.0], (t-1.0s) [1.0, 0.0], (t-0.0s) [0.0, 0.0]"
    )
    assert EgoState(DRIVE_STATE).interval_s == 1.0  # the published 0.5 s would be untrue here
    assert EgoState(("x_0.5", "y_0.5", "x_1.0", "y_1.0")).interval_s == 0.5
    assert EgoState(("left", "straight")).turn(np.array([0.0, 1.0])) == "straight"
    with pytest.raises(ConfigError, match=r"entry 'x_-0\.5' is unknown"):
        EgoState(("x_-0.5", "y_-0.5"))
    with pytest.raises(ConfigError, match="give each entry once, and x and y"):
        EgoState(("x_0.5", "y_1.0"))


def test_the_prompt_is_the_chat_form_with_every_image_in_its_place():
    adapter = driver()
    ids = adapter.prepare([seen()]).input_ids[0]
    text = adapter.tokenizer.decode(ids)
    image = "<|vision_start|>" + "<|image_pad|>" * 15 + "<|vision_end|>"
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert f"(1) front view {image}, (2) front left view {image}. Your task" in text
    assert "over the last 1.0 seconds" in text
    assert "[x, y]: (t-1.0s) [-4.9, 0.12], (t-0.0s) [0.0, 0.0], " in text
    assert "Instruction: drive along the route, next turn: left.\n<|im_end|>" in text
    assert text.endswith("<|im_start|>assistant\n")
    assert adapter.other_tokens + 30 == len(
        adapter.prepare([adapter.example_observation(0)]).input_ids[0]
    )
    assert "a front view camera image of a vehicle <image>. Your" in driver_prompt(["CAM_FRONT"])


# --- text out ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        SAID,
        SAID.replace("(", "[").replace(")", "]"),
        SAID.replace(" ", ""),
        SAID.strip("[]").replace("), (", ")\n( "),
        SAID.replace("2.5", "+2.50").replace("0.1", ".1").replace("4.0", "4."),
        "<PLANNING>... for the next 3 seconds. The output is formatted as [x, y]: "
        + SAID[1:-1].replace("(", "[").replace(")", "]")
        + "</PLANNING>",
        SAID[:-1] + ", (10.0, 0.6), (11.5, 0.7)]",
    ],
)
def test_waypoints_are_read_in_every_documented_form(text: str):
    assert np.allclose(waypoints(text), PLACES)
    assert waypoints(text).dtype == np.float32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 0),
        ("I cannot see the road.", 0),
        (SAID[:-3], 5),  # cut off in the last pair
        (SAID.replace("(4.0, 0.2)", "(4.0, ?)") + SAID, 2),  # a hole: later pairs are not earlier
        (SAID.replace("4.0", "nan"), 2),
        (SAID.replace(", 0.1)", ")"), 1),
        (SAID[:-14], 4),
        ("1.0, 0.0, 2.5, 0.1, 4.0, 0.2, 5.5, 0.3, 7.0, 0.4, 8.5, 0.5", 0),
    ],
)
def test_what_is_no_six_waypoints_is_refused_and_quoted(text: str, found: int):
    with pytest.raises(ActionError, match=rf"the answer .* has {found} waypoints in a row") as e:
        waypoints(text)
    assert repr(text[:30])[:-1] in str(e.value)
    assert len(str(e.value)) < 300


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[(nan, 0.0), " + SAID[1:-1] + ", (10.0, 0.6)]", r"has \(nan, 0\.0\) before"),
        ("[(1e1, 0), " + SAID[1:-1] + ", (10.0, 0.6)]", r"has \(1e1, 0\) before"),
        (SAID.replace("4.0", "9999999"), "beyond 250 m"),
        (SAID.replace("4.0", "9" * 400), "beyond 250 m"),
    ],
)
def test_a_shifted_or_absurd_plan_is_no_plan(text: str, says: str):
    with pytest.raises(ActionError, match=says):
        waypoints(text)


def test_steps_add_up_to_the_places():
    assert np.allclose(steps_between(PLACES).cumsum(0), PLACES)
    assert np.allclose(steps_between(PLACES)[1], [1.5, 0.1])


@pytest.mark.parametrize("recipe", ["dense", "dual_level", "vla_pruner_prefill", "divprune"])
def test_a_driver_says_places_or_steps(recipe: str):
    for actions, wanted in (("places", PLACES), ("steps", steps_between(PLACES))):
        adapter = driver(actions=actions)
        pruner = build_recipe(recipe, None if recipe == "dense" else 0.25, cut_layer=2)
        with attach(pruner, adapter) as policy, saying(adapter, lambda n: [SAID] * n):
            chunk = policy.act_one(seen(), policy.new_state())
        assert np.allclose(chunk.actions, wanted, atol=1e-6)
        assert (chunk.actions.shape, chunk.dt_s) == ((6, 2), 0.5)


def test_an_answer_that_is_none_raises_and_leaves_everything_as_it_was():
    """Rows count over the whole call, also where states that warm up run apart."""
    adapter = driver()
    with attach(build_recipe("vla_pruner", 0.5, cut_layer=2), adapter) as policy:
        states = [policy.new_state() for _ in range(3)]
        shown = [seen(n) for n in range(3)]
        with saying(adapter, lambda n: [SAID] * n):
            for _ in range(3):
                policy.act_one(shown[0], states[0])  # its warm-up is over
        before = [s.tick for s in states]
        with (
            saying(adapter, lambda n: [SAID, "sorry"][:n]),
            pytest.raises(ActionError, match=r"Qwen2\.5-VL: the answer 'sorry' has 0") as e,
        ):
            policy.act(shown, states)
        assert e.value.rows == (2,)
        assert [s.tick for s in states] == before
        with saying(adapter, lambda n: [SAID] * n):
            assert len(policy.act(shown[:2], states[:2])) == 2


def test_an_answer_stops_where_it_ends_or_at_its_limit():
    adapter = driver(max_new_tokens=40)
    with (
        attach(build_recipe("dense"), adapter) as policy,
        saying(adapter, lambda n: [SAID] * n),
        pytest.raises(ActionError, match=r"\(5\.' has 3 waypoints"),
    ):
        policy.act_one(seen(), policy.new_state())
    adapter = driver()
    inputs = adapter.prepare([seen()])
    with saying(adapter, lambda n: ["[]"]), attach(build_recipe("dense"), adapter):
        call = build_recipe("dense").begin([PolicyState()], adapter.layout)
        with torch.inference_mode():
            assert adapter.run(inputs, call).shape == (1, 3)


def test_ended_answers_look_at_nothing_more():
    """Answers of different length: a batch's histories are those of singles."""
    adapter, answers = driver(read=lambda _: PLACES), ["[1]", "[1, 2, 3, 4]"]
    pruner = build_recipe("dual_level", 0.5, cut_layer=2)
    together = [PolicyState(), PolicyState()]
    with attach(pruner, adapter) as policy:
        with saying(adapter, lambda n: answers):
            policy.act([seen(0), seen(1)], together)
        for row, state in enumerate(together):
            alone = policy.new_state()
            with saying(adapter, lambda n, row=row: [answers[row]]):
                policy.act_one(seen(row), alone)
            ours, theirs = state.history[ACTION][-1], alone.history[ACTION][-1]
            assert torch.allclose(ours[0], theirs[0], atol=1e-6)
            assert torch.equal(ours[1], theirs[1])


# --- refused, in one sentence -----------------------------------------------------------------


def test_bad_observations_get_one_sentence():
    adapter, good = driver(), seen()
    front = good.images["CAM_FRONT"]
    for shown, message in (
        (replace(good, images={"CAM_FRONT": front}), "needs camera 'CAM_FRONT_LEFT'; the obs"),
        (replace(good, images=good.images | {"CAM_FRONT": front[0]}), r"shape \(40, 3\)"),
        (replace(good, images=good.images | {"CAM_FRONT": front / 255.0}), "dtype float64; give"),
        (replace(good, state=STATE[:4]), "state has 4 entries, this policy takes 10"),
        (replace(good, state=None), "state has 0 entries"),
        (replace(good, state=STATE * np.nan), "NaN or infinite"),
        (replace(good, instruction="<|image_pad|>"), "holds an image token; give plain words"),
        (replace(good, instruction="word " * 1000), "the model takes 4096; shorten"),
    ):
        with (
            attach(build_recipe("dense"), adapter) as policy,
            pytest.raises(ShapeError, match=message),
        ):
            policy.act_one(shown, PolicyState())


def test_mistakes_in_a_config():
    for options, message in (
        ({"actions": "step"}, "actions 'step' is unknown; did you mean 'steps'"),
        ({"state": ("sped",)}, "entry 'sped' is unknown; did you mean 'speed'"),
        ({"question": "<image> {status}"}, "give one <image> for each of 2 cameras"),
        ({"question": "{status} <image><image>"}, "and behind the last one any of {history_s}"),
        ({"question": "<image><image> {future}"}, "any of"),
        ({"question": "<image><image> {"}, "any of"),
    ):
        with pytest.raises(ConfigError, match=message):
            driver(**options)
    with pytest.raises(ConfigError, match="field 'wieghts' is unknown"):
        build({"wieghts": "random"})


# --- checkpoints ------------------------------------------------------------------------------


def test_a_checkpoint_folder_is_all_it_takes(tmp_path):
    ours = driver()
    ours.model.save_pretrained(tmp_path)
    ours.tokenizer.save_pretrained(tmp_path)
    ours.processor.save_pretrained(tmp_path)
    path = tmp_path / "policy.yaml"
    path.write_text(
        f"adapter: qwen2_5_vl\nweights: {tmp_path}\ncameras: [CAM_FRONT, CAM_FRONT_LEFT]\n"
        "image_size: [24, 40]\nmax_new_tokens: 8\ndevice: cpu\n"
    )
    theirs = build_adapter(str(path))
    assert theirs.stop_tokens == [256]
    assert theirs.layout == ours.layout
    observation = seen()
    for name, value in vars(ours.prepare([observation])).items():
        assert torch.equal(value, getattr(theirs.prepare([observation]), name)), name
    with (
        attach(build_recipe("dense"), theirs) as policy,
        pytest.raises(ActionError, match="answer"),
    ):
        policy.act_one(observation, policy.new_state())
    weights = tmp_path / "model.safetensors"
    torch.save(ours.model.state_dict(), tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        build_adapter(str(path))


def test_the_full_size_is_the_published_one():
    """On the meta device: shapes alone."""
    data = config.load("impromptu_3b_random", kind="policy")
    assert data.pop("adapter") == "qwen2_5_vl"
    assert data.pop("action_names") == ["dx", "dy"]
    adapter = build(data | {"device": "meta"})
    assert sum(p.numel() for p in adapter.model.parameters()) == 3_754_622_976
    assert [(v.rows, v.cols) for v in adapter.layout.views] == [(20, 36)] * 3
    assert adapter.model.config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]


def test_random_weights_give_no_action_that_anyone_could_follow():
    adapter = build(
        {
            "config": tiny_qwen_config("sdpa").to_dict(),
            "cameras": ["front"],
            "image_size": [24, 32],
            "max_new_tokens": 2,
        }
        | {"device": "cpu"}
    )
    with attach(build_recipe("dual_level", 0.5, cut_layer=2), adapter) as policy:
        chunk = policy.act_one(adapter.example_observation(0), policy.new_state())
    assert np.isnan(chunk.actions).all()
