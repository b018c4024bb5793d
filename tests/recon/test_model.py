"""The pruner: the paper's size and form, and that its scorer learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLDecoderLayer,
    Qwen2_5_VLRotaryEmbedding,
)

from vla_prune import config
from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.cost import DecoderShape, prefill_macs
from vla_prune.errors import ConfigError
from vla_prune.recon.losses import OBJECTIVES, LossConfig, Reconstruction
from vla_prune.recon.model import (
    DecoderConfig,
    FullAttentionLayer,
    PixelDecoder,
    ReconConfig,
    ReconPruner,
    grid_places,
    recon_macs,
    rotation,
    straight_through,
    unpatchify,
)
from vla_prune.recon.train import train_config

SMALL = ReconConfig(hidden=32, ffn=48, heads=2, kv_heads=1, query_std=1.0, scorer_std=0.2)
ENCODER = EncoderSpec(32, 3, 4, 8, "0" * 16)


def made(objective: str = "adversarial", **options) -> Reconstruction:
    torch.manual_seed(0)
    return Reconstruction(
        SMALL, DecoderConfig(layers=1), LossConfig(objective, **options), ENCODER
    )


def batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (2, 12), generator=draw)
    masks = labels.view(2, 3, 4).repeat_interleave(8, 1).repeat_interleave(8, 2)
    tokens = torch.randn(2, 12, 32, generator=draw)
    return tokens, torch.rand(2, 3, 24, 32, generator=draw), masks, labels


def published() -> ReconConfig:
    """Of the shipped config, behind the encoder of Qwen2.5-VL-3B."""
    data = config.load("qwen2_5_vl_3b", kind="recon")
    return train_config("qwen2_5_vl_3b", data, hidden=2048).model


def test_the_published_size_has_0_07_billion_parameters():
    with torch.device("meta"):
        pruner = ReconPruner(published())
    layer = sum(p.numel() for p in pruner.layer.parameters())
    assert layer == 77_076_992
    assert sum(p.numel() for p in pruner.parameters()) == layer + 2048 + 2049


def test_it_costs_at_most_4_percent_of_the_dense_prefill():
    """Qwen2.5-VL-3B: 36 layers, at the paper's 3249 visual tokens, with no words at all."""
    host = DecoderShape(36, 2048, 11008, 2 / 16)
    share = recon_macs(published(), 3249) / prefill_macs(host, [3249] * 36)
    assert 0.02 < share <= 0.04


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_reaches_the_scorer(objective: str):
    network = made(objective)
    network(*batch())["loss"].backward()
    assert network.pruner.scorer.weight.grad.abs().sum() > 0
    assert network.pruner.query.grad.abs().sum() > 0


def test_gathering_tokens_by_the_mask_would_teach_nothing():
    """The trap of the only public imitation, beside what is right."""
    tokens, places = torch.randn(1, 12, 32), grid_places(1, 3, 4)
    pruner = ReconPruner(SMALL)
    gate = straight_through(pruner(tokens, places))
    kept = tokens[:, gate[0] > 0.5].square().sum()
    assert not kept.requires_grad
    (gate[..., None] * tokens).square().sum().backward()
    assert pruner.scorer.weight.grad.abs().sum() > 0


def test_the_mask_is_the_sign_and_passes_the_gradient_of_the_scores():
    scores = torch.tensor([-2.0, -0.0, 0.5, 7.0], requires_grad=True)
    gate = straight_through(scores, "identity")
    assert gate.tolist() == [0.0, 0.0, 1.0, 1.0]
    (gate * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert scores.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_score_that_is_sure_grows_no_further():
    scores = torch.tensor([-30.0, -0.0, 30.0], requires_grad=True)
    gate = straight_through(scores)
    assert gate.tolist() == [0.0, 0.0, 1.0]
    gate.sum().backward()
    assert scores.grad[1] == 1.0
    assert scores.grad[[0, 2]].abs().max() < 1e-9


@pytest.mark.parametrize(("filler", "even"), [(4.0, True), (0.5, True), (0.0, False)])
def test_dropped_tokens_speak_to_the_scorer_no_louder_than_kept_ones(filler: float, even: bool):
    """An RMS norm's gradient at zero is a thousand times that at one."""
    torch.manual_seed(0)
    decoder = PixelDecoder(SMALL, DecoderConfig(layers=1, filler_std=filler), 8)
    tokens, images, _, _ = batch()
    gate = (torch.arange(12) % 2).float()[None, :, None].repeat(2, 1, 1).requires_grad_()
    drawn = decoder(tokens * gate, grid_places(2, 3, 4), 3, 4)
    (drawn - images).square().mean().backward()
    loud = gate.grad.abs()
    dropped, kept = loud[gate == 0].mean(), loud[gate == 1].mean()
    assert (dropped < 10 * kept) == even


def test_attention_is_full_unless_causal(close):
    x = torch.randn(1, 12, 32)
    turn = rotation(SMALL, grid_places(1, 3, 4)[..., 1:], x.dtype)
    changed = torch.cat([x[:, :-1], x[:, -1:] + 1.0], dim=1)
    for causal in (False, True):
        layer = FullAttentionLayer(SMALL, causal=causal)
        first, again = layer(x, turn)[:, 0], layer(changed, turn)[:, 0]
        assert torch.equal(first, again) == causal


def test_the_layer_is_qwen2_5_vls_own(close):
    """The same weights in transformers' Qwen2.5-VL layer, positions by its own M-RoPE."""
    config = ReconConfig(hidden=64, ffn=48, heads=2, kv_heads=1)
    ours = FullAttentionLayer(config)
    text = Qwen2_5_VLTextConfig(
        hidden_size=64,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=1,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": [4, 6, 6],
        },
        attn_implementation="sdpa",
    )
    theirs = Qwen2_5_VLDecoderLayer(text, 0)
    theirs.load_state_dict(ours.layer.state_dict())
    theirs.self_attn.is_causal = False
    x, places = torch.randn(2, 12, 64), grid_places(2, 3, 4)
    positions = torch.stack([torch.zeros(2, 12).long(), places[..., 1], places[..., 2]])
    turn = Qwen2_5_VLRotaryEmbedding(text)(x, positions)
    theirs_out = theirs(x, position_embeddings=turn)
    theirs_out = theirs_out[0] if isinstance(theirs_out, tuple) else theirs_out
    close(ours(x, rotation(config, places[..., 1:], x.dtype)), theirs_out)


