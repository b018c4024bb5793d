"""ReconPruner: which visual tokens are foreground. And the decoder that teaches it.

FastDriveVLA (arXiv 2507.23318), section 3: ``[Q*, V*] = Layer([Q, V])`` with full attention, ``S =
Linear(V* * Q*)``. The layers are transformers' own Qwen2 layers, whose weights are laid out as
Qwen2.5-VL's. No code was published; what the paper leaves open is a field of
:class:`ReconConfig` or :class:`DecoderConfig` with our reason beside it. Knows no images on disk,
no training and no policy.

Example::

    pruner = ReconPruner(ReconConfig(hidden=2048))    # the published size: 77.1 M parameters
    scores = pruner(tokens, places)                             # [B, N, 2048] -> [B, N]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from vla_prune.cost import DecoderShape, layer_macs
from vla_prune.errors import ConfigError, check_least, did_you_mean

POSITIONS = ("mrope", "none")


@dataclass(frozen=True)
class ReconConfig:
    """Sizes of the pruner; those of the paper, for Qwen2.5-VL-3B, unless others are given.

    Attributes:
        hidden: width; that of the vision encoder's tokens.
        ffn: width of the gated feed-forward.
        heads: attention heads.
        kv_heads: key/value heads.
        positions: ``mrope``: visual tokens are rotated by row and column as in Qwen2.5-VL, the
            query is not, so that it is equally near to all; ``none``: no rotation, for encoders
            that are trusted to write places into their tokens. The paper does not say.
        rope_theta: base of the rotation; Qwen2.5's.
        norm_eps: of the RMS norms; Qwen2.5's.
        query_std: of the query's first values. The paper does not say; 0.02 is the host's own
            initialisation. Narrow models learn sooner from larger ones.
        scorer_std: of the scorer's first weights; its bias starts at 0. Small, so that scores
            start near 0 with mixed signs and both pictures get some tokens.
    """

    hidden: int
    ffn: int = 11008
    heads: int = 16
    kv_heads: int = 2
    positions: str = "mrope"
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    query_std: float = 0.02
    scorer_std: float = 0.02

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        if self.positions not in POSITIONS:
            raise did_you_mean("recon model", "positions", self.positions, POSITIONS)
        where = "recon model"
        check_least(where, 1, hidden=self.hidden, ffn=self.ffn)
        check_least(where, 1, heads=self.heads, kv_heads=self.kv_heads)
        check_least(where, 0, True, rope_theta=self.rope_theta, norm_eps=self.norm_eps)
        check_least(where, 0, query_std=self.query_std, scorer_std=self.scorer_std)
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ConfigError(
                f"recon model: {self.heads} heads with {self.kv_heads} key/value heads do not fit "
                f"width {self.hidden}; give heads that divide the width, and key/value heads that "
                "divide the heads."
            )
        if self.hidden // self.heads % 2:
            raise ConfigError(
                f"recon model: heads are {self.hidden // self.heads} wide, an odd number, which "
                "no rotation fits; give another number of heads."
            )


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the reconstruction decoder, which exists only in training.

    Attributes:
        layers: six in the paper. One or two are enough for small pictures.
        ffn: of its layers; None is the pruner's.
        head_hidden: hidden width of the head ("feed-forward head" in the paper); None is a single
            linear map from a token to its pixels.
        shared: one decoder redraws both pictures (a single D in the paper's equations).
        pixels: side of a token in the redrawn picture; None is the encoder's patch. The paper does
            not say at what resolution it trained, but its time allows less than the full one.
        causal: the paper says "decoder layers" and not whether they look ahead; a picture has no
            order, so they do unless this is set.
        filler_std: of the first values of a learned vector that is added to every token, so that a
            dropped one is not zero; 0 adds none, as in the paper. Layers begin with an RMS norm,
            which divides by a token's length: without the vector, how much of a kept token is let
            through changes nothing, at a dropped one the gradient is a thousand times as large,
            and the scorer learns the contrary of what it should (pocket-drive, 250 steps: average
            precision 0.16, with the vector 0.98). It should be some times as long as a token
            (values of 1 to 2 in the pocket encoders), so that the norm hardly sees the mask: at
            0.5, pocket-libero-spatial's fell from 0.92 to 0.50 within 500 steps; at 4 it rose to
            0.99 and stayed (both with a ``pace`` of 0.2).
    """

    layers: int = 6
    ffn: int | None = None
    head_hidden: int | None = None
    shared: bool = True
    pixels: int | None = None
    causal: bool = False
    filler_std: float = 4.0

    def __post_init__(self) -> None:
        """Refuse sizes that are none."""
        check_least("recon decoder", 1, layers=self.layers, ffn=self.ffn)
        check_least("recon decoder", 1, head_hidden=self.head_hidden, pixels=self.pixels)
        check_least("recon decoder", 0, filler_std=self.filler_std)


