"""The sequence, its positions and masks, and what each form predicts from it."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from vla_prune.errors import ShapeError, UnsupportedError
from vla_prune.models import OpenVLA

N = {"autoregressive": 16, "oft": 32, "pocket": 32}  # visual tokens of the tiny models


@pytest.fixture
def sequence(make, batch):
    """A model and its inputs, with only the visual tokens ``kept``."""

    def build(name, kept=None, **changes):
        model = make(name, **changes)
        args = batch(model)
        visual = model.encode_images(args.pop("images"))
        if kept is not None:
            kept = torch.as_tensor(kept, dtype=torch.long).expand(2, -1)
            visual = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
            args["visual_positions"] = kept + model.visual_offset
        return model, model.build_inputs(visual, **args)

    return build


# --- layout ----------------------------------------------------------------------------------


def test_layout_autoregressive(sequence):
    model, inputs = sequence("autoregressive")
    embed = model.language_model.model.embed_tokens
    assert inputs.embeds.shape == (2, 1 + 16 + 5, 32)
    assert (inputs.visual_slots, inputs.text_slots) == ((1, 17), (17, 22))
    assert (inputs.action_slots, inputs.action_rows) == (None, (21, 22))
    assert inputs.attention_mask is None
    assert inputs.positions.tolist() == [list(range(22))] * 2
    torch.testing.assert_close(inputs.embeds[:, 0], embed(torch.tensor([1, 1])))


def test_layout_oft(sequence, batch):
    model, inputs = sequence("oft")
    embed = model.language_model.model.embed_tokens
    # BOS, 32 visual, state, 5 words, 3 steps x 2 slots, stop
    assert inputs.embeds.shape == (2, 1 + 32 + 1 + 5 + 6 + 1, 32)
    assert inputs.visual_slots == (1, 33)
    assert inputs.text_slots == (34, 39)
    assert inputs.action_slots == (39, 45)
    assert inputs.action_rows == (38, 44)  # the published head begins at the last prompt token
    assert inputs.positions[0].tolist() == list(range(46))
    state = model.proprio_projector(batch(model)["proprio"])
    torch.testing.assert_close(inputs.embeds[:, 33], state)
    torch.testing.assert_close(inputs.embeds[:, 34:39], embed(batch(model)["input_ids"][:, 1:]))
    assert not inputs.embeds[:, 39:45].any()
    torch.testing.assert_close(inputs.embeds[:, 45], embed(torch.tensor([2, 2])))


def test_layout_pocket_reads_its_learned_slots(sequence):
    model, inputs = sequence("pocket")
    assert inputs.action_slots == inputs.action_rows == (39, 42)
    torch.testing.assert_close(inputs.embeds[0, 39:42], model.slot_embedding)


@pytest.mark.parametrize("name", N)
@pytest.mark.parametrize("kept", [[0, 3, 15], []])
def test_pruned_tokens_leave_all_other_positions(sequence, name, kept):
    _, whole = sequence(name)
    _, inputs = sequence(name, kept=kept)
    expected = [0, *(1 + k for k in kept), *whole.positions[0, 1 + N[name] :].tolist()]
    assert inputs.positions.tolist() == [expected] * 2
    assert inputs.visual_slots == (1, 1 + len(kept))
    assert inputs.embeds.shape[1] == inputs.positions.shape[1]
    rest = 1 + N[name]
    torch.testing.assert_close(inputs.embeds[:, 1 + len(kept) :], whole.embeds[:, rest:])


def test_no_visual_tokens_need_no_positions(make, batch):
    model = make("pocket")
    args = batch(model)
    visual = model.encode_images(args.pop("images"))[:, :0]
    assert model.build_inputs(visual, **args).positions[0, 1] == 1 + model.n_visual


def test_mistakes_are_named(make, batch):
    model = make("oft")
    args = batch(model)
    visual = model.encode_images(args.pop("images"))
    with pytest.raises(ShapeError, match="5 of 32 visual tokens without visual_positions"):
        model.build_inputs(visual[:, :5], **args)
    with pytest.raises(ShapeError, match="give one position to each token"):
        model.build_inputs(visual[:, :5], **args, visual_positions=torch.ones(2, 4))
    with pytest.raises(ShapeError, match="proprio has None entries, this policy takes 5"):
        model.build_inputs(visual, args["input_ids"])
    with pytest.raises(ShapeError, match="batch of 2, prompts for 1"):
        model.build_inputs(visual, args["input_ids"][:1], args["proprio"])
    inputs = model.build_inputs(visual, **args)
    with pytest.raises(UnsupportedError, match="use predict_chunk"):
        model.generate_action_tokens(inputs)
    tokens = make("autoregressive")
    with pytest.raises(UnsupportedError, match="use generate_action_tokens"):
        tokens.predict_chunk(inputs.embeds, inputs)


# --- who sees whom ---------------------------------------------------------------------------


def influence(model, inputs):
    """``[S, S]`` bool: does row i's output change with input j? Read off the Jacobian."""
    embeds = inputs.embeds[:1].detach().requires_grad_()
    one = replace(
        inputs,
        embeds=embeds,
        positions=inputs.positions[:1],
        attention_mask=None if inputs.attention_mask is None else inputs.attention_mask[:1],
    )
    hidden = model.decode(one)
    rows = []
    for i in range(hidden.shape[1]):
        # a random direction: the plain sum of a normalised row barely depends on anything
        direction = torch.randn(hidden.shape[2], generator=torch.Generator().manual_seed(i))
        loss = hidden[0, i] @ direction
        (grad,) = torch.autograd.grad(loss, embeds, retain_graph=True)
        rows.append(grad[0].abs().amax(-1) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
def test_oft_is_bidirectional(sequence, kept):
    assert influence(*sequence("oft", kept=kept)).all()


@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
def test_autoregressive_is_causal(sequence, kept):
    seen = influence(*sequence("autoregressive", kept=kept))
    assert torch.equal(seen, torch.ones_like(seen).tril())


@pytest.mark.parametrize("name", N)
@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
def test_decode_equals_an_explicit_mask(sequence, name, kept):
    model, inputs = sequence(name, kept=kept)
    s = inputs.embeds.shape[1]
    mask = torch.ones(1, 1, s, s, dtype=torch.bool)
    mask = mask if model.bidirectional else mask.tril()
    explicit = model.decode(replace(inputs, attention_mask=mask.expand(2, -1, -1, -1)))
    torch.testing.assert_close(model.decode(inputs), explicit)


def test_gaps_would_be_taken_for_packed_sequences(sequence):
    """The trap that ``contiguous`` is for; if this fails, transformers has mended it."""
    model, inputs = sequence("autoregressive", kept=[0, 3, 15])
    trapped = model.decode(replace(inputs, contiguous=True))
    assert not torch.allclose(trapped, model.decode(inputs), atol=1e-3)


@pytest.mark.parametrize("name", N)
@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
def test_unpadded_runs_use_the_fused_kernel_without_a_mask(sequence, name, kept, monkeypatch):
    calls = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return plain(*args, **kwargs)

    model, inputs = sequence(name, kept=kept)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model.decode(inputs)
    assert calls == [(None, not model.bidirectional)] * 2


def test_forward_is_one_graph(make, batch):
    model = make("pocket")
    args = batch(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**args), model(**args))


