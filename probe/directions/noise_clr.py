"""Directions of the text embedding found without labels or words, by contrast of what they do to the noise.

Dalva and Yanardag 2024 (NoiseCLR, https://arxiv.org/abs/2312.05390). K vectors d_k are added to the embedding of the
empty prompt. What one of them does to a noisy sample z_n is

    f_{k,n} = eps(z_n, a, null + d_k) - eps(z_n, a, null)

A direction should do the same to all samples, and another thing than the other directions do. With s the cosine of two
changes and temperature tau, over a batch that shares one level,

    L_k = - log  mean_{n<m} exp(s(f_{k,n}, f_{k,m}) / tau)  /  mean_{j != k, n} exp(s(f_{k,n}, f_{j,n}) / tau)

If changes did not depend on the sample, the best K of them would be the corners of a simplex, s = -1 / (K - 1), and
L = -(1 + 1 / (K - 1)) / tau. Of an iteration's directions every one takes its turn as k, and the mean of their losses
is what falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F

from probe.directions.direction import Direction
from probe.directions.optimised import OptimisedFinder, Progress, site_example, vector_shape
from probe.directions.points import added, site_of
from probe.errors import InvalidDirection
from probe.interventions import Guide, Intervention
from probe.interventions.guide import text_embedding
from probe.model.eps_model import noised
from probe.model.pipeline_eps import PipelineEps


@dataclass(kw_only=True, eq=False)
class NoiseCLR(OptimisedFinder):
    """Contrastive directions. Needs a pipeline with a text embedding, and samples of a domain, without labels.

    Attributes:
        k: directions.
        at_once: of them, how many take part in an iteration; the denoiser is called for ``batch * (at_once + 1)``.
        view: ``tokens``, one vector (d,) for all tokens of the embedding; ``map``, a vector for each token.
        tau: temperature.
        start: length of the first vectors over that of the embedding.

    After ``fit``: as ``OptimisedFinder``; ``direction_`` at ``unet:prompt`` with k vectors, frame global, whose scale
    is their length. The paper's edit is ``guide``: a term beside the prompt's own. ``direction_.intervention`` adds
    the same vector to the prompt's embedding instead.

    Example:
        >>> from probe.directions import NoiseCLR, self_generated
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> x = self_generated(model, ["a red star", "a blue cup", "a green fish"], range(3))
        >>> found = NoiseCLR(k=2, at_once=2, batch=3, iterations=2).fit(model, x)
        >>> edit = found.guide(model, component=0, strength=3.0, steps=range(1, 4))
        >>> images = generate(model.pipe, ["a red star"], [0], steps=5, interventions=[edit])
    """

    k: int = 8
    at_once: int = 4
    batch: int = 4
    view: Literal["tokens", "map"] = "tokens"
    tau: float = 0.5
    start: float = 0.3

    def fit(self, model: PipelineEps, x: torch.Tensor, progress: Progress | None = None) -> Self:
        """Train the vectors.

        Args:
            model: the pipeline.
            x: (N, *sample_shape), N >= ``batch``.
            progress: called with (done, total).

        Raises:
            InvalidDirection: fewer than two directions or samples at a time, or samples that do not fit.
        """
        levels, x = self._levels(model), self._samples(model, x, self.batch)
        if not 2 <= self.at_once <= self.k or self.batch < 2 or not self.tau > 0:
            raise InvalidDirection(
                f"NoiseCLR: {self.at_once} of {self.k} directions at once, batch {self.batch}, tau {self.tau}; "
                "expected at least two of each at once, and tau above 0."
            )
        site, generator = site_of(model, "unet:prompt"), self._generator()
        example = site_example(model, "unet:prompt")
        size = float(example.square().mean().sqrt())
        shape = vector_shape(example, self.view)[1:]
        d = self.start * size * torch.randn(self.k, *shape, generator=generator)
        d = d.to(model.device).requires_grad_()

        def loss() -> torch.Tensor:
            index = torch.randperm(len(x), generator=generator)[: self.batch]
            a = levels[int(torch.randint(len(levels), (1,), generator=generator))]
            z = noised(x[index], torch.randn(self.batch, *x.shape[1:], generator=generator).to(x), a)
            chosen = torch.randperm(self.k, generator=generator)[: self.at_once]
            shift = d[chosen].repeat_interleave(self.batch, 0)
            with torch.no_grad():
                null = model.eps(z, a)
            with added(model, site, shift):
                eps = model.eps(z.repeat(self.at_once, *(1,) * (z.ndim - 1)), a)
            f = eps.unflatten(0, (self.at_once, self.batch)) - null
            return contrast(f.flatten(2), self.tau)

        self._descend([d], loss, progress, rate=size)
        basis = d.detach()[None] if self.view == "map" else d.detach()[None, :, 0]
        self.direction_ = Direction(str(site), basis, basis.flatten(2).norm(dim=-1), provenance=self._about(model, x=x))
        return self

    def guide(
        self, model: PipelineEps, component: int = 0, strength: float = 1.0, *, steps: range | None = None
    ) -> Intervention:
        """The paper's edit: eps' = eps + strength (eps(null + d) - eps(null)). Two more evaluations a step."""
        null = text_embedding(model.pipe, "").float()
        towards = null + self.direction_.basis[0, component].to(null)
        return Intervention("sampler:eps", Guide(towards, null), steps=steps, strength=strength)


def contrast(f: torch.Tensor, tau: float) -> torch.Tensor:
    """The loss, mean over directions.

    Args:
        f: (K, N, size) changes of N samples by K directions, both at least 2.
        tau: temperature.
    """
    unit = F.normalize(f, dim=-1)
    k, n = unit.shape[:2]
    same = torch.einsum("knd,kmd->knm", unit, unit) / tau
    pairs = torch.triu_indices(n, n, 1)
    positive = torch.logsumexp(same[:, pairs[0], pairs[1]], 1) - torch.tensor(float(pairs.shape[1])).log()
    other = torch.einsum("knd,jnd->kjn", unit, unit) / tau
    off = ~torch.eye(k, dtype=torch.bool, device=f.device)
    negative = torch.logsumexp(other[off].reshape(k, -1), 1) - torch.tensor(float((k - 1) * n)).log()
    return (negative - positive).mean()