class FullAttentionLayer(nn.Module):
    """One Qwen2 decoder layer in which every token sees every other, unless ``causal``."""

    def __init__(self, config: ReconConfig, ffn: int | None = None, causal: bool = False) -> None:
        """Random weights, normal of 0.02 as the host's."""
        super().__init__()
        qwen = Qwen2Config(
            hidden_size=config.hidden,
            intermediate_size=ffn or config.ffn,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            num_hidden_layers=1,
            rms_norm_eps=config.norm_eps,
            attn_implementation="sdpa",
        )
        self.layer = Qwen2DecoderLayer(qwen, 0)
        self.layer.self_attn.is_causal = causal
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """``[B, S, D]`` -> the same.

        Args:
            x: tokens.
            rotation: cosine and sine, ``[B, S, head]`` each.
            mask: ``[B, 1, S, S]`` bool, True where a row may look.
        """
        return self.layer(x, attention_mask=mask, position_embeddings=rotation)


class ReconPruner(nn.Module):
    """Scores of visual tokens. Query, one layer and one linear map, as in the paper."""

    def __init__(self, config: ReconConfig) -> None:
        """Random weights."""
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.randn(1, 1, config.hidden) * config.query_std)
        self.layer = FullAttentionLayer(config)
        self.scorer = nn.Linear(config.hidden, 1)
        nn.init.normal_(self.scorer.weight, std=config.scorer_std)
        nn.init.zeros_(self.scorer.bias)

    def forward(self, tokens: Tensor, places: Tensor, views: int = 1) -> Tensor:
        """``[B, N]``, unbounded; the sign is the paper's foreground threshold.

        Args:
            tokens: ``[B, N, D]`` as they left the vision encoder.
            places: ``[B, N, 3]`` int64 view, row and column of each.
            views: how many views there are. Each has a query of its own and sees only itself.
        """
        x = tokens.to(self.query.dtype)
        batch = x.shape[0]
        x = torch.cat([self.query.expand(batch, views, -1), x], dim=1)  # [B, V + N, D]
        first = torch.zeros(batch, views, 2, dtype=places.dtype, device=places.device)
        spots = torch.cat([first, places[..., 1:]], dim=1)
        cos, sin = rotation(self.config, spots, x.dtype)
        turned = torch.arange(x.shape[1], device=x.device)[None, :, None] >= views
        cos, sin = cos.where(turned, 1.0), sin.where(turned, 0.0)  # queries are not rotated
        mask = None
        which = places[..., 0]  # [B, N]
        if views > 1:
            own = torch.arange(views, device=places.device).expand(batch, views)
            owner = torch.cat([own, which], dim=1)
            mask = (owner[:, :, None] == owner[:, None, :])[:, None]
        x = self.layer(x, (cos, sin), mask)
        query, seen = x[:, :views], x[:, views:]
        if views > 1:
            query = query.gather(1, which[..., None].expand(-1, -1, query.shape[-1]))
        return self.scorer(seen * query)[..., 0]