# --- padding and batches ---------------------------------------------------------------------


def padded(ids, lengths, side):
    """Prompts cut to ``lengths`` and padded again; returns ids and mask."""
    width = ids.shape[1]
    out = torch.full_like(ids, 7)  # a real word, so that an unmasked pad would show
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        out[row, where] = ids[row, :length]
        mask[row, where] = True
    return out, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
@pytest.mark.parametrize("name", N)
def test_padded_batch_equals_singles(make, batch, name, kept, side):
    model = make(name)
    args = batch(model)
    lengths = (6, 3)
    ids, mask = padded(args["input_ids"], lengths, side)
    visual = model.encode_images(args["images"])
    where = {}
    if kept is not None:
        visual = visual[:, kept]
        where = {"visual_positions": torch.tensor(kept).expand(2, -1) + 1}
    proprio = args.get("proprio")
    inputs = model.build_inputs(visual, ids, proprio, mask, **where)
    hidden = model.decode(inputs)
    for i, length in enumerate(lengths):
        single = model.build_inputs(
            visual[i : i + 1],
            args["input_ids"][i : i + 1, :length],
            None if proprio is None else proprio[i : i + 1],
            **{k: v[i : i + 1] for k, v in where.items()},
        )
        real = inputs.attention_mask[i]
        assert torch.equal(inputs.positions[i][real], single.positions[0])
        torch.testing.assert_close(hidden[i][real], model.decode(single)[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", N)
def test_padded_actions_equal_singles(make, batch, name, side):
    model = make(name)
    args = batch(model)
    lengths = (6, 3)
    ids, mask = padded(args["input_ids"], lengths, side)
    together = model(**(args | {"input_ids": ids, "text_mask": mask}))
    for i, length in enumerate(lengths):
        single = {k: v[i : i + 1] for k, v in args.items()}
        single["input_ids"] = single["input_ids"][:, :length]
        torch.testing.assert_close(together[i : i + 1], model(**single))


@pytest.mark.parametrize("name", N)
def test_a_mask_without_padding_changes_nothing(make, batch, name):
    model = make(name)
    args = batch(model)
    mask = torch.ones_like(args["input_ids"])
    assert torch.equal(model(**args), model(**args, text_mask=mask))


# --- actions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", N)
def test_forward_gives_one_chunk_a_row(make, batch, name):
    model = make(name)
    config = model.config
    assert model(**batch(model)).shape == (2, config.chunk, config.action_dim)


def test_head_reads_slots_step_by_step(sequence):
    model, inputs = sequence("oft")
    hidden = torch.arange(inputs.embeds.shape[1]).float()[None, :, None].expand(1, -1, 32)
    rows = model.action_hidden(hidden, inputs)
    assert rows.shape == (1, 3, 64)
    assert rows[0, :, ::32].tolist() == [[38, 39], [40, 41], [42, 43]]


@pytest.mark.parametrize("kept", [None, [0, 3, 15]])
def test_cached_generation_equals_recomputing(sequence, kept):
    model, inputs = sequence("autoregressive", kept=kept)
    cache = DynamicCache(config=model.language_model.config)
    tokens = model.generate_action_tokens(inputs, cache)
    assert tokens.shape == (2, 7)
    assert cache.get_seq_length() == inputs.embeds.shape[1] + 6
    embed = model.language_model.model.embed_tokens
    for step in range(7):
        later = inputs.positions[:, -1:] + 1 + torch.arange(step)
        grown = replace(
            inputs,
            embeds=torch.cat([inputs.embeds, embed(tokens[:, :step])], dim=1),
            positions=torch.cat([inputs.positions, later], dim=1),
        )
        expected = model.logits(model.decode(grown)[:, -1]).argmax(-1)
        assert torch.equal(tokens[:, step], expected)


@pytest.mark.parametrize("name", ["oft", "pocket"])
def test_every_weight_learns(make, batch, name):
    model = make(name).train()
    model(**batch(model)).square().sum().backward()
    unread = {"language_model.lm_head.weight"}
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == unread


def test_autoregressive_learns_from_logits(sequence):
    model, inputs = sequence("autoregressive")
    model.logits(model.decode(inputs)).logsumexp(-1).sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


# --- precision -------------------------------------------------------------------------------


def test_constants_stay_float32(make, batch):
    model = make("oft")
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args = batch(model)
    plain = model(**args)
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, exact[name]), name
    half = model(**args)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, rtol=0.1, atol=0.3)


def test_full_size_builds_on_meta(published_model):
    model = published_model
    assert next(model.parameters()).is_meta
    images = torch.rand(1, len(model.config.views), 3, 224, 224, device="meta")
    visual = model.encode_images(images)
    assert visual.shape == (1, model.n_visual, 4096)


@pytest.fixture(scope="module", params=["openvla_7b", "openvla_oft_7b"])
def published_model(request):
    """A full-size model without memory."""
    from vla_prune import models

    with torch.device("meta"):
        return OpenVLA(getattr(models, request.param)())
