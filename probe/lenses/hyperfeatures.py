"""Hyperfeatures: one descriptor learned from all sites and levels (after Luo et al. 2023, arXiv 2305.14334).

Every map r_{s,t} of site s and level t is brought to one grid, standardised, and projected by a bottleneck that its
site shares over levels; a softmax mixes them:

    d = sum_{s,t} w_{s,t} B_s r_{s,t},     w = softmax(v),     |B_s r| = 1 in every cell

v and B are trained on matched points of image pairs: within a pair the descriptor of a point must be nearest to that
of its match, among all matches, in both directions (symmetric cross-entropy over cosines, Radford et al. 2021). The
weights are a reading of their own: where, and at which noise, the network knows what corresponds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from probe.errors import InvalidRequest, NotFitted
from probe.lenses.attention_maps import resample
from probe.lenses.correspondence import sample


class Hyperfeatures:
    """Learned mixing of feature maps.

    Args:
        width: channels of the descriptor.
        steps: of the optimiser (Adam), one image pair each.
        rate: its learning rate.
        temperature: of the cosines.
        seed: of the initial bottlenecks and the order of pairs.

    After ``fit``: ``sites_``, ``weights_`` (sites, levels), which sum to one, and ``loss_`` (steps,).

    Example:
        >>> import numpy as np
        >>> from probe.canvas import render_batch
        >>> from probe.lenses import Hyperfeatures, diffusion_features
        >>> from probe.model import load_pipeline
        >>> sites = ["mid_block", "up_blocks.0", "up_blocks.1"]
        >>> found = diffusion_features(load_pipeline("canvas"), render_batch(range(2)).images, sites, [0.0, 2.0])
        >>> matched = np.array([[0.3, 0.4], [0.5, 0.5], [0.7, 0.6]])  # in both images
        >>> mixed = Hyperfeatures(steps=20).fit(found.maps, [(0, 1)], [(matched, matched)])
        >>> mixed.weights_.shape, mixed.transform(found.maps).shape
        ((3, 2), (2, 64, 16, 16))
    """

    def __init__(
        self, width: int = 64, steps: int = 400, rate: float = 3e-3, temperature: float = 0.07, seed: int = 0
    ) -> None:
        if width < 1 or steps < 1 or not rate > 0 or not temperature > 0:
            raise InvalidRequest("Hyperfeatures: width, steps, rate and temperature must be positive.")
        self.width, self.steps, self.rate, self.temperature, self.seed = width, steps, rate, temperature, seed

    def fit(
        self,
        maps: Mapping[str, np.ndarray],
        pairs: Sequence[tuple[int, int]],
        points: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Hyperfeatures:
        """Learn from matched points.

        Args:
            maps: ``Features.maps``: for each site (levels, samples, channels, h, w).
            pairs: numbers of two samples each.
            points: for each pair, (n, 2) points of the first and of the second sample, matched row by row, n >= 2.
            progress: called with (done, total) steps.

        Raises:
            InvalidRequest: no pair, or points that do not match.
        """
        if not pairs or len(pairs) != len(points) or any(len(a) != len(b) or len(a) < 2 for a, b in points):
            raise InvalidRequest("Hyperfeatures.fit: give at least one pair, each with two or more matched points.")
        generator = torch.Generator().manual_seed(self.seed)
        self.sites_ = tuple(maps)
        self._grid = max((m.shape[-2:] for m in maps.values()), key=lambda g: g[0] * g[1])
        self._mean, self._std = {}, {}
        for site, m in maps.items():
            self._mean[site] = torch.from_numpy(m.mean((1, 3, 4)))[:, None, :, None, None]
            self._std[site] = torch.from_numpy(m.std((1, 3, 4)))[:, None, :, None, None] + 1e-6
        self._bottlenecks = {
            site: torch.nn.init.orthogonal_(torch.empty(self.width, m.shape[2]), generator=generator).requires_grad_()
            for site, m in maps.items()
        }
        self._logits = torch.zeros(len(maps), next(iter(maps.values())).shape[0], requires_grad=True)
        optimiser = torch.optim.Adam([self._logits, *self._bottlenecks.values()], lr=self.rate)
        order = np.random.default_rng(self.seed).integers(len(pairs), size=self.steps)
        losses = []
        for number in order:
            first, second = pairs[number]
            both = self._descriptors({site: m[:, [first, second]] for site, m in maps.items()})
            a, b = (F.normalize(sample(d, p), dim=1) for d, p in zip(both, points[number], strict=True))
            scores = a @ b.T / self.temperature
            target = torch.arange(len(scores))
            loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
            if progress is not None:
                progress(len(losses), self.steps)
        self.loss_ = np.asarray(losses)
        self.weights_ = torch.softmax(self._logits.detach().flatten(), 0).reshape(self._logits.shape).numpy()
        return self

    def transform(self, maps: Mapping[str, np.ndarray]) -> np.ndarray:
        """Descriptors (samples, width, h, w) float32 of maps as ``fit`` takes them.

        Raises:
            NotFitted: before ``fit``.
            InvalidRequest: other sites than those of ``fit``.
        """
        if not hasattr(self, "sites_"):
            raise NotFitted("Hyperfeatures: call fit before transform.")
        if tuple(maps) != self.sites_:
            raise InvalidRequest(f"Hyperfeatures: maps of {', '.join(maps)}; expected {', '.join(self.sites_)}.")
        with torch.no_grad():
            return self._descriptors(maps).numpy()

    def _descriptors(self, maps: Mapping[str, np.ndarray]) -> torch.Tensor:
        weights = torch.softmax(self._logits.flatten(), 0).reshape(self._logits.shape)
        total = torch.zeros(())
        for row, site in zip(weights, self.sites_, strict=True):
            x = (torch.from_numpy(maps[site]) - self._mean[site]) / self._std[site]
            low = F.normalize(torch.einsum("dc,tnchw->tndhw", self._bottlenecks[site], x), dim=2)
            mixed = torch.einsum("t,tndhw->ndhw", row, low)
            total = total + resample(mixed, self._grid)
        return total