class PixelDecoder(nn.Module):
    """Redraws a picture from tokens of which some are zero."""

    def __init__(
        self, config: ReconConfig, decoder: DecoderConfig, patch: int, channels: int = 3
    ) -> None:
        """Random weights.

        Args:
            config: of the pruner, whose width and heads it shares.
            decoder: its own sizes.
            patch: side of a token, pixels.
            channels: of the picture; 1 where it draws masks.
        """
        super().__init__()
        self.config, self.patch, self.channels = config, patch, channels
        self.filler = (
            nn.Parameter(torch.randn(config.hidden) * decoder.filler_std)
            if decoder.filler_std
            else None
        )
        self.layers = nn.ModuleList(
            FullAttentionLayer(config, decoder.ffn, decoder.causal) for _ in range(decoder.layers)
        )
        self.norm = Qwen2RMSNorm(config.hidden, config.norm_eps)
        pixels = channels * patch * patch
        hidden = decoder.head_hidden
        self.head: nn.Module = (
            nn.Linear(config.hidden, pixels)
            if hidden is None
            else nn.Sequential(
                nn.Linear(config.hidden, hidden), nn.GELU(), nn.Linear(hidden, pixels)
            )
        )

    def forward(self, tokens: Tensor, places: Tensor, rows: int, cols: int) -> Tensor:
        """All ``rows * cols`` tokens of one view each, raster order, to ``[B, C, H, W]``."""
        turn = rotation(self.config, places[..., 1:], tokens.dtype)
        if self.filler is not None:
            tokens = tokens + self.filler.to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, turn)
        return unpatchify(self.head(self.norm(tokens)), rows, cols, self.patch)


def straight_through(scores: Tensor, surrogate: str = "sigmoid") -> Tensor:
    """The sign mask ``1 if S > 0 else 0``, with a gradient (Bengio et al., 2013).

    Tokens must be *multiplied* by it; to pick tokens by it passes no gradient on.

    Args:
        scores: any shape.
        surrogate: whose gradient it has: ``identity``, that of ``S`` itself, or ``sigmoid``, that
            of a sigmoid that is as steep at 0.
    """
    smooth = scores if surrogate == "identity" else 4.0 * torch.sigmoid(scores)
    return smooth + ((scores > 0).to(scores.dtype) - smooth).detach()


def rotation(config: ReconConfig, spots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every token's rotary angles, ``[B, S, head]`` each.

    Qwen2.5-VL's M-RoPE (arXiv 2502.13923, 2.1): of the frequencies, from fast to slow, a quarter
    turns with time (0 in a picture), the next three eighths with the row, the rest with the
    column.

    Args:
        config: width, heads and base.
        spots: ``[B, S, 2]`` rows and columns.
        dtype: of the result.
    """
    half = config.hidden // config.heads // 2
    still = half // 4
    by_row = (half - still) // 2
    steps = torch.arange(half, device=spots.device, dtype=torch.float32)
    frequency = config.rope_theta ** (-steps / half)
    turns = torch.cat(
        [
            torch.zeros(*spots.shape[:2], still, device=spots.device),
            spots[..., :1].float().expand(-1, -1, by_row),
            spots[..., 1:].float().expand(-1, -1, half - still - by_row),
        ],
        dim=-1,
    )
    angle = turns * frequency * float(config.positions == "mrope")
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def unpatchify(patches: Tensor, rows: int, cols: int, patch: int) -> Tensor:
    """``[B, rows * cols, C * patch * patch]`` -> ``[B, C, rows * patch, cols * patch]``."""
    batch = patches.shape[0]
    x = patches.view(batch, rows, cols, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * patch, cols * patch)


def grid_places(batch: int, rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """View (0), row and column of all tokens of one picture: ``[B, n, 3]``."""
    row = torch.arange(rows, device=device).repeat_interleave(cols)
    col = torch.arange(cols, device=device).repeat(rows)
    return torch.stack([torch.zeros_like(row), row, col], dim=1).expand(batch, -1, -1)


def recon_macs(config: ReconConfig, tokens: int, views: int = 1) -> float:
    """Multiply-accumulates of scoring ``tokens`` tokens in all; the top-k is not counted.

    Counted as the attention runs, over all views at once.
    """
    shape = DecoderShape(1, config.hidden, config.ffn, config.kv_heads / config.heads)
    return layer_macs(tokens + views, shape) + 2.0 * tokens * config.hidden
