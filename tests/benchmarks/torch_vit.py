"""A vision transformer in PyTorch, to compare with: blocks that normalise first, fused attention."""

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn


class Block(nn.Module):
    """Attention and MLP, each behind a layer normalisation and beside a shortcut: BxTxD to the same."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, dim // self.heads)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images to the class token: Bx3xSxS to BxDx1x1, as a ResNet's pooled map; positions have any fixed values."""

    def __init__(self, side: int, dim: int, depth: int, heads: int, patch: int, mlp_ratio: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch).requires_grad_(False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", torch.randn(1, 1 + (side // patch) ** 2, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio * dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1) + self.positions
        return self.norm(self.blocks(x)[:, 0])[:, :, None, None]
