"""Fused Adam over named tensors with explicit gradients, and its state as plain tensors.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   w <- w - lr m^ / (sqrt(v^) + eps)        (Kingma & Ba 2015)

eps is 6.25e-10, as in Gao et al. 2024: gradients of a loss normalised by the batch variance are small, and a
larger eps would damp rare features most.
"""

import torch
from torch import Tensor
from torch.optim.adam import adam  # the functional form: the class would import the compiler, seconds of start-up


class Adam:
    """torch's fused Adam without autograd: tensors are updated in place from a dict of gradients."""

    def __init__(
        self, tensors: dict[str, Tensor], *, betas: tuple[float, float], eps: float, clip_norm: float | None
    ) -> None:
        self._tensors = tensors
        self._betas, self._eps, self._clip_norm = betas, eps, clip_norm
        self._mean = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self._square = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        self._step = {name: torch.zeros((), device=tensor.device) for name, tensor in tensors.items()}

    def update(self, gradients: dict[str, Tensor], lr: float, *, norm: Tensor | None = None) -> Tensor:
        """One step. Clips the global norm if asked; returns the norm before clipping, (). May overwrite gradients.

        Args:
            norm: of all gradients, where other processes hold a part of them.
        """
        total: Tensor = norm if norm is not None else torch.nn.utils.get_total_norm(list(gradients.values()))
        if self._clip_norm is not None:
            factor = (self._clip_norm / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp_max(1.0)
            # On a GPU the question would wait for the device; on a CPU the answer saves a pass over all gradients.
            if factor.device.type != "cpu" or factor < 1:
                for gradient in gradients.values():
                    gradient.mul_(factor)
        adam(
            list(self._tensors.values()),
            [gradients[name] for name in self._tensors],
            list(self._mean.values()),
            list(self._square.values()),
            [],
            list(self._step.values()),
            fused=True,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=lr,
            weight_decay=0.0,
            eps=self._eps,
            maximize=False,
        )
        return total

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts by name; the tensors themselves, not copies."""
        parts = {"mean": self._mean, "square": self._square, "step": self._step}
        return {f"{part}.{name}": tensor for part, group in parts.items() for name, tensor in group.items()}
