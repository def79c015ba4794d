"""Images that show none of the known things: what the judge learns to call artifacts.

Each kind is something that steering and unlearning are known to produce: no object, two objects at once, a torn or
melted object, noise, blown-out contrast, an object rubbed out, and decoder output for latents off the data.
Every wreck is made from renders (and, for the last kind, the autoencoder); none is a sample of the diffusion model.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor

Rng = torch.Generator


def _uniform(rng: Rng, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def _smooth(rng: Rng, n: int, channels: int, cells: int, side: int = 64) -> Tensor:
    """(n, channels, side, side) smooth noise of about unit variance, ``cells`` bumps across."""
    coarse = torch.randn(n, channels, cells, cells, generator=rng)
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False) * 1.3


def blends(x: Tensor, rng: Rng) -> Tensor:
    """Two images on top of each other."""
    a = 0.35 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=rng)
    return a * x + (1 - a) * x.roll(1, 0)


def halves(x: Tensor, rng: Rng) -> Tensor:
    """Two images side by side or one above the other, cut in the middle."""
    y, cut = x.clone(), int(_uniform(rng, 28, 36))
    if torch.rand((), generator=rng) < 0.5:
        y[..., cut:] = x.roll(1, 0)[..., cut:]
    else:
        y[..., cut:, :] = x.roll(1, 0)[..., cut:, :]
    return y


def shuffled(x: Tensor, rng: Rng) -> Tensor:
    """Square patches in random order."""
    side = 16 if torch.rand((), generator=rng) < 0.5 else 8
    n, c, h, _ = x.shape
    m = h // side
    patches = x.reshape(n, c, m, side, m, side).permute(2, 4, 0, 1, 3, 5).reshape(m * m, n, c, side, side)
    patches = patches[torch.randperm(m * m, generator=rng)].reshape(m, m, n, c, side, side)
    return patches.permute(2, 3, 0, 4, 1, 5).reshape(x.shape)


def noisy(x: Tensor, rng: Rng) -> Tensor:
    """Noise, fine or coarse, that drowns the image."""
    cells = int(torch.tensor([64, 32, 16, 8])[torch.randint(4, (1,), generator=rng)])
    a = _uniform(rng, 0.6, 1.0)
    return (1 - a) * x + a * _smooth(rng, len(x), 3, cells).clamp(-1.5, 1.5)


def melted(x: Tensor, rng: Rng) -> Tensor:
    """A smooth displacement so strong that the outline is lost."""
    line = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    shift = _smooth(rng, len(x), 2, 6).permute(0, 2, 3, 1) * _uniform(rng, 0.2, 0.35)
    return F.grid_sample(x, grid + shift, mode="bilinear", padding_mode="reflection", align_corners=False)


def blurred(x: Tensor, rng: Rng) -> Tensor:
    """Only the coarsest colours are left."""
    cells = 5 if torch.rand((), generator=rng) < 0.5 else 7
    return F.interpolate(F.adaptive_avg_pool2d(x, cells), size=x.shape[-2:], mode="bicubic", align_corners=False)


def blown(x: Tensor, rng: Rng) -> Tensor:
    """Contrast pushed until everything clips, channel by channel, over coarse noise."""
    return ((x + 0.5 * _smooth(rng, len(x), 3, 8)) * _uniform(rng, 3, 8)).clamp(-1, 1)


def emptied(x: Tensor, rng: Rng) -> Tensor:
    """No object: the border of the image, where there is only background, tiled over it."""
    corner = x[..., :16, :16] if torch.rand((), generator=rng) < 0.5 else x[..., -16:, -16:]
    return corner.repeat(1, 1, 4, 4)


def rubbed(x: Tensor, rng: Rng) -> Tensor:
    """The middle covered by the mean colour of the border: bits of an object stick out at most."""
    y = x.clone()
    low, high = int(_uniform(rng, 6, 14)), int(_uniform(rng, 50, 58))
    y[..., low:high, low:high] = x[..., :6].mean((2, 3), keepdim=True)
    return y


def off_manifold(x: Tensor, rng: Rng, vae: AutoencoderTiny) -> Tensor:
    """Decoded latents that no image has: mixtures, permuted channels or cells, latents drowned in noise."""
    z = vae.encode(x).latents  # type: ignore[union-attr]
    kind, std = int(torch.randint(4, (1,), generator=rng)), z.std()
    if kind == 0:
        z = 0.5 * z + 0.5 * z.roll(1, 0)
    elif kind == 1:
        z = z[:, torch.randperm(z.shape[1], generator=rng)]
    elif kind == 2:
        cells = torch.randperm(z.shape[2] * z.shape[3], generator=rng)
        z = z.flatten(2)[..., cells].view_as(z)
    else:
        a = _uniform(rng, 0.6, 1.0)
        z = (1 - a) * z + a * std * _smooth(rng, len(z), z.shape[1], int(_uniform(rng, 4, 16)), z.shape[-1])
    return vae.decode(z).sample  # type: ignore[union-attr]


PIXEL_WRECKS = (blends, halves, shuffled, noisy, melted, blurred, blown, emptied, rubbed)


def wreck(x: Tensor, rng: Rng, vae: AutoencoderTiny) -> Tensor:
    """Turn images (N, 3, 64, 64) in [-1, 1] into wrecks, eight images a kind drawn at random; values in [-1, 1]."""
    parts = []
    for chunk in x.split(8):
        kind = int(torch.randint(len(PIXEL_WRECKS) + 3, (1,), generator=rng))
        if kind < len(PIXEL_WRECKS):
            y = PIXEL_WRECKS[kind](chunk, rng)
            parts.append(vae.decode(vae.encode(y).latents).sample if kind % 2 else y)  # type: ignore[union-attr]
        else:
            parts.append(off_manifold(chunk, rng, vae))
    return torch.cat(parts).clamp(-1, 1)
