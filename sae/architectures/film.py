"""One dictionary behind a scale and a shift that depend on the noise level (FiLM, Perez et al. 2018; used for
diffusion dictionaries by TIDE, arXiv 2503.07050).

With l the log-SNR of a row, y what the input map makes of it and s the input scale:

    y' = s (y g(l) + h(l))        c = y' - b_dec        yh' = z W + b_dec        yh = (yh' / s - h(l)) / g(l)

The modulation is undone after decoding, so the error is counted where the data are, not where the network could
shrink it:

    L = sum || w (y' - yh') ||^2 / V,     w = 1 / g(l),     V = s^2 sum ||y - mean(y)||^2   (+ the architecture's terms)

The scale of the paper is 1 + scale(l) = g(l) = exp(a(l)): always positive, so it can be undone. A small network gives
a and h for all channels from the level, normalised to u in [-1, 1] over the levels of training:

    (a, h) = W2 tanh(u w1 + b1) + b2        W2 = b2 = 0 at first, so that training starts from the shared dictionary

Gradients: with G = dL/dc from the architecture's step (`StepResult.grad_rows`) and dL/dw (`grad_weight`),

    dL/dg = sum_rows of (G s y - w^2 dL/dw)        dL/dh = s sum_rows of G

summed over the rows of each level, then through the network for the few levels of a batch by autograd. No array of
rows x d_sae exists, and AuxK and V give the network no gradient (V does not depend on it).
"""

from typing import Any

import torch
from torch import Tensor, nn

from sae.architectures.inputs import Modulated
from sae.architectures.timed import TimedSAE
from sae.config import SAEConfig
from sae.contract import Loss, SparseDictionary
from sae.numerics.step import Aux, Measure, batch_variance, remove_parallel

HIDDEN = 32  # units of the network


class FilmSAE(TimedSAE):
    """One core and a network from noise level to gain and shift.

    Attributes:
        network: (H,) "w1", (H,) "b1", (2 d, H) "w2", (2 d,) "b2".
    """

    def make_own(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        d = self.config.d_in
        self.network: Any = nn.ParameterDict(
            {
                "w1": 2 * torch.randn(HIDDEN, generator=g),
                "b1": torch.randn(HIDDEN, generator=g),
                "w2": torch.zeros(2 * d, HIDDEN),
                "b2": torch.zeros(2 * d),
            }
        )

    def modulation(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and shift, (n, d_in) each, of noise levels (n,). Differentiable by the network."""
        low, high = float(self.levels.min()), float(self.levels.max())
        net = self.network
        u = ((log_snr - (low + high) / 2) / max((high - low) / 2, 1e-6)).clamp(-1, 1).to(net["w1"])
        hidden = torch.tanh(u[:, None] * net["w1"] + net["b1"])
        a, shift = (hidden @ net["w2"].T + net["b2"]).chunk(2, dim=1)
        return a.exp(), shift

    def at(self, log_snr: float, previous: Tensor | None = None) -> SparseDictionary:
        """The core behind the modulation of this level, which need not be one of training."""
        core = self.cores[0]
        with torch.no_grad():
            gain, shift = self.modulation(torch.tensor([float(log_snr)], dtype=torch.float64))
        return core.through(Modulated(core.input, gain[0], shift[0]))

    def initialise(self, rows: Tensor, log_snr: Tensor) -> None:
        """As for the architecture: the modulation does nothing yet."""
        self.cores[0].initialise(rows)

    def loss(
        self, x: Tensor, dead: Tensor | None = None, log_snr: Tensor | None = None
    ) -> tuple[Loss, dict[str, Tensor]]:
        """Loss and gradients; see the module."""
        assert log_snr is not None
        core = self.cores[0]
        core._check(x)
        levels, row = torch.unique(log_snr, return_inverse=True)
        with torch.enable_grad():
            gain, shift = self.modulation(levels)
        with torch.no_grad():
            y = core.input.into(x.to(core.W_dec.dtype)) * core.scale
            g = gain.detach()[row]
            centred = y * g + shift.detach()[row] * core.scale - core.b_dec
            weight = 1 / g
            measure = Measure(batch_variance(y, core.peers), weight, core.peers)
            result, more = core.step(centred, measure, Aux(dead, core.config.n_aux, core.config.aux_alpha))
            gradients = dict(zip(("encoder", "decoder", "b_enc", "b_dec"), result.gradients.tensors(), strict=True))
            remove_parallel(gradients["decoder"], core.W_dec.detach())
            # (levels, B), 1 where a row has a level: sums by a product, in a fixed order on every device
            belongs = (row == torch.arange(len(levels), device=row.device).unsqueeze(1)).to(y.dtype)
            by_gain = belongs @ (result.grad_rows * y - weight.square() * result.grad_weight)
            by_shift = belongs @ (result.grad_rows * core.scale)
        network = dict(self.network.items())
        found = torch.autograd.grad([gain, shift], list(network.values()), [by_gain, by_shift])
        gradients = {f"0.{name}": t for name, t in {**gradients, **more}.items()}
        return result, gradients | {f"film.{name}": t for name, t in zip(network, found, strict=True)}

    def trained_tensors(self) -> dict[str, Tensor]:
        """The core's and the network's."""
        return super().trained_tensors() | {f"film.{name}": t.detach() for name, t in self.network.items()}

    def folded(self) -> "FilmSAE":
        """A copy whose core has scale 1. The modulation stands between input map and weights, so that map stays."""
        copy = FilmSAE(self.config, [self.cores[0].folded(keep_input=True)], metadata=self.metadata)
        copy.network.load_state_dict(self.network.state_dict())
        return copy.to(self.network["w1"])

    @classmethod
    def own_shapes(cls, config: SAEConfig) -> dict[str, tuple[int, ...]]:
        """The network's."""
        d = config.d_in
        shapes = {"w1": (HIDDEN,), "b1": (HIDDEN,), "w2": (2 * d, HIDDEN), "b2": (2 * d,)}
        return {f"film.{name}": shape for name, shape in shapes.items()}

    def file_tensors(self) -> dict[str, Tensor]:
        """The core's and the network's."""
        return super().file_tensors() | {f"film.{name}": t for name, t in self.network.items()}

    def load_file_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As for an architecture."""
        super().load_file_tensors(tensors)
        with torch.no_grad():
            for name, tensor in self.network.items():
                tensor.copy_(tensors[f"film.{name}"])
