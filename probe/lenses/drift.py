"""How fast a site's activations change from step to step (Li et al. 2023, "Faster Diffusion", arXiv 2312.09608, found
the encoder's to change gently and the decoder's strongly).

For a generation with rows x_s (one a sample and token) at step s,

    cosine(s, t) = mean over rows of <x_s, x_t> / |x_s| |x_t|
    CKA(s, t)    = |Xc_s^T Xc_t|_F^2 / (|Xc_s^T Xc_s|_F |Xc_t^T Xc_t|_F),   Xc the rows less their mean

The cosine sees every change, also one shared by all rows; linear CKA (Kornblith et al. 2019) only asks whether the rows
keep their geometry, and is blind to rotation, scale and shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from probe.capture.sites import Site, resolve_sites
from probe.errors import InvalidRequest
from probe.interventions.patching import record_run
from probe.model.generate import generation_defaults
from probe.model.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Drift:
    """Likeness between steps.

    Attributes:
        cosine: for each site (samples, steps, steps).
        cka: for each site (steps, steps), over all samples.
        timesteps: of the steps.
    """

    cosine: dict[str, np.ndarray]
    cka: dict[str, np.ndarray]
    timesteps: tuple[int, ...]

    def between_neighbours(self) -> dict[str, np.ndarray]:
        """For each site (samples, steps - 1): 1 - cosine of a step and the next."""
        return {site: 1.0 - np.diagonal(c, 1, 1, 2) for site, c in self.cosine.items()}


def drift(
    pipe: Pipeline,
    sites: str | Site | Sequence[str | Site],
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    branch: str = "cond",
) -> Drift:
    """Compare a site's activations between all steps of a generation.

    Args:
        pipe: the pipeline.
        sites: modules of the denoiser.
        prompts, seeds: one batch; its rows are kept in memory, 4 bytes a number, one site at a time.
        steps, guidance: as ``generate``.
        branch: the guidance branch that is compared.

    Raises:
        InvalidRequest: the branch is not computed.

    Cost: one generation a site.

    Example:
        >>> from probe.lenses import drift
        >>> from probe.model import load_pipeline
        >>> found = drift(load_pipeline("canvas"), "mid_block", ["a red star in flat style"], [0], steps=4)
        >>> found.cka["unet.mid_block:out"].shape
        (4, 4)
    """
    default = generation_defaults(pipe)
    steps, guidance = steps or default.steps, default.guidance if guidance is None else guidance
    cosine: dict[str, np.ndarray] = {}
    cka: dict[str, np.ndarray] = {}
    timesteps: tuple[int, ...] = ()
    for site in resolve_sites(pipe, sites):
        found = record_run(pipe, site, prompts, seeds, steps=steps, guidance=guidance)[site]
        if branch not in found.branches:
            raise InvalidRequest(f"drift: branch {branch!r}; this generation computes {'+'.join(found.branches)}.")
        rows = found.value[:, found.branches.index(branch)]  # (steps, samples, tokens, channels)
        cosine[str(site)] = step_cosines(rows).numpy()
        cka[str(site)] = linear_cka(rows.flatten(1, 2)).numpy()
        timesteps = found.timesteps or ()
    return Drift(cosine, cka, timesteps)


def step_cosines(rows: torch.Tensor) -> torch.Tensor:
    """(samples, steps, steps) mean cosine over tokens, from rows (steps, samples, tokens, channels)."""
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    return torch.einsum("snkc,tnkc->nst", unit, unit) / rows.shape[2]


def linear_cka(rows: torch.Tensor) -> torch.Tensor:
    """(steps, steps) linear CKA of rows (steps, rows, channels)."""
    x = rows.double() - rows.double().mean(1, keepdim=True)
    n = len(x)
    cross = torch.stack([torch.stack([(x[s].T @ x[t]).square().sum() for t in range(n)]) for s in range(n)])
    scale = cross.diagonal().sqrt()
    return cross / (scale[:, None] * scale).clamp_min(torch.finfo(torch.float64).tiny)