def test_each_view_is_scored_as_if_alone(close):
    pruner = ReconPruner(SMALL)
    a, b = torch.randn(1, 12, 32), torch.randn(1, 6, 32)
    one, two = grid_places(1, 3, 4), grid_places(1, 2, 3).clone()
    two[..., 0] = 1
    together = pruner(torch.cat([a, b], 1), torch.cat([one, two], 1), views=2)
    alone = grid_places(1, 2, 3)
    close(together, torch.cat([pruner(a, one), pruner(b, alone)], dim=1))


def test_scores_move_with_the_tokens(close):
    pruner = ReconPruner(SMALL)
    tokens, places = torch.randn(2, 12, 32), grid_places(2, 3, 4)
    order = torch.randperm(12)
    close(pruner(tokens[:, order], places[:, order]), pruner(tokens, places)[:, order])


def test_places_matter_only_with_rotation():
    tokens, places = torch.randn(1, 12, 32), grid_places(1, 3, 4)
    for positions in ("mrope", "none"):
        torch.manual_seed(0)
        pruner = ReconPruner(replace(SMALL, positions=positions))
        same = torch.equal(pruner(tokens, places), pruner(tokens, places.flip(1)))
        assert same == (positions == "none")


def test_pixels_return_to_their_places():
    image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = image.unfold(2, 2, 2).unfold(3, 2, 2)  # [B, C, rows, cols, 2, 2]
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(2, 6, -1)
    assert torch.equal(unpatchify(flat, 2, 3, 2), image)


def test_what_is_ignored_changes_no_loss():
    tokens, images, masks, labels = batch()
    masks[:, :8, :8], labels[:, 0] = 2, 2
    painted = images.clone()
    painted[:, :, :8, :8] = 0.9
    for objective in ("mask_head", "mask_pair", "adversarial"):
        network = made(objective)
        first = network(tokens, images, masks, labels)["loss"]
        torch.testing.assert_close(first, network(tokens, painted, masks, labels)["loss"])


def test_the_loss_is_the_papers_sum():
    told = made()(*batch())
    parts = 0.5 * told["loss_fore"] + 0.5 * told["loss_back"]
    torch.testing.assert_close(told["loss"].detach(), parts)
    alone = made(alpha=0.25)(*batch())
    parts = 0.25 * alone["loss_fore"] + 0.75 * alone["loss_back"]
    torch.testing.assert_close(alone["loss"].detach(), parts)


def test_without_a_rival_keeping_everything_is_best():
    """Why the paper has two pictures: a pruner that keeps all draws the foreground best."""
    network = made("foreground_only")
    assert len(network.decoders) == 1
    assert "loss_back" not in network(*batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "3 heads with 1 key/value heads do not fit width 32"),
        ({"heads": 32}, "heads are 1 wide"),
        ({"positions": "mropes"}, "did you mean 'mrope'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "adversary"}, "did you mean 'adversarial'"),
        ({"surrogate": "identitiy"}, "did you mean 'identity'"),
        ({"alpha": 1.5}, "alpha is 1.5; it is a share"),
        ({"window": 10}, "window 10 is even"),
    ],
)
def test_losses_that_cannot_be_are_refused(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**options)


def test_a_window_larger_than_the_picture_is_refused():
    with pytest.raises(ConfigError, match=r"larger than the picture \(6 pixels\)"):
        Reconstruction(SMALL, DecoderConfig(pixels=2), LossConfig(), ENCODER)
