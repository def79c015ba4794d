"""A direction: vectors at a site, whatever found them.

A basis holds k vectors for each of n rows of a table over denoising steps; n = 1 serves all steps. A vector is either
(d,), the same at every token, or (tokens, d), a whole map with cells in row-major order, the layout of stored rows.
``scale`` says how long one unit of strength is: the standard deviation of the site along the vector where the finder
saw data, so that strengths compare between sites, steps and finders.

``frame`` says how far the vectors carry:

    global      one basis for all steps
    per_step    a row for each step
    local       found at one noisy sample with its condition; elsewhere it has to be transported, and to be tested

A vector has no sign of its own. ``aligned`` fixes it by a reference, so that the rows of a table agree with each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch

from activations_store.storage.jsonio import content_hash, normalise
from probe.capture.sites import Site
from probe.errors import InvalidDirection
from probe.interventions import AddDirection, Intervention, ProjectOut

Frame = Literal["global", "per_step", "local"]
FRAMES: tuple[Frame, ...] = get_args(Frame)


@dataclass(frozen=True, eq=False)
class Direction:
    """Vectors at a site. Immutable: every method returns a new one.

    Attributes:
        site: full name, such as ``unet.mid_block:out`` or ``sampler:x_t``.
        basis: (n, k, d) or (n, k, tokens, d), float32 or wider, finite; a vector of (k, d) or (d,) gets its axes.
        scale: (n, k), length of one unit of strength along each vector when it has length 1; ones if None.
        steps: denoising steps at which an intervention applies it; None for all.
        timesteps: the scheduler's timestep of each row, so that the table serves other step counts; None if n = 1.
        frame: see the module.
        provenance: JSON values: the finder, every one of its arguments, and hashes of what it saw.
    """

    site: str
    basis: torch.Tensor
    scale: torch.Tensor | None = None
    steps: tuple[int, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    frame: Frame = "global"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(Site.parse(self.site)))
        basis = torch.as_tensor(self.basis).detach().cpu()
        basis = basis.float() if not basis.is_floating_point() or basis.element_size() < 4 else basis
        basis = basis[None, None] if basis.ndim == 1 else basis[None] if basis.ndim == 2 else basis
        if basis.ndim not in (3, 4) or not basis.numel() or not bool(torch.isfinite(basis).all()):
            raise InvalidDirection(
                f"Direction at {self.site}: basis {tuple(basis.shape)}; expected finite (n, k, d) or (n, k, tokens, d)."
            )
        n, k = basis.shape[:2]
        scale = torch.ones(n, k) if self.scale is None else torch.as_tensor(self.scale).detach().cpu().float()
        if scale.shape != (n, k) or not bool((torch.isfinite(scale) & (scale >= 0)).all()):
            raise InvalidDirection(f"Direction at {self.site}: scale {tuple(scale.shape)}; expected ({n}, {k}), >= 0.")
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "scale", scale)
        for name in ("steps", "timesteps"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else tuple(int(v) for v in given))
        if self.timesteps is not None and len(self.timesteps) != n:
            raise InvalidDirection(f"Direction at {self.site}: {n} rows, but {len(self.timesteps)} timesteps.")
        if self.frame not in FRAMES:
            raise InvalidDirection(f"Direction: frame {self.frame!r}; expected one of {', '.join(FRAMES)}.")
        object.__setattr__(self, "provenance", normalise(dict(self.provenance)))

    @property
    def n_rows(self) -> int:
        """Rows of the table, n."""
        return self.basis.shape[0]

    @property
    def k(self) -> int:
        """Vectors a row."""
        return self.basis.shape[1]

    @property
    def flat(self) -> torch.Tensor:
        """The basis as (n, k, size) float64."""
        return self.basis.flatten(2).double()

    @property
    def scales(self) -> torch.Tensor:
        """``scale`` as the tensor that it is after construction."""
        assert self.scale is not None
        return self.scale

    @property
    def hash(self) -> str:
        """SHA-256 over everything, hexadecimal."""
        return content_hash(self.record() | {"basis": tensor_hash(self.basis), "scale": tensor_hash(self.scales)})

    def record(self) -> dict[str, Any]:
        """All but the tensors, as JSON values."""
        return {
            "site": self.site,
            "steps": None if self.steps is None else list(self.steps),
            "timesteps": None if self.timesteps is None else list(self.timesteps),
            "frame": self.frame,
            "provenance": dict(self.provenance),
        }

    def __getitem__(self, component: int | slice | Sequence[int]) -> Direction:
        """Some of the vectors."""
        chosen = [component] if isinstance(component, int) else component
        return replace(self, basis=self.basis[:, chosen], scale=self.scales[:, chosen])

    # Geometry

    def check_space(self, other: Direction) -> None:
        """Raises ``InvalidDirection`` unless the vectors of another direction have the same site and shape."""
        if (other.site, other.basis.shape[2:]) != (self.site, self.basis.shape[2:]):
            raise InvalidDirection(
                f"directions of different spaces: {self.site} {tuple(self.basis.shape[2:])} and {other.site} "
                f"{tuple(other.basis.shape[2:])}."
            )

    def normalised(self) -> Direction:
        """Every vector at length 1; the scale is what it was."""
        return self._with(self.flat / self._norms()[..., None])

    def aligned(self, reference: Direction | None = None) -> Direction:
        """Signs that agree with a reference: each vector's product with the reference's is not negative.

        Args:
            reference: with as many vectors, and as many rows or one. None aligns each row with the one before it, and
                in the first makes the entry of largest size positive.
        """
        flat = self.flat.clone()
        if reference is not None:
            self.check_space(reference)
            if reference.k != self.k or reference.n_rows not in (1, self.n_rows):
                raise InvalidDirection(
                    f"aligned: {reference.n_rows} x {reference.k} vectors cannot be the reference of "
                    f"{self.n_rows} x {self.k}."
                )
            sign = torch.sign((flat * reference.flat).sum(-1))
            return self._with(flat * torch.where(sign == 0, 1.0, sign)[..., None])
        largest = flat[0].gather(1, flat[0].abs().argmax(1, keepdim=True))
        flat[0] *= torch.where(largest < 0, -1.0, 1.0)
        for row in range(1, self.n_rows):
            product = (flat[row] * flat[row - 1]).sum(-1, keepdim=True)
            flat[row] *= torch.where(product < 0, -1.0, 1.0)
        return self._with(flat)

    def orthonormalised(self) -> Direction:
        """Gram and Schmidt in the order of the vectors: the first keeps its course.

        Raises:
            InvalidDirection: the vectors are dependent.
        """
        q, r = torch.linalg.qr(self.flat.mT)
        diagonal = torch.diagonal(r, dim1=1, dim2=2)
        if q.shape[-1] < self.k or bool((diagonal.abs() < 1e-6 * self._norms()).any()):
            raise InvalidDirection(f"orthonormalised: the {self.k} vectors at {self.site} are not independent.")
        return self._with((q * torch.sign(diagonal)[:, None, :]).mT)

    def project_out(self, others: Direction | Sequence[Direction]) -> Direction:
        """What is left of the vectors outside the span of others, by least squares: no change along them.

        The lengths are not restored: a vector that nearly vanishes was mostly made of the others.
        """
        given = [others] if isinstance(others, Direction) else list(others)
        for other in given:
            self.check_space(other)
            if other.n_rows not in (1, self.n_rows):
                raise InvalidDirection(
                    f"project_out: {other.n_rows} rows against {self.n_rows}; expected 1 or as many."
                )
        against = torch.cat([o.flat.expand(self.n_rows, -1, -1) for o in given], 1)
        q, r = torch.linalg.qr(against.mT)
        kept = torch.diagonal(r, dim1=1, dim2=2).abs() > 1e-9 * against.norm(dim=-1)[:, : r.shape[1]].clamp(min=1e-300)
        q = q * kept[:, None, :]
        return self._with(self.flat - (self.flat @ q) @ q.mT)

    def coefficients(self, x: torch.Tensor, row: int = 0) -> torch.Tensor:
        """Least-squares coefficients of rows on the vectors of a row of the table.

        Args:
            x: (..., size) flattened rows of the site; for a (d,) basis, size is d.
            row: of the table.

        Returns:
            (..., k) float64, in raw units of the vectors as they are.
        """
        return x.double() @ torch.linalg.pinv(self.flat[row])

    def cosine(self, other: Direction, covariance: torch.Tensor | None = None) -> torch.Tensor:
        """Cosines between all vectors of two directions.

        Args:
            other: at the same site, with as many rows, or one.
            covariance: (size, size) or (n, size, size) of the site. With it, vectors are compared in whitened
                coordinates S^-1/2 v, where a site's loud axes count no more than its quiet ones; where the site has no
                variance at all, nothing is compared.

        Returns:
            (n, k, k_other) float64 in [-1, 1].
        """
        self.check_space(other)
        a, b = self.flat, other.flat
        if covariance is not None:
            values, vectors = torch.linalg.eigh(covariance.double())
            inverse = torch.where(values > 1e-10 * values.amax(-1, keepdim=True), values, torch.inf).rsqrt()
            a, b = ((x @ vectors) * inverse.unsqueeze(-2) for x in (a, b))
        a, b = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-300) for x in (a, b))
        return (a @ b.mT).clamp(-1.0, 1.0)

    # Use

    def intervention(
        self,
        component: int = 0,
        strength: float = 1.0,
        *,
        unit: Literal["std", "raw"] = "std",
        branch: str = "both",
        steps: Sequence[int] | None = None,
        mask: torch.Tensor | None = None,
        inject: str = "both",
    ) -> Intervention:
        """An edit that adds one of the vectors at the site while a pipeline generates.

        Args:
            component: which of the k vectors.
            strength: in ``unit``; negative moves the other way.
            unit: ``std``, the vector at length ``scale``; ``raw``, the vector as it is.
            branch, mask, inject: see ``Intervention``.
            steps: overrides the direction's own.
        """
        vectors, size = self.basis[:, component], self.scales[:, component]
        if unit == "std":
            vectors = vectors / self._norms()[:, component].reshape(-1, *(1,) * (vectors.ndim - 1))
        op = AddDirection(
            vectors.float(),
            unit=unit,
            scale=size if unit == "std" else None,
            timesteps=self.timesteps if self.n_rows > 1 else None,
        )
        chosen = self.steps if steps is None else tuple(steps)
        return Intervention(self.site, op, steps=chosen, branch=branch, strength=strength, mask=mask, inject=inject)

    def removal(
        self, *, branch: str = "both", steps: Sequence[int] | None = None, mask: torch.Tensor | None = None
    ) -> Intervention:
        """An edit that projects the span of the vectors out of every row of the site.

        Raises:
            InvalidDirection: the vectors are whole maps, not rows.
        """
        if self.basis.ndim != 3:
            raise InvalidDirection(f"removal at {self.site}: the vectors are maps; only rows can be projected out.")
        op = ProjectOut(self.basis.float(), timesteps=self.timesteps if self.n_rows > 1 else None)
        return Intervention(
            self.site, op, steps=self.steps if steps is None else tuple(steps), branch=branch, mask=mask
        )

    def _norms(self) -> torch.Tensor:
        norms = self.flat.norm(dim=-1)
        if bool((norms == 0).any()):
            raise InvalidDirection(f"Direction at {self.site}: a vector is zero and has no course.")
        return norms

    def _with(self, flat: torch.Tensor) -> Direction:
        return replace(self, basis=flat.reshape(self.basis.shape).to(self.basis.dtype))


def random_direction(like: Direction, seed: int) -> Direction:
    """A control: normal vectors with the lengths and scales of another direction, without its meaning."""
    noise = torch.randn(like.basis.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flat = noise.flatten(2)
    flat = flat / flat.norm(dim=-1, keepdim=True) * like.flat.norm(dim=-1, keepdim=True)
    about = {"finder": "random", "seed": seed, "like": like.hash, "model": like.provenance.get("model")}
    return replace(like, basis=flat.reshape(like.basis.shape).to(like.basis.dtype), provenance=about)


def tensor_hash(x: torch.Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values, hexadecimal."""
    return hashlib.sha256(f"{x.dtype}{tuple(x.shape)}".encode() + x.contiguous().numpy().tobytes()).hexdigest()
