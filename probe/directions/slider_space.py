"""Many directions from one prompt: what varies among the samples of a prompt, made steerable.

Gandikota et al. 2025 (SliderSpace, https://arxiv.org/abs/2502.01639). The model draws N samples x of one prompt; their
features g(x) are centred and decomposed, with principal directions p_1, p_2, ...; and for each of them a small change
of the model is trained so that its posterior mean moves along p_i and along nothing else:

    L_i = - cos( g(x0hat(z; change_i)) - g(x0hat(z)),  p_i )                z = alpha x + sigma n

The paper's change is an adapter of rank one on the attention layers and g is CLIP; here g is an argument, and the
change is either a vector in the text embedding (``TokenSliders``: the learned word of a direction) or a low-rank
adapter of the cross-attention (``AdapterSliders``). With ``orthogonal`` the k changes are kept at right angles while
they are trained, by a QR decomposition in their parametrisation (as Song et al. 2023, Householder projector, for
GANs). The loss knows no length, so strength 1 is nothing but where training ended: sweep it.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F

from probe.directions.adapter import Adapter, adapted
from probe.directions.direction import Direction
from probe.directions.optimised import Embed, OptimisedFinder, Progress, drawn, flat_embed, site_example, vector_shape
from probe.directions.points import added, site_of
from probe.errors import InvalidDirection
from probe.model.eps_model import x0_hat
from probe.model.pipeline_eps import PipelineEps
from probe.model.steps import denoiser

_UP_START = 0.1
"""Size of the entries of an adapter's up where training starts; those of down have 1."""


@dataclass(kw_only=True, eq=False)
class SliderFinder(OptimisedFinder):
    """Base of the two.

    Attributes:
        k: directions.
        embed: g; the flattened sample itself if not given.
        orthogonal: keep the changes at right angles.

    After ``fit``: as ``OptimisedFinder``; ``variance_`` (k,), the share of the features' variance of each direction;
    ``axes_`` (k, F), the principal directions p.
    """

    k: int = 4
    embed: Embed = flat_embed
    orthogonal: bool = False

    variance_: np.ndarray = field(init=False, repr=False)
    axes_: torch.Tensor = field(init=False, repr=False)

    def fit(self, model: PipelineEps, x: torch.Tensor, prompt: str, progress: Progress | None = None) -> Self:
        """Decompose and train; an iteration is two passes forward and one back for ``batch`` samples.

        Args:
            model: the pipeline.
            x: (N, *sample_shape) samples of the prompt, N > k, such as ``self_generated`` draws.
            prompt: theirs.
            progress: called with (done, total).

        Raises:
            InvalidDirection: too few samples, or ones that do not vary enough.
        """
        levels, x = self._levels(model), self._samples(model, x, self.k + 1)
        with torch.no_grad():
            features = torch.cat([self.embed(part) for part in x.split(16)]).double()
        self.axes_, self.variance_ = principal(features, self.k)
        axes, generator = self.axes_.to(model.device, torch.float32), self._generator()
        parameters = self._parameters(model, generator)

        def loss() -> torch.Tensor:
            _, z, _, a = drawn(x, levels, self.batch, generator)
            which = torch.randint(self.k, (self.batch,), generator=generator)
            with torch.no_grad():
                plain = self.embed(x0_hat(model, z, a, prompt))
            with self._changed(model, which):
                moved = self.embed(x0_hat(model, z, a, prompt)) - plain
            return -F.cosine_similarity(moved, axes[which], dim=1).mean()

        # The loss knows no lengths: along them Adam would walk by rounding errors, were its eps smaller than these.
        self._descend(parameters, loss, progress, eps=1e-6)
        self._keep(model, x, prompt)
        return self

    @abstractmethod
    def _parameters(self, model: PipelineEps, generator: torch.Generator) -> list[torch.Tensor]:
        """What is trained, made anew."""

    @abstractmethod
    def _changed(self, model: PipelineEps, which: torch.Tensor) -> AbstractContextManager[None]:
        """Within the block, row b of a denoiser call runs with the change ``which[b]``."""

    @abstractmethod
    def _keep(self, model: PipelineEps, x: torch.Tensor, prompt: str) -> None:
        """Make the result from the trained parameters."""


@dataclass(kw_only=True, eq=False)
class TokenSliders(SliderFinder):
    """Sliders as vectors in the text embedding. Needs a pipeline and samples of one prompt.

    Attributes:
        view: ``tokens``, one vector (d,) for all tokens of the prompt; ``map``, a vector for each.
        start: length of the first vectors over that of the embedding.

    After ``fit``: as ``SliderFinder``; ``direction_`` at ``unet:prompt``, k vectors, frame global, scale their length.

    Example:
        >>> from probe.directions import TokenSliders, self_generated
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> x = self_generated(model, ["a star"] * 3, range(3))
        >>> found = TokenSliders(k=2, iterations=2, batch=2, orthogonal=True).fit(model, x, "a star")
        >>> edit = found.direction_.intervention(0, strength=1.0, branch="cond")
        >>> images = generate(model.pipe, ["a star"], [0], steps=5, interventions=[edit])
    """

    view: Literal["tokens", "map"] = "tokens"
    start: float = 0.3

    def _parameters(self, model: PipelineEps, generator: torch.Generator) -> list[torch.Tensor]:
        example = site_example(model, "unet:prompt")
        self._size = float(example.square().mean().sqrt())
        d = self.start * torch.randn(self.k, *vector_shape(example, self.view)[1:], generator=generator)
        self._d = d.to(model.device).requires_grad_()
        return [self._d]

    def _vectors(self) -> torch.Tensor:
        """(k, rows, d), in units of the embedding."""
        return self._size * (at_right_angles(self._d) if self.orthogonal else self._d)

    def _changed(self, model: PipelineEps, which: torch.Tensor) -> AbstractContextManager[None]:
        return added(model, site_of(model, "unet:prompt"), self._vectors()[which])

    def _keep(self, model: PipelineEps, x: torch.Tensor, prompt: str) -> None:
        basis = self._vectors().detach()[None]
        basis = basis if self.view == "map" else basis[:, :, 0]
        self.direction_ = Direction(
            str(site_of(model, "unet:prompt")),
            basis,
            basis.flatten(2).norm(dim=-1),
            provenance=self._about(model, x=x, prompt=prompt),
        )


