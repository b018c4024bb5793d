"""What the pruner is taught by: two pictures redrawn from two halves of the tokens.

FastDriveVLA (arXiv 2507.23318), section 3.3, "adversarial foreground-background reconstruction":
the foreground is redrawn from the tokens that score above zero and the background from the others,
by one decoder. With the foreground alone, scoring everything positive would be the best answer.
Knows no files and no optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_prune.adapters.encoder import EncoderSpec
from vla_prune.errors import ConfigError, MissingError, check_least, did_you_mean
from vla_prune.recon.model import (
    DecoderConfig,
    PixelDecoder,
    ReconConfig,
    ReconPruner,
    grid_places,
    straight_through,
)

OBJECTIVES = ("adversarial", "foreground_only", "mask_pair", "mask_head")
SURROGATES = ("sigmoid", "identity")
IGNORE = 2  # of a mask or label: neither foreground nor background


@dataclass(frozen=True)
class LossConfig:
    """What is compared, and how.

    Attributes:
        objective: ``adversarial`` is the paper's. Its ablations: ``foreground_only`` redraws the
            foreground without the rival; ``mask_pair`` keeps the rivals but draws masks instead of
            pixels; ``mask_head`` asks the scores themselves for the mask of each token.
        ssim: lambda, the share of 1 - SSIM against the squared error; 0.2 in the paper.
        alpha: share of the foreground picture; 0.5 in the paper.
        blank: value of blanked pixels, in normalised units. The paper does not say; 0 is the mean
            picture, which a decoder draws from nothing at all.
        mean: of the pixel normalisation, by channel; the host's own is not needed, since the
            decoder is thrown away.
        std: likewise.
        surrogate: what passes the mask's gradient on (`model.straight_through`). The paper says
            straight-through alone. With the identity nothing holds the scores: a sign has no size,
            they grew to 1e9 within 300 steps of pocket-drive, and the gradient's norm, which is
            clipped over the whole network, left nothing for the decoder. A sigmoid's gradient ends
            where a score is sure.
        window: side of SSIM's Gaussian window, pixels, sigma 1.5; 11 is SSIM's own (Wang et al.,
            2004), on pixels in [0, 1].
    """

    objective: str = "adversarial"
    ssim: float = 0.2
    alpha: float = 0.5
    blank: float = 0.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    surrogate: str = "sigmoid"
    window: int = 11

    def __post_init__(self) -> None:
        """Refuse unknown objectives and shares outside [0, 1]."""
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.objective not in OBJECTIVES:
            raise did_you_mean("recon loss", "objective", self.objective, OBJECTIVES)
        if self.surrogate not in SURROGATES:
            raise did_you_mean("recon loss", "surrogate", self.surrogate, SURROGATES)
        for name in ("ssim", "alpha"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"recon loss: {name} is {getattr(self, name)}; it is a share, 0 to 1."
                )
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(
                    f"recon loss: {name} is {getattr(self, name)}; give three numbers, one for "
                    "each channel."
                )
        check_least("recon loss", 0, above=True, std=min(self.std))
        check_least("recon loss", 1, window=self.window)
        if self.window % 2 == 0:
            raise ConfigError(f"recon loss: window {self.window} is even; give an odd number.")


class Reconstruction(nn.Module):
    """The pruner and, for training alone, its decoders; the forward pass gives the losses."""

    def __init__(
        self, model: ReconConfig, decoder: DecoderConfig, loss: LossConfig, encoder: EncoderSpec
    ) -> None:
        """Random weights.

        Args:
            model: of the pruner.
            decoder: of the decoder.
            loss: what is compared.
            encoder: whose tokens these are.
        """
        super().__init__()
        self.pixels = decoder.pixels or encoder.patch
        least = min(encoder.rows, encoder.cols) * self.pixels
        if loss.window > least:
            raise ConfigError(
                f"recon loss: window {loss.window} is larger than the picture ({least} pixels); "
                "give a smaller one."
            )
        self.loss, self.encoder = loss, encoder
        self.pruner = ReconPruner(model)
        channels = 1 if loss.objective == "mask_pair" else 3
        one = decoder.shared or loss.objective == "foreground_only"
        count = 0 if loss.objective == "mask_head" else 1 if one else 2
        self.decoders = nn.ModuleList(
            PixelDecoder(model, decoder, self.pixels, channels) for _ in range(count)
        )

    def forward(
        self, tokens: Tensor, images: Tensor, masks: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Losses and what is good to know.

        Args:
            tokens: ``[B, n, D]`` of the frozen encoder.
            images: ``[B, 3, H, W]`` float in [0, 1].
            masks: ``[B, H, W]`` 0 background, 1 foreground, 2 ignore.
            labels: ``[B, n]`` the same for each token.

        Returns:
            ``loss``, scalars to log, and ``scores`` ``[B, n]``.
        """
        places = grid_places(len(tokens), self.encoder.rows, self.encoder.cols, tokens.device)
        scores = self.pruner(tokens, places)
        told = {"foreground_ratio": (scores > 0).float().mean()}
        if self.loss.objective == "mask_head":
            counted = (labels != IGNORE).float()
            error = F.binary_cross_entropy_with_logits(
                scores.float(), (labels == 1).float(), reduction="none"
            )
            loss = (error * counted).sum() / counted.sum().clamp_min(1.0)
            return {"loss": loss, "scores": scores, **told}
        size = (self.encoder.rows * self.pixels, self.encoder.cols * self.pixels)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="area")
            masks = F.interpolate(masks[:, None], size, mode="nearest-exact")[:, 0]
        alpha = 1.0 if self.loss.objective == "foreground_only" else self.loss.alpha
        gate = straight_through(scores, self.loss.surrogate)[..., None]
        loss = scores.new_zeros(())
        for name, share, half, shown, decoder in (
            ("fore", alpha, gate, masks == 1, self.decoders[0]),
            ("back", 1.0 - alpha, 1.0 - gate, masks == 0, self.decoders[-1]),
        ):
            if share == 0.0:
                continue
            drawn = decoder(tokens * half, places, self.encoder.rows, self.encoder.cols).float()
            if self.loss.objective == "mask_pair":
                part, more = self._mask_loss(drawn[:, 0], shown, masks != IGNORE)
            else:
                part, more = self._pixel_loss(drawn, images, shown, masks != IGNORE)
            loss = loss + share * part
            told |= {f"{key}_{name}": value for key, value in more.items()}
        return {"loss": loss, "scores": scores, **told}

    def _pixel_loss(
        self, drawn: Tensor, images: Tensor, shown: Tensor, counted: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``lambda (1 - SSIM) + (1 - lambda) MSE``: errors in normalised units, SSIM on pixels."""
        mean = images.new_tensor(self.loss.mean).view(3, 1, 1)
        std = images.new_tensor(self.loss.std).view(3, 1, 1)
        wanted = torch.where(shown[:, None], (images - mean) / std, self.loss.blank)
        drawn = torch.where(counted[:, None], drawn, wanted)
        squared = (drawn - wanted).square().mean()
        pixels, target = drawn * std + mean, wanted * std + mean
        similar = ssim(pixels, target, self.loss.window)
        loss = self.loss.ssim * (1.0 - similar) + (1.0 - self.loss.ssim) * squared
        psnr = -10.0 * (pixels - target).square().mean().clamp_min(1e-10).log10()
        return loss, {"loss": loss.detach(), "psnr": psnr.detach(), "ssim": similar.detach()}

    def _mask_loss(
        self, drawn: Tensor, shown: Tensor, counted: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        error = F.binary_cross_entropy_with_logits(drawn, shown.float(), reduction="none")
        loss = (error * counted).sum() / counted.sum().clamp_min(1)
        return loss, {"loss": loss.detach()}


def ssim(drawn: Tensor, target: Tensor, window: int) -> Tensor:
    """Structural similarity of pictures in [0, 1], mean over all, by pytorch-msssim."""
    try:
        from pytorch_msssim import ssim as structural
    except ImportError as error:
        raise MissingError(
            "recon losses need pytorch-msssim; pip install 'vla-prune[train]'."
        ) from error
    return structural(drawn, target, data_range=1.0, win_size=window, win_sigma=1.5)
