"""Fused Adam over named tensors with explicit gradients, and its state as plain tensors.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr m^ / (sqrt(v^) + eps)          (Kingma &
    Ba 2015)

eps is 6.25e-10, as in Gao et al. 2024: gradients of a loss normalised by the batch variance are small, and a
larger eps would damp rare features most.
"""

import torch
from torch import Tensor


class Adam:
    """torch's fused Adam without autograd: tensors are updated in place from a dict of gradients."""

    def __init__(
        self, tensors: dict[str, Tensor], *, betas: tuple[float, float], eps: float, clip_norm: float | None
    ) -> None:
        self._tensors = tensors
        self._clip_norm = clip_norm
        self._adam = torch.optim.Adam(list(tensors.values()), lr=0.0, betas=betas, eps=eps, fused=True)

    def update(self, gradients: dict[str, Tensor], lr: float) -> Tensor:
        """One step. Clips the global norm if asked; returns the norm before clipping, (). `gradients` may be
        overwritten.
        """
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
        if self._clip_norm is not None:
            factor = (self._clip_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
            for gradient in gradients.values():
                gradient.mul_(factor)
        for name, tensor in self._tensors.items():
            tensor.grad = gradients[name]
        self._adam.param_groups[0]["lr"] = lr
        self._adam.step()
        for tensor in self._tensors.values():
            tensor.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name; {} before the first update."""
        return {
            f"{name}.{key}": value
            for name, tensor in self._tensors.items()
            for key, value in self._adam.state.get(tensor, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state` returned. Values are copied into fresh, aligned memory."""
        for name, tensor in self._tensors.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"{name}.step" in state:
                self._adam.state[tensor] = {key: state[f"{name}.{key}"].clone() for key in keys}