@dataclass(kw_only=True, eq=False)
class AdapterSliders(SliderFinder):
    """Sliders as low-rank adapters. Needs a pipeline with attention layers and samples of one prompt.

    A layer that reads the same row e in every sample is changed by up (down e), and of down the loss knows only the
    sign of down e: up alone is trained there, to the change whose effect lies along p_i. As in LoRA, where it starts at
    zero, up starts small beside down (at zero the cosine has no gradient): Adam's steps then turn it at once, where
    they would be slow to turn long vectors.

    Attributes:
        layers: ends of the paths of the linear layers; keys and values of the cross-attention if not given.
        rank: of each change.
        start: Frobenius norm of a layer's first change over that of its weight.

    After ``fit``: as ``SliderFinder``, without ``direction_``; ``adapter_``, with k components.

    Example:
        >>> from probe.directions import AdapterSliders, self_generated
        >>> from probe.model import PipelineEps, generate, load_pipeline
        >>> model = PipelineEps(load_pipeline("canvas"))
        >>> x = self_generated(model, ["a star"] * 3, range(3))
        >>> found = AdapterSliders(k=2, iterations=2, batch=2).fit(model, x, "a star")
        >>> edits = found.adapter_.interventions(0, strength=1.0)
        >>> images = generate(model.pipe, ["a star"], [0], steps=5, interventions=edits)
    """

    layers: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    rank: int = 1
    start: float = 0.1

    adapter_: Adapter = field(init=False, repr=False)

    def _parameters(self, model: PipelineEps, generator: torch.Generator) -> list[torch.Tensor]:
        root, module = denoiser(model.pipe)
        found = {
            f"{root}.{name}:weight": layer.weight
            for name, layer in module.named_modules()
            if name.endswith(self.layers) and isinstance(layer, torch.nn.Linear)
        }
        if not found or self.rank < 1:
            raise InvalidDirection(
                f"AdapterSliders: {len(found)} linear layers end in {', '.join(self.layers)}, rank {self.rank}; "
                "expected at least one of each."
            )
        self._up: dict[str, torch.Tensor] = {}
        self._down: dict[str, torch.Tensor] = {}
        self._sizes: dict[str, float] = {}
        for site, weight in found.items():
            n_out, n_in = weight.shape
            self._sizes[site] = self.start * float(weight.float().norm()) / (n_out * n_in * self.rank) ** 0.5
            for into, shape in ((self._up, (self.k, n_out, self.rank)), (self._down, (self.k, self.rank, n_in))):
                size = _UP_START if into is self._up else 1.0
                into[site] = (size * torch.randn(shape, generator=generator)).to(model.device).requires_grad_()
        return [*self._up.values(), *self._down.values()]

    def _factors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        up = {site: self._sizes[site] * u for site, u in self._up.items()}
        down = {site: at_right_angles(d) if self.orthogonal else d for site, d in self._down.items()}
        return up, down

    def _changed(self, model: PipelineEps, which: torch.Tensor) -> AbstractContextManager[None]:
        up, down = self._factors()
        return adapted(model, {s: u[which] for s, u in up.items()}, {s: d[which] for s, d in down.items()})

    def _keep(self, model: PipelineEps, x: torch.Tensor, prompt: str) -> None:
        self.adapter_ = Adapter(*self._factors(), self._about(model, x=x, prompt=prompt))


def principal(features: torch.Tensor, k: int) -> tuple[torch.Tensor, np.ndarray]:
    """(axes (k, F), shares of the variance (k,)) of features (N, F), the entry of largest size positive.

    Raises:
        InvalidDirection: fewer than k axes have any variance.
    """
    _, s, vt = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    share = s**2 / (s**2).sum().clamp(min=1e-300)
    if k < 1 or len(s) < k or not float(s[k - 1]) > 1e-6 * float(s[0]) > 0:
        raise InvalidDirection(
            f"sliders: {len(features)} samples have fewer than {k} principal directions; give more samples, or lower k."
        )
    axes = vt[:k]
    sign = torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))
    return axes * sign, share[:k].numpy()


def at_right_angles(d: torch.Tensor) -> torch.Tensor:
    """k tensors (k, ...) made orthogonal to each other in order, each with the length it had."""
    flat = d.flatten(1)
    if len(flat) > flat.shape[1]:
        raise InvalidDirection(f"sliders: {len(flat)} changes of {flat.shape[1]} numbers cannot be orthogonal.")
    q, r = torch.linalg.qr(flat.mT)
    q = q * torch.sign(torch.diagonal(r))
    return (q.mT * flat.norm(dim=1, keepdim=True)).reshape(d.shape)
