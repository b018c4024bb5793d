"""Towers against literal timm networks, and the convolutional stem."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vla_prune.errors import ShapeError
from vla_prune.models import OpenVLA, TowerConfig
from vla_prune.models.vision import ConvTower, build_tower, sine_positions

from .reference import published_state, timm_block, timm_tower

NAMES = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")


@pytest.mark.parametrize("index", [0, 1])
def test_block_is_timms(make, index):
    model = make("autoregressive")
    tower = model.towers[index]
    x = torch.randn(2, 7, tower.config.hidden_size)
    state = published_state(model)
    expected = timm_block(x, state, f"{NAMES[index]}.blocks.1", tower.config.heads)
    torch.testing.assert_close(tower.blocks[1](x, None), expected)


@pytest.mark.parametrize("index", [0, 1])
def test_features_are_timms_penultimate_layer(make, index):
    model = make("autoregressive")
    tower = model.towers[index]
    images = torch.rand(2, 3, 28, 28)
    expected = timm_tower(images, published_state(model), NAMES[index], tower.config)
    torch.testing.assert_close(tower(images), expected)


def test_unread_block_is_not_built(make):
    assert [len(t.blocks) for t in make("autoregressive").towers] == [2, 3]


def test_features_are_joined_by_channel_and_views_follow_each_other(make):
    model = make("oft")
    images = torch.rand(2, 2, 3, 28, 28)
    features = model.vision_features(images)
    assert features.shape == (2, 2 * 16, 16 + 24)
    for view in (0, 1):
        part = features[:, 16 * view : 16 * (view + 1)]
        torch.testing.assert_close(part[..., :16], model.towers[0](images[:, view]))
        torch.testing.assert_close(part[..., 16:], model.towers[1](images[:, view]))


def test_wrong_images_are_refused(make):
    with pytest.raises(ShapeError, match=r"takes \[B, 2, 3, 28, 28\] \(views image, wrist\)"):
        make("oft").vision_features(torch.rand(1, 1, 3, 28, 28))


def test_conv_tower_tokens_and_cost():
    tower = build_tower(TowerConfig("conv", 144, 12, hidden_size=128, layers=0)).eval()
    with FlopCounterMode(display=False) as counter:
        assert tower(torch.rand(1, 3, 144, 144)).shape == (1, 144, 128)
    assert 35e6 < counter.get_total_flops() / 2 < 60e6  # multiply-accumulates a view


def test_conv_tower_sees_where_things_are():
    tower = build_tower(TowerConfig("conv", 48, 12, hidden_size=16, layers=2)).eval()
    image = torch.full((1, 3, 48, 48), 0.5)
    moved = image.clone()
    moved[:, :, 0:12, 36:48] = 1.0  # the token in row 0, column 3
    change = (tower(moved) - tower(image)).norm(dim=-1)[0]
    assert change.argmax() == 3


def test_conv_blocks_begin_as_the_identity():
    torch.manual_seed(0)
    tower = ConvTower(TowerConfig("conv", 48, 12, hidden_size=16, layers=2))
    images = torch.rand(1, 3, 48, 48)
    before = tower(images)
    tower.blocks = torch.nn.ModuleList()
    torch.testing.assert_close(tower(images), before)


@pytest.mark.parametrize("width", [16, 17, 18, 128])
def test_sine_positions_tell_all_tokens_apart(width):
    table = sine_positions(12, width)
    assert table.shape == (144, width)
    assert torch.cdist(table, table).fill_diagonal_(9.0).min() > 0.05


def test_every_tower_weight_gets_a_gradient(make, batch):
    model = make("oft")
    model.encode_images(batch(model)["images"]).square().sum().backward()
    parts = (*model.towers.named_parameters(), *model.projector.named_parameters())
    assert [name for name, p in parts if p.grad is None or not p.grad.any()] == []


def test_projector_has_two_layers_for_one_tower(make):
    model = make("pocket")
    assert isinstance(model, OpenVLA)
    assert model.projector.fc3 is None
    assert make("oft").projector.fc1.out_features == 4 * (16 + 24)
