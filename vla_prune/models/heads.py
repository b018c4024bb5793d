"""The small networks around the decoder: projectors and the L1 action head.

Shapes and order follow openvla/openvla (projector) and moojink/openvla-oft (proprio projector,
action head); parameter names are the published ones, so that loading them is a change of prefix.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Module):
    """Vision features to decoder width: three layers for joined towers, two for a single one.

    Prismatic VLMs (Karamcheti et al., arXiv 2402.07865, 3): with joined towers the first layer
    widens to four times the vision width.
    """

    def __init__(self, vision_dim: int, llm_dim: int, fused: bool) -> None:
        """``fused``: features of more than one tower, joined by channel."""
        super().__init__()
        inner = 4 * vision_dim if fused else llm_dim
        self.fc1 = nn.Linear(vision_dim, inner)
        self.fc2 = nn.Linear(inner, llm_dim)
        self.fc3 = nn.Linear(llm_dim, llm_dim) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """``[B, N, vision_dim]`` -> ``[B, N, llm_dim]``."""
        x = self.fc2(F.gelu(self.fc1(features)))
        return x if self.fc3 is None else self.fc3(F.gelu(x))


class ProprioProjector(nn.Module):
    """Robot state, normalised to [-1, 1], to one token (arXiv 2502.19645, 4)."""

    def __init__(self, proprio_dim: int, llm_dim: int) -> None:
        """Two layers."""
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, llm_dim)
        self.fc2 = nn.Linear(llm_dim, llm_dim)

    def forward(self, proprio: Tensor) -> Tensor:
        """``[B, P]`` -> ``[B, D]``."""
        return self.fc2(F.gelu(self.fc1(proprio)))


class ActionHead(nn.Module):
    """The residual MLP that reads one time step's slots and gives its action, trained by L1.

    OpenVLA-OFT (arXiv 2502.19645, 4): a four-layer ReLU MLP; here with the norms and the two
    residual blocks of its source.
    """

    def __init__(self, input_dim: int, hidden: int, action_dim: int, blocks: int = 2) -> None:
        """``input_dim``: slots per step times the decoder's width."""
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(input_dim)
        self.fc1 = nn.Linear(input_dim, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, chunk, input_dim]`` -> ``[B, chunk, action_dim]``, normalised."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = x + block(x)
        return self.fc2(self.layer_norm2(x))


class _ResidualBlock(nn.Module):
    """Norm, linear, ReLU; the names ``ffn.0`` and ``ffn.1`` are the published ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(x)
