"""The largest singular values and vectors of a linear map that is known only by its products.

Block subspace iteration with oversampling (Halko, Martinsson and Tropp 2011, https://arxiv.org/abs/0909.4061): with
p = k + oversample random vectors as columns of V,

    U = orth(J V),   W = J^T U,   V = orth(W),   s = singular values of W          until s stands still

and a small SVD W = V' S Q^T turns the last block into right vectors V' and left vectors U Q. It stops on the relative
change of the k singular values. A change of the vectors is no measure: where singular values nearly agree the vectors
turn freely inside their subspace, and their signs are free anyway.

The error of the subspace shrinks by (s_{p+1} / s_k)^2 an iteration, which is why a few extra vectors pay: without them
the ratio is s_{k+1} / s_k, close to 1 for most networks. Products are in the map's dtype, orthogonalisation in float64.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from probe.errors import InvalidDirection


class LinearMap(Protocol):
    """J of shape (n_out, n_in), by its products with blocks of vectors."""

    n_in: int
    n_out: int

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """J v for each row: (k, n_in) to (k, n_out)."""
        ...

    def vjp(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u for each row: (k, n_out) to (k, n_in)."""
        ...


class Singular(NamedTuple):
    """The k largest singular triplets, descending.

    Attributes:
        u: (k, n_out) float64, orthonormal rows.
        s: (k,) float64.
        v: (k, n_in) float64, orthonormal rows; in each the entry of largest size is positive.
        gap: s_k / s_{k+1}; infinite if there is no further one. Below 1.05 only the subspace is meaningful.
        residual: largest |J v_i - s_i u_i| / s_1, from products made for the purpose.
        iterations: done; each costs p products in both directions.
        converged: whether the relative change of every singular value came below the tolerance.
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor
    gap: float
    residual: float
    iterations: int
    converged: bool


def top_singular(
    op: LinearMap, k: int, *, oversample: int = 5, tol: float = 1e-5, max_iter: int = 50, seed: int = 0
) -> Singular:
    """The k largest singular triplets of a linear map.

    Args:
        op: the map.
        k: how many, at least 1 and at most min(n_in, n_out).
        oversample: further vectors that are iterated and thrown away.
        tol: relative change of each singular value below which it stops.
        max_iter: iterations at most.
        seed: of the first block.

    Raises:
        InvalidDirection: k or another number out of range, the map is zero, or a product is not finite.
    """
    limit = min(op.n_in, op.n_out)
    if not 1 <= k <= limit or oversample < 0 or max_iter < 1 or not tol > 0:
        raise InvalidDirection(
            f"top_singular: k={k} (1 to {limit}), oversample={oversample}, tol={tol}, max_iter={max_iter} out of range."
        )
    p = min(k + oversample, limit)
    block = torch.randn(op.n_in, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    v = u = q = _orth(block)
    s, converged, iteration = torch.zeros(p, dtype=torch.float64), False, 0
    for iteration in range(1, max_iter + 1):  # noqa: B007
        u = _orth(_checked(op.jvp(v.T)).T)
        w = _checked(op.vjp(u.T)).T
        v, values, q = _svd(w)
        change = (values - s).abs()[:k]
        # A value of zero never stands still relative to itself: rounding of the largest one is let pass.
        converged = bool((change <= tol * values[:k] + 1e-9 * values[0]).all())
        s = values
        if converged:
            break
    if not bool(s[0] > 0):
        raise InvalidDirection("top_singular: the map is zero: its output does not depend on its input.")
    left, right = (u @ q)[:, :k].T, v[:, :k].T
    sign = torch.sign(right.gather(1, right.abs().argmax(1, keepdim=True)))
    left, right = left * sign, right * sign
    residual = (_checked(op.jvp(right)) - s[:k, None] * left).norm(dim=1).max() / s[0]
    gap = float(s[k - 1] / s[k]) if p > k and s[k] > 0 else float("inf")
    return Singular(left, s[:k], right, gap, float(residual), iteration, converged)


def dense(op: LinearMap) -> torch.Tensor:
    """The whole matrix (n_out, n_in) float64, by products with unit vectors from the shorter side. For small maps."""
    if op.n_in <= op.n_out:
        return op.jvp(torch.eye(op.n_in, dtype=torch.float64)).cpu().double().T
    return op.vjp(torch.eye(op.n_out, dtype=torch.float64)).cpu().double()


def principal_angles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angles in radians between two subspaces given by orthonormal rows (k, n) and (m, n), ascending."""
    b, a = (b.double(), a.double()) if len(a) <= len(b) else (a.double(), b.double())
    cosines = torch.linalg.svdvals(a @ b.T).clamp(max=1.0)
    sines = torch.linalg.svdvals(a - (a @ b.T) @ b).flip(0).clamp(max=1.0)
    return torch.where(cosines > 0.7, torch.asin(sines), torch.acos(cosines))  # each where it is exact


def _orth(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(x).Q


def _svd(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    v, s, qt = torch.linalg.svd(w, full_matrices=False)
    return v, s, qt.T


def _checked(x: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(x).all()):
        raise InvalidDirection(
            "top_singular: a product of the map holds NaN or infinity; lower the noise level's "
            "extremes or compute in float32."
        )
    return x.cpu().double()
