"""Jacobians without matrices: products of J = d f / d x at a point, in both directions, for blocks of vectors.

J^T u is one backward pass. J v is two: g(w) = J^T w is linear in w, and its own backward pass gives (d g / d w)^T v =
J v. This *double backward* needs nothing but reverse mode. Forward mode, which is made for J v, fails on the UNets of
diffusers as they are: fused attention has no forward rule, and group normalisation refuses the tangents that the plain
attention makes. Fused attention has no second derivative either: the model is traced under the plain ("math") kernel.

The point is copied b times into a batch; samples of a batch do not touch each other, so one pass gives b products. The
model is traced once, and all products of an iteration reuse the two graphs; memory is b times that of a training step,
twice. ``Restricted`` is M_out J (I - N^T N) M_in: spatial masks, and directions N that are not to be moved along.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe.directions.subspace import LinearMap
from probe.errors import InvalidDirection


class Jacobian:
    """The Jacobian of f at x. Making one costs a forward and a backward pass of ``batch`` copies.

    Args:
        f: (b, *in_shape) to (b, *out_shape), each row of the result from its own row only.
        x: (1, *in_shape), the point.
        batch: directions at a time.

    Attributes:
        products: J v and J^T u made so far, each one or two backward passes of a row.

    Raises:
        InvalidDirection: x is no single point, or the output does not depend on it.
    """

    def __init__(self, f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, *, batch: int = 8) -> None:
        if len(x) != 1 or batch < 1:
            raise InvalidDirection(f"Jacobian: a point (1, ...) and batch >= 1; got {tuple(x.shape)}, batch={batch}.")
        self._batch, self.dtype, self.device, self.products = batch, x.dtype, x.device, 0
        self._x = x.detach().repeat(batch, *(1,) * (x.ndim - 1)).requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self._y = f(self._x)
            self._w = torch.zeros_like(self._y).requires_grad_()
            g = (
                torch.autograd.grad(self._y, self._x, self._w, create_graph=True, allow_unused=True)[0]
                if self._y.requires_grad
                else None
            )
        if g is None:
            raise InvalidDirection(
                "Jacobian: the output does not depend on the input; the target lies before the source."
            )
        self._g = g
        self.in_shape, self.out_shape = tuple(x.shape[1:]), tuple(self._y.shape[1:])
        self.n_in, self.n_out = self._x[0].numel(), self._y[0].numel()

    @property
    def value(self) -> torch.Tensor:
        """f(x), (1, *out_shape)."""
        return self._y[:1].detach()

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """J v for each row, (k, n_in) to (k, n_out)."""
        return self._products(v, self._g, self._w)

    def vjp(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u for each row, (k, n_out) to (k, n_in)."""
        return self._products(u, self._y, self._x)

    def _products(self, rows: torch.Tensor, output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        if rows.ndim != 2 or rows.shape[1] != output[0].numel():
            raise InvalidDirection(f"Jacobian: vectors {tuple(rows.shape)}; expected (k, {output[0].numel()}).")
        self.products += len(rows)
        found = []
        for part in rows.split(self._batch):
            full = torch.zeros_like(output)
            full[: len(part)] = part.to(self.device, self.dtype).reshape(len(part), *output.shape[1:])
            if output.requires_grad:
                (product,) = torch.autograd.grad(output, input, full, retain_graph=True, allow_unused=True)
            else:  # f is linear, or constant: g has no graph
                product = None
            product = torch.zeros_like(input) if product is None else product
            found.append(product[: len(part)].flatten(1).detach())
        return torch.cat(found)


class Restricted:
    """M_out J (I - N^T N) M_in, sharing the products of a map that is there already.

    Args:
        op: J.
        out_mask: weights of the outputs, (n_out,), or None.
        in_mask: weights of the inputs, (n_in,), or None.
        null: (r, n_in) orthonormal rows N that the input must not move along, or None. With ``in_mask`` they should
            lie within the mask.
    """

    def __init__(
        self,
        op: LinearMap,
        *,
        out_mask: torch.Tensor | None = None,
        in_mask: torch.Tensor | None = None,
        null: torch.Tensor | None = None,
    ) -> None:
        self._op, self.n_in, self.n_out = op, op.n_in, op.n_out
        self._out = None if out_mask is None else _weights(out_mask, op.n_out, "out_mask")
        self._in = None if in_mask is None else _weights(in_mask, op.n_in, "in_mask")
        self._null = None if null is None else null.double()
        if self._null is not None:
            gram = self._null @ self._null.T
            if self._null.shape[1] != op.n_in or not torch.allclose(gram, torch.eye(len(gram)).double(), atol=1e-5):
                raise InvalidDirection(f"null: {tuple(self._null.shape)}; expected orthonormal rows (r, {op.n_in}).")

    def jvp(self, v: torch.Tensor) -> torch.Tensor:
        """J v for each row, (k, n_in) to (k, n_out)."""
        v = self._free(v.double() if self._in is None else v.double() * self._in)
        u = self._op.jvp(v).cpu().double()
        return u if self._out is None else u * self._out

    def vjp(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u for each row, (k, n_out) to (k, n_in)."""
        u = u.double() if self._out is None else u.double() * self._out
        v = self._free(self._op.vjp(u).cpu().double())
        return v if self._in is None else v * self._in

    def _free(self, v: torch.Tensor) -> torch.Tensor:
        return v if self._null is None else v - (v @ self._null.T) @ self._null


def spatial_weights(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A mask over cells as weights over all values of a tensor, flattened.

    Args:
        mask: (height, width) for maps (C, height, width); (tokens,) for (tokens, C); else of the shape itself.
        shape: of the tensor, without batch.

    Raises:
        InvalidDirection: the mask fits none of these.
    """
    mask = torch.as_tensor(mask).double()
    if tuple(mask.shape) == shape:
        return mask.flatten()
    if len(shape) == 3 and tuple(mask.shape) == shape[1:]:
        return mask.expand(shape).flatten()
    if len(shape) == 2 and tuple(mask.shape) == shape[:1]:
        return mask[:, None].expand(shape).flatten()
    raise InvalidDirection(f"mask {tuple(mask.shape)}: it fits no tensor {shape}; give one weight a cell.")


def _weights(mask: torch.Tensor, n: int, what: str) -> torch.Tensor:
    mask = torch.as_tensor(mask).double().flatten()
    if len(mask) != n or not bool(torch.isfinite(mask).all()):
        raise InvalidDirection(f"{what}: {len(mask)} weights; expected {n}, finite.")
    return mask
