"""Heads against the published networks written out."""

import torch

from .reference import gelu, linear, mlp_resnet, published_state


def test_action_head_is_the_published_one(make):
    model = make("oft")
    x = torch.randn(2, 3, 2 * 32)
    expected = mlp_resnet(x, published_state(model), "action_head.model")
    torch.testing.assert_close(model.action_head(x), expected)


def test_projectors_are_the_published_ones(make):
    model = make("oft")
    state = published_state(model)
    x = torch.randn(2, 4, 16 + 24)
    y = gelu(linear(gelu(linear(x, state, "projector.fc1")), state, "projector.fc2"))
    torch.testing.assert_close(model.projector(x), linear(y, state, "projector.fc3"))
    p = torch.randn(2, 5)
    y = linear(gelu(linear(p, state, "proprio_projector.fc1")), state, "proprio_projector.fc2")
    torch.testing.assert_close(model.proprio_projector(p), y)
