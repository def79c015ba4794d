"""A mixture of low-rank Gaussians (MoLRG): x = U_k w, w ~ N(0, I_r), the label k uniform.

The model of Wang et al. 2024 (https://arxiv.org/abs/2409.02426) for images that lie near a union of low-dimensional
subspaces. The Jacobian of its posterior mean has rank r where little noise is left (one subspace is known to be the
right one) and K r where much is (all of them still count), which makes it the planted truth of every method that reads
subspaces off a denoiser.
"""

from __future__ import annotations

import torch

from probe.errors import InvalidRequest
from probe.model.analytic.mixture import GaussianMixture


class LowRankMixture(GaussianMixture):
    """K subspaces of dimension r in d dimensions.

    Args:
        bases: (K, d, r), orthonormal columns.
    """

    def __init__(self, bases: torch.Tensor) -> None:
        if bases.ndim != 3:
            raise InvalidRequest(f"LowRankMixture: bases {tuple(bases.shape)}; expected (K, d, r).")
        self.bases = bases.double()
        gram = self.bases.mT @ self.bases
        if not torch.allclose(gram, torch.eye(bases.shape[2], dtype=torch.float64).expand_as(gram), atol=1e-6):
            raise InvalidRequest("LowRankMixture: the columns of each basis must be orthonormal.")
        super().__init__(torch.zeros(bases.shape[:2]), self.bases @ self.bases.mT)

    @classmethod
    def random(cls, n_components: int, rank: int, d: int, generator: torch.Generator | None = None) -> LowRankMixture:
        """Subspaces drawn at random; orthogonal to each other if K r <= d."""
        if n_components * rank <= d:
            q = torch.linalg.qr(torch.randn(d, n_components * rank, generator=generator, dtype=torch.float64)).Q
            return cls(q.reshape(d, n_components, rank).permute(1, 0, 2))
        return cls(torch.linalg.qr(torch.randn(n_components, d, rank, generator=generator, dtype=torch.float64)).Q)
