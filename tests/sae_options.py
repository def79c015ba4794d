"""Small dictionaries with every option, off their initial values, for the tests of `sae` and of interventions."""

from typing import Any

import torch

from sae import SAEConfig, make_sae
from sae.architectures.film import FilmSAE
from sae.architectures.inputs import Moments
from sae.architectures.jumprelu import JumpReLUSAE
from sae.architectures.make import Dictionary
from sae.architectures.residual import Predictor, ResidualSAE
from sae.architectures.timed import TimedSAE

LEVELS = (-8.0, -2.0, 0.5, 3.0)
TIMES: dict[str, dict[str, Any]] = {
    "per_step": {"time": "per_step", "levels": LEVELS, "groups": (0, 0, 1, 2)},
    "film": {"time": "film", "levels": LEVELS},
    "residual": {"time": "residual", "levels": LEVELS},
}


def rows(d: int, n: int = 60, seed: int = 0) -> torch.Tensor:
    """(n, d) correlated float64 rows with a mean."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    return torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + torch.linspace(-2, 3, d)


def moments(x: torch.Tensor) -> Moments:
    """Of rows (n, d)."""
    centred = x - x.mean(0)
    return Moments(x.mean(0), centred.T @ centred / len(x))


def made(
    architecture: str = "topk",
    *,
    d: int = 6,
    m: int = 24,
    k: int = 3,
    seed: int = 0,
    input: str = "raw",
    time: str = "shared",
    **options: Any,
) -> Dictionary:
    """A float64 dictionary that was fitted to `rows(d)` and then moved off its initial symmetry."""
    g = torch.Generator().manual_seed(seed + 1)
    x = rows(d)
    how = TIMES.get(time, {})
    own = {"architecture": architecture, "aux_alpha": 0.3, "k_aux": 3, "bandwidth": 0.4, "input": input}
    config = SAEConfig(d, m, k, **{**own, **how, **options})
    sae = make_sae(config, seed=seed).double()
    levels = torch.tensor(LEVELS, dtype=torch.float64)[torch.arange(len(x)) % len(LEVELS)]
    if isinstance(sae, ResidualSAE):
        a = 0.4 * torch.randn(len(LEVELS), d, d, generator=g, dtype=torch.float64)
        a[0] = 0
        sae.set_predictor(Predictor(a, torch.randn(len(LEVELS), d, generator=g, dtype=torch.float64)))
    sae.fit([moments(x)] * len(sae.cores) if isinstance(sae, TimedSAE) else moments(x))  # type: ignore[arg-type]
    sae.initialise(torch.cat([x, x.flip(0)], 1) if isinstance(sae, ResidualSAE) else x, levels)
    with torch.no_grad():
        for core in sae.cores if isinstance(sae, TimedSAE) else [sae]:
            core.W_enc.add_(0.2 * torch.randn(core.W_enc.shape, generator=g))
            core.b_enc.add_(0.1 * torch.randn(core.b_enc.shape, generator=g))
            if not core.input.fixes_bias:
                core.b_dec.add_(0.1 * torch.randn(d, generator=g))
            if isinstance(core, JumpReLUSAE):
                core.log_threshold.add_(0.3 * torch.randn(core.log_threshold.shape, generator=g))
        if isinstance(sae, FilmSAE):
            for name in ("w2", "b2"):
                sae.network[name].add_(0.2 * torch.randn(sae.network[name].shape, generator=g))
    return sae
