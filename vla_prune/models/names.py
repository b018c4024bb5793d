"""The tensors of the published checkpoints, their shapes, and what they are called here.

Sources. Module tree and prefixes: openvla/openvla c8f03f4, prismatic/extern/hf/modeling_prismatic
.py (two timm towers, LayerScale's ``gamma`` renamed ``scale_factor``, ``projector.fc1`` to
``fc3``) and vla-scripts/extern/convert_openvla_weights_to_hf.py. Towers: timm 0.9.16,
vision_transformer.py and layers/attention_pool.py, models vit_large_patch14_reg4_dinov2 and
vit_so400m_patch14_siglip_224. Decoder: transformers' LlamaForCausalLM. Action head and proprio
projector: moojink/openvla-oft 213c5ff, prismatic/models/action_heads.py and projectors.py.

Example::

    entries = published(openvla_7b())
    entries["projector.fc1.weight"].shape       # (8704, 2176)

The list is right for openvla/openvla-7b as far as can be told from outside: 982 tensors and
15 082 474 368 bytes in bfloat16, which is ``total_size`` in its model.safetensors.index.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import LlamaConfig

from vla_prune.models.config import OpenVLAConfig, TowerConfig

# Columns: published name, shape, our name. `*` counts blocks, `q|k|v` splits the first dimension
# into three, `-` is left out because nothing reads it. Sizes: C width, F MLP, P patch, N patches,
# R registers of a tower.
_DINOV2 = """
cls_token                   1 1 C    class_token
reg_token                   1 R C    register_tokens
pos_embed                   1 N C    position_embedding
patch_embed.proj.weight     C 3 P P  patch_embedding.weight
patch_embed.proj.bias       C        patch_embedding.bias
blocks.*.norm1.weight       C        blocks.*.norm1.weight
blocks.*.norm1.bias         C        blocks.*.norm1.bias
blocks.*.attn.qkv.weight    3C C     blocks.*.attention.q|k|v_proj.weight
blocks.*.attn.qkv.bias      3C       blocks.*.attention.q|k|v_proj.bias
blocks.*.attn.proj.weight   C C      blocks.*.attention.o_proj.weight
blocks.*.attn.proj.bias     C        blocks.*.attention.o_proj.bias
blocks.*.ls1.scale_factor   C        blocks.*.layer_scale1.lambda1
blocks.*.norm2.weight       C        blocks.*.norm2.weight
blocks.*.norm2.bias         C        blocks.*.norm2.bias
blocks.*.mlp.fc1.weight     F C      blocks.*.mlp.fc1.weight
blocks.*.mlp.fc1.bias       F        blocks.*.mlp.fc1.bias
blocks.*.mlp.fc2.weight     C F      blocks.*.mlp.fc2.weight
blocks.*.mlp.fc2.bias       C        blocks.*.mlp.fc2.bias
blocks.*.ls2.scale_factor   C        blocks.*.layer_scale2.lambda1
norm.weight                 C        -
norm.bias                   C        -
"""

_SIGLIP = """
pos_embed                   1 N C    position_embedding
patch_embed.proj.weight     C 3 P P  patch_embedding.weight
patch_embed.proj.bias       C        patch_embedding.bias
blocks.*.norm1.weight       C        blocks.*.layer_norm1.weight
blocks.*.norm1.bias         C        blocks.*.layer_norm1.bias
blocks.*.attn.qkv.weight    3C C     blocks.*.self_attn.q|k|v_proj.weight
blocks.*.attn.qkv.bias      3C       blocks.*.self_attn.q|k|v_proj.bias
blocks.*.attn.proj.weight   C C      blocks.*.self_attn.out_proj.weight
blocks.*.attn.proj.bias     C        blocks.*.self_attn.out_proj.bias
blocks.*.norm2.weight       C        blocks.*.layer_norm2.weight
blocks.*.norm2.bias         C        blocks.*.layer_norm2.bias
blocks.*.mlp.fc1.weight     F C      blocks.*.mlp.fc1.weight
blocks.*.mlp.fc1.bias       F        blocks.*.mlp.fc1.bias
blocks.*.mlp.fc2.weight     C F      blocks.*.mlp.fc2.weight
blocks.*.mlp.fc2.bias       C        blocks.*.mlp.fc2.bias
norm.weight                 C        -
norm.bias                   C        -
attn_pool.latent            1 1 C    -
attn_pool.q.weight          C C      -
attn_pool.q.bias            C        -
attn_pool.kv.weight         2C C     -
attn_pool.kv.bias           2C       -
attn_pool.proj.weight       C C      -
attn_pool.proj.bias         C        -
attn_pool.norm.weight       C        -
attn_pool.norm.bias         C        -
attn_pool.mlp.fc1.weight    F C      -
attn_pool.mlp.fc1.bias      F        -
attn_pool.mlp.fc2.weight    C F      -
attn_pool.mlp.fc2.bias      C        -
"""

# V width of the joined features, D decoder, I its MLP, K its keys, U vocabulary.
_DECODER = """
projector.fc1.weight                                            4V V  projector.fc1.weight
projector.fc1.bias                                              4V    projector.fc1.bias
projector.fc2.weight                                            D 4V  projector.fc2.weight
projector.fc2.bias                                              D     projector.fc2.bias
projector.fc3.weight                                            D D   projector.fc3.weight
projector.fc3.bias                                              D     projector.fc3.bias
language_model.model.embed_tokens.weight                        U D   =
language_model.model.layers.*.self_attn.q_proj.weight           D D   =
language_model.model.layers.*.self_attn.k_proj.weight           K D   =
language_model.model.layers.*.self_attn.v_proj.weight           K D   =
language_model.model.layers.*.self_attn.o_proj.weight           D D   =
language_model.model.layers.*.mlp.gate_proj.weight              I D   =
language_model.model.layers.*.mlp.up_proj.weight                I D   =
language_model.model.layers.*.mlp.down_proj.weight              D I   =
language_model.model.layers.*.input_layernorm.weight            D     =
language_model.model.layers.*.post_attention_layernorm.weight   D     =
language_model.model.norm.weight                                D     =
language_model.lm_head.weight                                   U D   =
"""

# S one time step's slots side by side, G head width, A action.
_ACTION_HEAD = """
action_head.model.layer_norm1.weight                    S    action_head.layer_norm1.weight
action_head.model.layer_norm1.bias                      S    action_head.layer_norm1.bias
action_head.model.fc1.weight                            G S  action_head.fc1.weight
action_head.model.fc1.bias                              G    action_head.fc1.bias
action_head.model.mlp_resnet_blocks.*.ffn.0.weight      G    action_head.mlp_resnet_blocks.*.ffn.0.weight
action_head.model.mlp_resnet_blocks.*.ffn.0.bias        G    action_head.mlp_resnet_blocks.*.ffn.0.bias
action_head.model.mlp_resnet_blocks.*.ffn.1.weight      G G  action_head.mlp_resnet_blocks.*.ffn.1.weight
action_head.model.mlp_resnet_blocks.*.ffn.1.bias        G    action_head.mlp_resnet_blocks.*.ffn.1.bias
action_head.model.layer_norm2.weight                    G    action_head.layer_norm2.weight
action_head.model.layer_norm2.bias                      G    action_head.layer_norm2.bias
action_head.model.fc2.weight                            A G  action_head.fc2.weight
action_head.model.fc2.bias                              A    action_head.fc2.bias
"""  # noqa: E501 - a table is read along its rows

# O robot state.
_PROPRIO = """
proprio_projector.fc1.weight   D O  =
proprio_projector.fc1.bias     D    =
proprio_projector.fc2.weight   D D  =
proprio_projector.fc2.bias     D    =
"""

_TOWER_PREFIX = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


@dataclass(frozen=True)
class Entry:
    """One published tensor.

    Attributes:
        name: in the published checkpoint.
        shape: there.
        ours: our names; several share the first dimension equally, none means left out.
    """

    name: str
    shape: tuple[int, ...]
    ours: tuple[str, ...]


def published(config: OpenVLAConfig) -> dict[str, Entry]:
    """All tensors of a published checkpoint with this config's sizes, by published name."""
    llm = LlamaConfig(**config.llm)
    width = llm.hidden_size
    sizes = {
        "V": sum(tower.hidden_size for tower in config.towers),
        "D": width,
        "I": llm.intermediate_size,
        "K": llm.head_dim * llm.num_key_value_heads,
        "U": llm.vocab_size,
        "S": config.slots_per_step * width,
        "G": config.head_hidden or width,
        "A": config.action_dim,
        "O": config.proprio_dim or 0,
    }
    entries = [
        entry
        for i, tower in enumerate(config.towers)
        for entry in _tower(tower, _TOWER_PREFIX[i], f"towers.{i}.")
    ]
    entries += _rows(_DECODER, sizes, llm.num_hidden_layers)
    if config.form == "oft":
        entries += _rows(_ACTION_HEAD, sizes, config.head_blocks)
    if config.proprio_dim is not None:
        entries += _rows(_PROPRIO, sizes, 0)
    return {entry.name: entry for entry in entries}


