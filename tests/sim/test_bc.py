"""The trainer on a handful of made-up frames: it learns, resumes, and drops what it may drop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from vla_prune_sim.train import bc, look, ship  # noqa: E402
from vla_prune_sim.train.frames import FrameSet  # noqa: E402

from vla_prune.build import build_adapter  # noqa: E402
from vla_prune.models.openvla import OpenVLA  # noqa: E402

CLASSES = ["background", "road", "vehicle"]
VIEWS = ["LEFT", "RIGHT"]
FRAMES = 12


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """One file of drives in which the brighter side says where to go."""
    folder = tmp_path_factory.mktemp("demos")
    rng = np.random.default_rng(0)
    with h5py.File(folder / "shard_0000.hdf5", "w") as file:
        data = file.create_group("data")
        for number in range(4):
            demo = data.create_group(f"demo_{number}")
            side = rng.integers(2, size=FRAMES)
            demo["frame_index"] = np.arange(FRAMES)
            demo["states8"] = rng.normal(size=(FRAMES, 3)).astype(np.float32)
            demo["chunks"] = np.repeat(side[:, None, None], 2, 1).repeat(2, 2).astype(np.float32)
            demo["aux/patches"] = rng.integers(3, size=(FRAMES, 2, 12, 12), dtype=np.uint8)
            demo["aux/offsets"] = np.zeros((FRAMES, 2), np.float32)
            for place, view in enumerate(VIEWS):
                bright = np.where(side == place, 220, 30).astype(np.uint8)
                demo[f"obs/{view}_rgb"] = np.broadcast_to(
                    bright[:, None, None, None], (FRAMES, 144, 144, 3)
                )
            demo.attrs.update({"seed": number, "instruction": "follow the light"})
        data.attrs.update(
            {"views": json.dumps(VIEWS), "patch_labels": json.dumps(CLASSES), "chunk": 2}
        )
    return folder


def trainer(demos, out, steps: int, *more: str) -> bc.Trainer:
    line = f"--demos {demos} --out {out} --suite drive --steps {steps} --batch 4 --pretrain 1"
    return bc.Trainer(
        bc.parse([*line.split(), "--log-every", "1", "--save-every", "2", "--warmup", "1", *more])
    )


def weights(out) -> dict[str, torch.Tensor]:
    with safe_open(out / "resume.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_training_lowers_the_loss_and_leaves_a_policy_that_loads(demos, tmp_path) -> None:
    more = "--keep 0.25 --dense-tail 0 --drop-layer 0 2"
    made = trainer(demos, tmp_path, 16, *more.split())
    made.run()
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert "action" not in lines[0]  # the first step trains the tower alone
    losses = [line["action"] for line in lines[1:]]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    model = OpenVLA.from_pretrained(tmp_path / "policy")
    assert model.config.views == tuple(VIEWS)
    line = f"--suite drive --run {tmp_path} --models {tmp_path}"
    ship.main([*line.split(), "--data", "toy drives"])
    shipped = tmp_path / "pocket_drive"
    card = (shipped / "README.md").read_text(encoding="utf-8")
    assert "48 frames of toy drives" in card
    assert "two views" not in card
    assert "| step | action | token class | offset |" in card
    assert next(OpenVLA.from_pretrained(shipped).parameters()).dtype == torch.float16
    assert 2 * 1.5e6 < (shipped / "model.safetensors").stat().st_size < 2 * 2e6


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(demos, tmp_path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(demos, whole, 4).run()
    first = trainer(demos, parts, 4)
    first.args.steps = 2
    bent = bc.warm_cosine
    try:  # the schedule must be that of the whole run
        bc.warm_cosine = lambda step, _, warmup: bent(step, 4, warmup)
        first.args.dense_tail = 0.0
        first.run()
    finally:
        bc.warm_cosine = bent
    trainer(demos, parts, 4).run()
    ours, theirs = weights(parts), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_another_policy_or_a_tower_begins_this_one(demos, tmp_path) -> None:
    first = trainer(demos, tmp_path / "first", 2)
    first.run()
    path = tmp_path / "first" / "policy" / "model.safetensors"
    more = ("--start-from", str(path), "--tower-layers", "2")
    second = trainer(demos, tmp_path / "second", 2, *more, "--seed", "1")
    ours, theirs = second.model.state_dict(), load_file(path)
    assert {name for name in ours if name not in theirs} == {
        name for name in ours if name.startswith("towers.0.blocks.1.")
    }
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
        torch.testing.assert_close(second.average[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, 2])
def test_spared_classes_are_dropped_last(demos, tmp_path, monkeypatch, layer) -> None:
    made = trainer(demos, tmp_path, 4, "--spare", "vehicle")
    passes, decode = [], bc.Dropout.decode
    monkeypatch.setattr(bc.Dropout, "decode", lambda *a: passes.append(decode(*a)) or passes[-1])
    batch = made.train.batch(np.arange(4))
    sum(made.losses(batch, 0.5, np.random.default_rng(0), layer).values()).backward()
    hidden, inputs, kept = passes[0]
    assert kept.shape == (4, 144)
    assert hidden.shape[1] == inputs.embeds.shape[1] - (144 if layer else 0)
    vehicles = batch.labels == CLASSES.index("vehicle")
    assert vehicles.any(1).all()
    for row in range(4):
        assert set(vehicles[row].nonzero()[:, 0].tolist()) <= set(kept[row].tolist())
    assert all(p.grad is not None for p in made.model.towers.parameters())


def test_dropout_in_front_of_a_layer_changes_that_layer_and_later_ones_only(
    demos, tmp_path
) -> None:
    made = trainer(demos, tmp_path, 4)
    batch, widths = made.train.batch(np.arange(2)), {}
    layers = made.model.language_model.model.layers
    for number, layer in enumerate(layers):
        layer.mlp.register_forward_hook(
            lambda _, inputs, __, number=number: widths.update({number: inputs[0].shape[1]})
        )
    made.losses(batch, 0.25, np.random.default_rng(0), 2)
    assert widths[0] == widths[1]
    assert {widths[0] - widths[number] for number in range(2, len(layers))} == {216}


def test_a_class_that_does_not_exist_is_named(demos, tmp_path) -> None:
    with pytest.raises(SystemExit, match="no patch class lorry; these demonstrations know back"):
        trainer(demos, tmp_path, 4, "--spare", "lorry")


def test_a_look_says_how_much_of_a_class_is_among_the_best_tokens(demos, tmp_path) -> None:
    trainer(demos, tmp_path, 2).run()
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"adapter: openvla\nweights: {tmp_path / 'policy'}\ndevice: cpu\n")
    adapter, frames, index = build_adapter(str(policy)), look.FrameSet(demos), np.arange(2)
    for layer in (0, 2):
        share = look.recall(adapter, frames, index, layer, "vehicle", 0.25)
        assert 0.1 < share < 0.4  # untrained, and a third of the patches are vehicles
        assert look.recall(adapter, frames, index, layer, "vehicle", 1.0) == 1.0
    state, chunk, labels, offsets = frames.rows[0]
    frames.rows[0] = state, chunk, np.full_like(labels, CLASSES.index("vehicle")), offsets
    frames.rows[1] = state, chunk, np.zeros_like(labels), offsets  # shows none: does not count
    assert look.recall(adapter, frames, index, 0, "vehicle", 0.25) == 0.25


def test_the_card_says_how_frames_counted() -> None:
    told = ship._drawn({"keyframes": 0.5, "quantile": 0.35, "freeze_tower": True})
    for word in ("50% of them", "quantile 0.35", "tower frozen"):
        assert word in told


def test_the_card_says_how_tokens_were_dropped(demos, tmp_path) -> None:
    made = trainer(demos, tmp_path / "run", 2, "--keep", "0.5", "1", "--dense-tail", "0")
    made.run()
    ship.ship(tmp_path / "run", tmp_path / "shipped", "drive", "made-up drives")
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert (
        "| a random share (0.5, 1) of the visual tokens pass the decoder while training |" in card
    )
    assert "| how frames count | all alike |" in card


def test_the_card_says_what_was_measured_last(tmp_path) -> None:
    row = {"suite": "drive", "recipe": "dense", "keep_ratio": 1.0, "episodes": 3, "score": 0.5}
    row |= {"diff": 0.0, "diff_ci": [0.0, 0.0]}
    about = {"command": "vla-prune run a.yaml", "commit": "abc", "rows": [row]}
    results = tmp_path / "a.json"
    card = "# pocket-drive\n\nText.\n"
    for score in (0.5, 0.75):
        results.write_text(json.dumps(about | {"rows": [row | {"score": score}]}))
        card = ship.add_success(card, results, "drive")
    assert card.startswith(
        "# pocket-drive\n\nText.\n\n## Success\n\n`vla-prune run a.yaml` (a.json"
    )
    assert "| dense | 100% | 3 | 75.0% |" in card
    assert "50.0%" not in card


def test_a_frozen_tower_stays_as_it_was_and_the_rest_learns(demos, tmp_path) -> None:
    trainer(demos, tmp_path, 4).run()
    before = weights(tmp_path)
    trainer(demos, tmp_path, 8, "--freeze-tower").run()
    after = weights(tmp_path)
    towers = [name for name in before if name.startswith("average.towers.")]
    assert towers
    for name in towers:
        assert torch.allclose(after[name], before[name]), name
        assert torch.allclose(after[name.replace("average", "model")], before[name]), name
    learned = [name for name in before if name.startswith("model.projector")]
    assert any(not torch.equal(after[name], before[name]) for name in learned)


def test_remembered_features_are_those_of_the_pictures(demos, tmp_path) -> None:
    made = trainer(demos, tmp_path, 1, "--freeze-tower")
    made.model.eval()
    seen = FrameSet(demos)
    for index in (np.array([0, 3, 3]), np.array([3, 5])):
        batch, features = made.cache.batch(index)
        with torch.inference_mode():
            wanted = made.model.vision_features(seen.batch(index).images)
        torch.testing.assert_close(features, wanted, atol=2e-3, rtol=2e-3)
        np.testing.assert_array_equal(batch.actions, seen.batch(index).actions)
    assert [made.train.images[i].size for i in (0, 3, 5)] == [0, 0, 0]  # half of the memory


def test_a_low_quantile_learns_the_careful_way_and_half_the_median() -> None:
    seen = torch.tensor([[1.0, 1.0]] * 4 + [[9.0, 9.0]] * 6)  # the expert brakes four times in ten
    best = {}
    for quantile in (0.5, 0.3):
        asked = torch.linspace(0.0, 10.0, 101)
        losses = torch.stack(
            [bc.quantile_error(a.expand_as(seen), seen, quantile).mean(0) for a in asked]
        )
        best[quantile] = asked[losses.argmin(0)].tolist()
    assert best[0.5] == pytest.approx([9.0, 9.0])
    assert best[0.3] == pytest.approx([1.0, 9.0])
