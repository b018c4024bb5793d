"""The sizes of an OpenVLA-family policy, as plain frozen data. Knows no torch and no weights.

Example::

    config = openvla_oft_7b()
    config.n_visual          # 512: two views of 16 x 16 tokens
    OpenVLAConfig.from_dict(config.to_dict()) == config
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

from vla_prune.errors import ConfigError, did_you_mean

TOWER_KINDS = ("conv", "dinov2", "siglip")
FORMS = ("autoregressive", "oft")


@dataclass(frozen=True)
class TowerConfig:
    """One image encoder.

    Attributes:
        kind: ``dinov2`` and ``siglip`` are the published vision transformers, ``conv`` a small
            convolutional stem for policies trained from scratch.
        image_size: side of the square input, pixels.
        patch_size: side of one token, pixels; for ``conv`` the product of ``strides``.
        hidden_size: channels of a token.
        layers: transformer blocks of the published tower, or residual blocks of ``conv``.
        heads: attention heads (unused by ``conv``).
        mlp_hidden: hidden channels of a block's MLP (unused by ``conv``).
        registers: register tokens; dropped from the features together with the class token.
        feature_layer: which block's output is the feature, counted from the end: -2 is the last
            but one, as OpenVLA reads it. Blocks behind it are neither built nor loaded.
        strides: of the 3x3 convolutions of ``conv``.
        norm_eps: of the LayerNorms.
        mean: subtracted from the image in [0, 1], by channel.
        std: then divided by, by channel.
    """

    kind: str
    image_size: int
    patch_size: int
    hidden_size: int
    layers: int
    heads: int = 1
    mlp_hidden: int = 0
    registers: int = 0
    feature_layer: int = -2
    strides: tuple[int, ...] = (2, 2, 3)
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        for name in ("strides", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in TOWER_KINDS:
            raise did_you_mean("TowerConfig", "kind", self.kind, TOWER_KINDS)
        if self.kind == "conv" and prod(self.strides) != self.patch_size:
            raise ConfigError(
                f"TowerConfig: strides {self.strides} multiply to {prod(self.strides)}, but "
                f"patch_size is {self.patch_size}; make them equal."
            )
        if self.kind != "conv" and not -self.layers <= self.feature_layer <= -1:
            raise ConfigError(
                f"TowerConfig: feature_layer {self.feature_layer} of {self.layers} layers; "
                f"give -{self.layers} to -1."
            )
        if self.kind != "conv" and self.hidden_size % self.heads:
            raise ConfigError(
                f"TowerConfig: hidden_size {self.hidden_size} does not divide by {self.heads} "
                "heads; change one of them."
            )

        if self.kind == "dinov2" and self.mlp_hidden % self.hidden_size:
            raise ConfigError(
                f"TowerConfig: mlp_hidden {self.mlp_hidden} of a dinov2 tower is no multiple of "
                f"hidden_size {self.hidden_size}; make it one."
            )

    @property
    def side(self) -> int:
        """Tokens along one side of a view; a margin smaller than a token is left out."""
        return self.image_size // self.patch_size

    @property
    def blocks(self) -> int:
        """Blocks that are built: those up to the feature layer."""
        return self.layers if self.kind == "conv" else self.layers + self.feature_layer + 1


@dataclass(frozen=True)
class OpenVLAConfig:
    """A policy of the OpenVLA family.

    Attributes:
        towers: image encoders whose features are joined by channel.
        llm: fields of ``transformers.LlamaConfig``.
        views: camera names, in the order in which their tokens stand in the sequence.
        action_dim: numbers in one action.
        chunk: actions that one call predicts.
        form: ``autoregressive`` (action tokens one by one) or ``oft`` (all slots at once).
        slots_per_step: action slots of one time step; 7 in the published OFT form.
        proprio_dim: length of the robot state, or None where the policy does not see it.
        n_bins: action bins of the autoregressive form.
        action_vocab: the vocabulary whose last ``n_bins`` entries are the actions; None is the
            whole one. Published models pad 32000 entries to 32064 and count from 32000.
        learned_slots: learned embeddings in the action slots instead of the published zeros.
        shifted_read: read the state *before* each slot, beginning at the last prompt token, as the
            published head was trained to; False reads the slots themselves.
        head_hidden: hidden width of the action head; None is the decoder's.
        head_blocks: residual blocks of the action head.
    """

    towers: tuple[TowerConfig, ...]
    llm: Mapping[str, Any]
    views: tuple[str, ...] = ("image",)
    action_dim: int = 7
    chunk: int = 1
    form: str = "autoregressive"
    slots_per_step: int = 7
    proprio_dim: int | None = None
    n_bins: int = 256
    action_vocab: int | None = None
    learned_slots: bool = False
    shifted_read: bool = True
    head_hidden: int | None = None
    head_blocks: int = 2

    def __post_init__(self) -> None:
        """Refuse towers that see different grids, and unknown forms."""
        object.__setattr__(self, "towers", tuple(self.towers))
        object.__setattr__(self, "views", tuple(self.views))
        if self.form not in FORMS:
            raise did_you_mean("OpenVLAConfig", "form", self.form, FORMS)
        if not self.towers or not self.views:
            raise ConfigError("OpenVLAConfig: give at least one tower and one view.")
        grids = {(t.image_size, t.side) for t in self.towers}
        if len(grids) > 1:
            raise ConfigError(
                f"OpenVLAConfig: towers have (image size, tokens a side) {sorted(grids)}, but "
                "features are joined token by token; give all of them the same."
            )
        if self.form == "autoregressive" and (self.chunk != 1 or self.proprio_dim is not None):
            raise ConfigError(
                f"OpenVLAConfig: the autoregressive form with chunk {self.chunk} and proprio_dim "
                f"{self.proprio_dim}; it predicts one action and sees no state, use form 'oft'."
            )

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of one view's tokens."""
        return self.towers[0].side, self.towers[0].side

    @property
    def n_visual(self) -> int:
        """Visual tokens of all views together."""
        return len(self.views) * self.towers[0].side ** 2

    @property
    def n_slots(self) -> int:
        """Action slots in the sequence: none in the autoregressive form."""
        return self.chunk * self.slots_per_step if self.form == "oft" else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"llm": dict(self.llm), "model_type": "vla_prune_openvla"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OpenVLAConfig:
        """The inverse of ``to_dict``; an unknown key is an error."""
        data = {k: v for k, v in data.items() if k != "model_type"}
        _check_keys("config.json", cls, data)
        for tower in data.get("towers", ()):
            _check_keys("config.json: towers", TowerConfig, tower)
        towers = tuple(TowerConfig(**tower) for tower in data.get("towers", ()))
        return cls(**(data | {"towers": towers}))