def _tower(tower: TowerConfig, theirs: str, ours: str) -> Iterator[Entry]:
    sizes = {
        "C": tower.hidden_size,
        "F": tower.mlp_hidden,
        "P": tower.patch_size,
        "N": tower.side**2,
        "R": tower.registers,
    }
    table = _DINOV2 if tower.kind == "dinov2" else _SIGLIP
    for entry in _rows(table, sizes, tower.layers):
        block = re.match(r"blocks\.(\d+)\.", entry.name)
        built = block is None or int(block[1]) < tower.blocks
        names = tuple(ours + name for name in entry.ours) if built else ()
        yield Entry(theirs + entry.name, entry.shape, names)


def _rows(table: str, sizes: Mapping[str, int], n_blocks: int) -> Iterator[Entry]:
    for line in table.strip().splitlines():
        theirs, *shape, ours = line.split()
        ours = {"=": theirs, "-": ""}.get(ours, ours)
        names = [ours.replace("q|k|v", part) for part in "qkv"] if "|" in ours else [ours]
        size = tuple(_size(word, sizes) for word in shape)
        for i in range(n_blocks) if "*" in theirs else (0,):
            yield Entry(
                theirs.replace("*", str(i)),
                size,
                tuple(name.replace("*", str(i)) for name in names if name),
            )


def _size(word: str, sizes: Mapping[str, int]) -> int:
    """``3`` is 3, ``C`` the width, ``3C`` three times the width."""
    factor, symbol = re.fullmatch(r"(\d*)([A-Z]?)", word).groups()
    return int(factor or 1) * (sizes[symbol] if symbol else 1)
