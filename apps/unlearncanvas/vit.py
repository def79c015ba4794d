"""A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) under the tensor names of timm's checkpoints.

    x_0  = [class; E patch_1; ...; E patch_n] + positions
    x'_l = x_l + Attention(LN x_l),    x_l+1 = x'_l + W_2 gelu(W_1 LN x'_l)
    logits = W LN(x_L)[class]

UnlearnCanvas's classifiers are ViT-L/16 at 224 pixels. Their files say nothing of their shape, so width, depth, patch,
picture size and number of labels are read from the tensors; a head has 64 channels, as in that paper up to ViT-L.
Only safetensors is read. The published files are pickles, which may run any code: convert one once, by

    python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in torch.load(
    'style50.pth', map_location='cpu', weights_only=True)['model_state_dict'].items()}, 'style.safetensors')"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from apps.errors import InvalidFile

HEAD_WIDTH = 64
_EPS = 1e-6  # timm's, where torch's own default is 1e-5
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in torch.load('
    "'{source}', map_location='cpu', weights_only=True)['model_state_dict'].items()}}, '{target}')\""
)


class Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n, width) to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two layers on every token."""

    def __init__(self, width: int, n_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=_EPS), nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, n_heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n, width) to the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class ViT(nn.Module):
    """The classifier.

    Args:
        side: of the picture, in pixels; ``patch`` divides it.
        patch: side of a patch.
        width: channels of a token, a multiple of 64.
        depth: blocks.
        hidden: channels between a block's two layers.
        n_labels: outputs.
    """

    def __init__(self, side: int, patch: int, width: int, depth: int, hidden: int, n_labels: int) -> None:
        super().__init__()
        self.side = side
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList([Block(width, width // HEAD_WIDTH, hidden) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, n_labels)

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a safetensors file with timm's names.

        Raises:
            FileNotFoundError: there is none; the message says how a pickle beside it is converted.
            InvalidFile: it is no such classifier.
        """
        if not path.is_file():
            pickles = sorted(p for p in path.parent.glob("*.pt*")) if path.parent.is_dir() else []
            source = pickles[0].as_posix() if pickles else "CHECKPOINT.pth"
            raise FileNotFoundError(
                f"classifier: there is no {str(path)!r}. The published file is a pickle, which is not read here; "
                f"convert it once: {_CONVERT.format(source=source, target=path.as_posix())}"
            )
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise InvalidFile(f"classifier {str(path)!r} is not a safetensors file: {error}.") from error
        net = cls(*_shape(tensors, path))
        wrong = net.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
        if wrong.missing_keys or wrong.unexpected_keys:
            raise InvalidFile(
                f"classifier {str(path)!r}: missing {', '.join(wrong.missing_keys[:3]) or 'nothing'}, not expected "
                f"{', '.join(wrong.unexpected_keys[:3]) or 'nothing'}; expected a ViT with timm's names."
            )
        return net.eval().requires_grad_(False)

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """The class token before the head: (B, 3, side, side) in [-1, 1] to (B, width)."""
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, n_labels)."""
        return self.head(self.tokens(pixels))


def to_pixels(images: np.ndarray, side: int) -> torch.Tensor:
    """Images as the classifiers were trained on them: scaled to a square (bilinear), mean and deviation 0.5.

    Args:
        images: uint8 (N, H, W, 3).
        side: of the result.

    Returns:
        float32 (N, 3, side, side) in [-1, 1].
    """
    scaled = [np.asarray(Image.fromarray(i).resize((side, side), Image.Resampling.BILINEAR)) for i in images]
    return torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _shape(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[int, int, int, int, int, int]:
    """Arguments of ``ViT``, from a checkpoint's tensors."""
    depth = len({m[1] for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))})
    try:
        width, patch = tensors["patch_embed.proj.weight"].shape[0], tensors["patch_embed.proj.weight"].shape[2]
        cells = tensors["pos_embed"].shape[1] - 1
        hidden, n_labels = tensors["blocks.0.mlp.fc1.weight"].shape[0], tensors["head.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise InvalidFile(f"classifier {str(path)!r} has no {error}; expected a ViT with timm's names.") from error
    if round(cells**0.5) ** 2 != cells or width % HEAD_WIDTH:
        raise InvalidFile(
            f"classifier {str(path)!r}: {cells} cells and width {width}; expected a square and a multiple of 64."
        )
    return round(cells**0.5) * patch, patch, width, depth, hidden, n_labels