def _check_keys(where: str, cls: type, data: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(cls)]
    for name in data:
        if name not in known:
            raise did_you_mean(where, "field", name, known)


# timm's ImageNet statistics as bfloat16 stores them, which is how preprocessor_config.json of
# openvla/openvla-7b has them: its conversion script set bfloat16 as the default dtype.
_DINO_MEAN = (0.484375, 0.455078125, 0.40625)
_DINO_STD = (0.228515625, 0.2236328125, 0.224609375)


def _published_towers() -> tuple[TowerConfig, TowerConfig]:
    """DINOv2 ViT-L/14 with 4 registers and SigLIP so400m/14, both at 224 px (timm 0.9.16)."""
    return (
        TowerConfig(
            "dinov2", 224, 14, hidden_size=1024, layers=24, heads=16, mlp_hidden=4096,
            registers=4, mean=_DINO_MEAN, std=_DINO_STD,
        ),
        TowerConfig(
            "siglip", 224, 14, hidden_size=1152, layers=27, heads=16, mlp_hidden=4304
        ),
    )  # fmt: skip


# The text config of openvla/openvla-7b names only the vocabulary and the pad token; the rest are
# LlamaConfig's defaults, so the published model runs with an RMSNorm epsilon of 1e-6.
_LLAMA_7B = {
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 32000,
}


def openvla_7b() -> OpenVLAConfig:
    """openvla/openvla-7b: one view, one action of 7 tokens (Kim et al., arXiv 2406.09246, 3)."""
    return OpenVLAConfig(towers=_published_towers(), llm=dict(_LLAMA_7B), action_vocab=32000)


def openvla_oft_7b() -> OpenVLAConfig:
    """The LIBERO form of OpenVLA-OFT (Kim et al., arXiv 2502.19645, 4): 2 views, 8 actions, L1."""
    return OpenVLAConfig(
        towers=_published_towers(),
        llm=dict(_LLAMA_7B),
        views=("image", "wrist"),
        chunk=8,
        form="oft",
        slots_per_step=7,
        proprio_dim=8,
        action_vocab=32000,
    )
