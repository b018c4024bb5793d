"""Sizes: the published ones, JSON, and what is refused."""

import json
from dataclasses import replace

import pytest

from vla_prune.errors import ConfigError
from vla_prune.models import OpenVLAConfig, TowerConfig, openvla_7b, openvla_oft_7b

from .tiny import CONFIGS, CONV, DINO, OFT


@pytest.mark.parametrize("config", [*CONFIGS.values(), openvla_7b(), openvla_oft_7b()])
def test_json_round_trip(config):
    assert OpenVLAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_published_sizes():
    config = openvla_oft_7b()
    assert config.token_grid == (16, 16)
    assert config.n_visual == 512
    assert config.n_slots == 56
    assert [tower.blocks for tower in config.towers] == [23, 26]
    assert openvla_7b().n_visual == 256
    assert openvla_7b().n_slots == 0


def test_pocket_grid():
    assert TowerConfig("conv", 144, 12, hidden_size=128, layers=0).side == 12


def test_unknown_field_suggests_the_known_one():
    with pytest.raises(ConfigError, match="'chunks' is unknown; did you mean 'chunk'"):
        OpenVLAConfig.from_dict(OFT.to_dict() | {"chunks": 8})
    bad = OFT.to_dict()
    bad["towers"][0]["head"] = 2
    with pytest.raises(ConfigError, match="towers: field 'head' is unknown"):
        OpenVLAConfig.from_dict(bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "clip"}, "kind 'clip' is unknown"),
        ({"feature_layer": -4}, "feature_layer -4 of 3 layers"),
        ({"feature_layer": 0}, "feature_layer 0 of 3 layers"),
        ({"heads": 3}, "does not divide by 3 heads"),
        ({"mlp_hidden": 40}, "no multiple of hidden_size"),
    ],
)
def test_tower_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(DINO, **changes)


def test_conv_strides_make_the_patch():
    with pytest.raises(ConfigError, match="multiply to 8"):
        replace(CONV, strides=(2, 2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "diffusion"}, "form 'diffusion' is unknown"),
        ({"form": "autoregressive"}, "use form 'oft'"),
        ({"towers": ()}, "at least one tower"),
        ({"towers": (DINO, CONV)}, "joined token by token"),
    ],
)
def test_policy_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(OFT, **changes)
